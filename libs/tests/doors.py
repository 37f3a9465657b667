"""A guarded server on loopback with our real contract and a scripted handler behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health

from libs.clock import Clock, SystemClock
from libs.rpc import context
from libs.rpc.channel import outgoing
from libs.rpc.guard import REFLECTION
from libs.rpc.server import HEALTH, Registration, build, credentials
from libs.settings import Listen, Peer, Runtime, Telemetry, Tls
from libs.tests.pki import Authority
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs

NAME = "plexsphere.identity.v1.RelationsService"
SUBJECT = "user:01990000-0000-7000-8000-000000000000"
ASKED = pb.CheckRequest(subject=SUBJECT, permission="read", resource="platform:main")


@dataclass
class Relations:
    """Notes what it was allowed to see, then does as told."""

    raises: Exception | None = None
    takes_s: float = 0
    seen: list[context.Call] = field(default_factory=list)
    sent_on: list[tuple[str, str]] = field(default_factory=list)
    left_s: float = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def Check(self, request: pb.CheckRequest, rpc: Any) -> pb.CheckResponse:  # noqa: N802 — gRPC's own
        self.seen.append(context.current_call())
        self.sent_on = outgoing(())
        self.left_s = context.remaining_s(3600)
        await asyncio.sleep(self.takes_s)
        if self.raises is not None:
            raise self.raises
        return pb.CheckResponse(verdict=pb.VERDICT_GRANTED)

    async def WatchRevocations(  # noqa: N802 — gRPC's own
        self, request: pb.WatchRevocationsRequest, rpc: Any
    ) -> AsyncIterator[pb.WatchRevocationsResponse]:
        self.seen.append(context.current_call())
        try:
            for _ in range(3):
                yield pb.WatchRevocationsResponse(node_id=context.current_call().correlation_id)
                await asyncio.sleep(self.takes_s)
            if self.raises is not None:
                raise self.raises
        finally:
            self.ended.set()

    BulkCheck = Check


def runtime(identity: Tls, callers: dict[str, list[str]] | None = None, port: int = 1) -> Runtime:
    """Settings of a process that is called `identity`."""
    rows = {NAME: ["gateway"], HEALTH: ["gateway"], REFLECTION: ["operator"]}
    return Runtime(
        service="identity", environment="dev", listen=Listen(host="127.0.0.1", port=port), tls=identity,
        telemetry=Telemetry(metrics_host="127.0.0.1", metrics_port=1), callers=rows | (callers or {}), drain_s=5,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def door(
    authority: Authority,
    servicer: Relations,
    *,
    principal: bool = False,
    callers: dict[str, list[str]] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Peer]:
    """Serve for the block, with the certificate of `identity`."""
    settings = runtime(authority.issue("identity"), callers)
    registered = Registration(NAME, servicer, stubs.add_RelationsServiceServicer_to_server, principal)
    server = build(settings, [registered], health.aio.HealthServicer(), clock or SystemClock())
    port = server.add_secure_port("127.0.0.1:0", credentials(settings.tls))
    await server.start()
    try:
        yield Peer(address=f"127.0.0.1:{port}", name="identity")
    finally:
        await server.stop(0)


def raw_channel(peer: Peer, caller: Tls) -> Any:  # the stubs cannot type a method that takes bytes
    """Open a channel without our own error mapping, to see what is on the wire."""
    files = (caller.ca_file, caller.key_file, caller.certificate_file)
    offered = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    return grpc.aio.secure_channel(peer.address, offered, options=[("grpc.ssl_target_name_override", peer.name)])
