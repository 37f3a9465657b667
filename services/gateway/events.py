"""A node's event stream over HTTP: text/event-stream (WHATWG HTML, 9.2), resumed by `Last-Event-ID`."""

import asyncio
import re
from typing import cast
from uuid import UUID

import structlog
from aiohttp import web

from libs import errors
from libs.rpc.context import PRINCIPAL_KEY
from services.gateway.credentials import AssertionCache, claims_of, digest_of
from services.gateway.denials import Denials
from services.gateway.edge import DEADLINE, STREAMED, Asked, Route
from services.gateway.gate import open_gate
from services.gateway.hub import Hub
from services.gateway.mesh import Reconciler
from services.gateway.ports import Place, Ports
from services.gateway.problems import Protocol
from services.gateway.stream import BEAT, Stream

SEQUENCE = re.compile(r"[0-9]{1,19}")
LARGEST_SEQUENCE = 2**63 - 1
HTTP_1_0 = (1, 0)
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Plexsphere-API-Version": "v1",
    # A proxy must hand on each event as it comes.
    "X-Accel-Buffering": "no",
}

log = structlog.get_logger()


class Events:
    """Handler of `GetNodeEvents`; without a hub some port is missing."""

    def __init__(
        self, ports: Ports, hub: Hub | None, cache: AssertionCache, reconciler: Reconciler, denials: Denials
    ) -> None:
        self._ports = ports
        self._hub = hub
        self._cache = cache
        self._reconciler = reconciler
        self._denials = denials

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {"GetNodeEvents": Route(self.events)}

    async def events(self, asked: Asked) -> web.StreamResponse:
        """Stream the node's events; behind the gate the order is relation, existence, cursor."""
        gate = open_gate(self._ports)
        credential = asked.credential
        if credential is None or credential.node is None or self._hub is None:
            raise errors.NodeUnauthorized
        node_id = credential.node.node_id
        claims = claims_of(dict(asked.metadata)[PRINCIPAL_KEY])
        try:
            place = await gate.node(node_id)
        except (errors.Forbidden, errors.NotFound) as refused:
            error: errors.PlexError = refused
            if isinstance(refused, errors.Forbidden) and await gate.node_repo.place(node_id) is None:
                # Deleted since the bearer was believed: 403 stops an agent for good, 401 makes it register again.
                error = errors.NskRevoked()
            await self._denials.record("GetNodeEvents", error, node_id, claims.get("domain_id", ""), asked.path["id"])
            raise error from None
        after = cursor(asked.http.headers.get("Last-Event-ID"))
        self._hub.require_ready()
        start = await self._start(place, node_id, after)
        self._hub.require_ready()
        response = await self._prepared(asked.http)
        if asked.http.transport is None:
            raise ConnectionResetError
        stream = Stream(
            node_id=node_id,
            place=place,
            digest=digest_of(credential.value),
            kid=claims.get("nsk_kid", ""),
            transport=asked.http.transport,
            chunked=response.chunked or False,
            ended=asyncio.get_running_loop().create_future(),
            passed=start,
        )
        await self._hold(self._hub, asked, stream)
        return response

    async def _start(self, place: Place, node_id: UUID, after: int | None) -> int:
        """Return the sequence after which to begin; asks for a reconciliation where a node cannot be resumed."""
        hub = cast("Hub", self._hub)
        if after is None:
            return hub.ring.position
        scopes = (f"node:{node_id}", f"project:{place.project_id}", f"domain:{place.domain_id}")
        if await hub.can_resume(place, scopes, after):
            return after
        if recent := hub.reconciled(place.domain_id):
            return recent - 1
        begin = hub.ring.position
        await self._reconciler.request(place.domain_id, node_id)
        return begin

    async def _prepared(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        if request.version > HTTP_1_0:
            response.enable_chunked_encoding()
        request[DEADLINE].reschedule(None)
        request[STREAMED] = response
        await response.prepare(request)
        # The first bytes take the headers with them; everything after goes to the connection directly.
        await response.write(BEAT)
        return response

    async def _hold(self, hub: Hub, asked: Asked, stream: Stream) -> None:
        """Let a stream receive until it ends; whatever ends streams ends it from its first byte on."""
        if isinstance(asked.http.protocol, Protocol):
            asked.http.protocol.when_lost = stream.end
        hub.open(stream)
        log.info("events.opened", node=str(stream.node_id))
        try:
            if self._cache.generation != asked.generation:
                # Something was revoked since the caller was asked who he is: it may have been this one.
                await hub.ask_about([stream])
            if not hub.ready:
                stream.end("unavailable")
            while not stream.ended.done() and hub.replay(stream):
                await taken(asked.http, stream)
                hub.keep_up(stream)
            cause = await stream.ended
        finally:
            hub.close(stream)
            stream.close()
        log.info("events.ended", node=str(stream.node_id), cause=cause)


async def taken(request: web.Request, stream: Stream) -> None:
    """Wait until the client has read most of what was written to it, or its stream has ended."""
    drained = asyncio.ensure_future(request.writer.drain())
    try:
        await asyncio.wait((drained, stream.ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not drained.cancel():
            # That the connection was lost is said by its end.
            drained.exception()


def cursor(text: str | None) -> int | None:
    """Read `Last-Event-ID`; raises InvalidCursor for anything but a non-negative integer."""
    if text is None:
        return None
    if not SEQUENCE.fullmatch(text) or int(text) > LARGEST_SEQUENCE:
        raise errors.InvalidCursor("Last-Event-ID must be a non-negative integer")
    return int(text)
