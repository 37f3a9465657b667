"""Small requests to OpenBao that go out together and are answered in order: HTTP/1.1 pipelining (RFC 9112, 9.3.2).

With many Domains a batch of events is one signing request for each of them. Sent one by one these cost more than all
the rest of a publish (docs/decisions/0023).
"""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, cast

import httptools
from opentelemetry import trace
from yarl import URL

from libs import tls
from libs.bao import FORBIDDEN, Bao, BaoRefused
from libs.errors import OpenbaoUnavailable
from libs.rpc.context import remaining_s
from libs.telemetry import hop

# OpenBao answers the requests of one connection one after the other; two keep two of its cores busy.
LINES = 2
# How soon a new certificate is used.
LOOK_EVERY_S = 1.0
FIRST_ERROR, FIRST_SERVER_ERROR = 400, 500
HTTPS = 443
REQUEST = b"POST /v1/%b HTTP/1.1\r\nHost: %b\r\nX-Vault-Token: %b\r\nContent-Length: %d\r\n\r\n%b"

tracer = trace.get_tracer("services.mesh")
Answer = tuple[int, bytes]


class ConnectionLost(OSError):
    """The connection ended before the answer came."""


class Line(asyncio.Protocol):
    """One connection; answers come in the order of the requests."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._asked: deque[asyncio.Future[Answer]] = deque()
        self._unsent: list[bytes] = []
        self._body: list[bytes] = []

    @property
    def lost(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._transport is None or self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return its answer; what is asked in one turn of the loop goes out in one write."""
        loop = asyncio.get_running_loop()
        if not self._unsent:
            loop.call_soon(self._send)
        self._unsent.append(request)
        answer: asyncio.Future[Answer] = loop.create_future()
        self._asked.append(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            # Whoever waited has given up, and everybody behind would wait as long.
            self.abort()
            raise

    def _send(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def abort(self) -> None:
        """End the connection, and with it whatever waits for an answer."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read answers."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, _: Exception | None) -> None:
        """Refuse whoever still waits."""
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(ConnectionLost)
        self._asked.clear()

    def on_message_begin(self) -> None:
        """Begin the next answer; one that nobody asked for ends the connection."""
        self._body.clear()
        if not self._asked:
            self.abort()

    def on_body(self, body: bytes) -> None:
        """Take a piece of an answer."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Give an answer to whoever asked first."""
        if self._asked and not (answer := self._asked.popleft()).done():
            answer.set_result((self._parser.get_status_code(), b"".join(self._body)))
        if not self._parser.should_keep_alive():
            self.abort()


class Pipeline:
    """Requests by a service's own token and certificate; only such that do no harm when they are sent twice."""

    def __init__(self, bao: Bao) -> None:
        self._bao = bao
        self._url = URL(bao.settings.address)
        self._lines = [Line() for _ in range(LINES)]
        self._seen: tuple[int, ...] = ()
        self._turn = 0
        self._look_at = 0.0
        self._connecting = asyncio.Lock()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send one request; raises BaoRefused for an answer and OpenbaoUnavailable for none."""
        raw = json.dumps(body).encode()
        try:
            with hop(tracer, "bao." + path.partition("/")[0]):
                status, payload = await self._ask(path, raw)
                if status == FORBIDDEN:
                    # The token may have been revoked or OpenBao restarted: log in once more, then believe the refusal.
                    self._bao.forget_token()
                    status, payload = await self._ask(path, raw)
        except (OSError, TimeoutError) as error:
            raise OpenbaoUnavailable(type(error).__name__) from error
        if status >= FIRST_SERVER_ERROR:
            raise OpenbaoUnavailable(f"status {status}")
        if status >= FIRST_ERROR:
            raise BaoRefused(status, path)
        try:
            found: dict[str, Any] = json.loads(payload)
        except ValueError:
            raise OpenbaoUnavailable("the answer cannot be read") from None
        return found

    async def _ask(self, path: str, raw: bytes) -> Answer:
        token = await self._bao.token()
        host = (self._url.authority or "").encode()
        request = REQUEST % (path.encode(), host, token.reveal(), len(raw), raw)
        async with asyncio.timeout(remaining_s(self._bao.settings.timeout_s)):
            try:
                return await (await self._line()).ask(request)
            except ConnectionLost:
                # OpenBao may have closed a connection that was idle, just as it was used.
                return await (await self._line()).ask(request)

    async def _line(self) -> Line:
        """Return the connection whose turn it is, opened anew where it was lost or the certificate is another one."""
        turn = self._turn = (self._turn + 1) % LINES
        if time.monotonic() < self._look_at and not self._lines[turn].lost:
            return self._lines[turn]
        async with self._connecting:
            self._look_at, seen = time.monotonic() + LOOK_EVERY_S, tls.changed_at(self._bao.identity)
            if seen != self._seen:
                self._seen = seen
                self.close()
            if self._lines[turn].lost:
                _, self._lines[turn] = await asyncio.get_running_loop().create_connection(
                    Line, self._url.host or "", self._url.port or HTTPS, ssl=tls.client(self._bao.identity)
                )
            return self._lines[turn]

    def close(self) -> None:
        """Close the connections."""
        for line in self._lines:
            line.abort()


@contextlib.asynccontextmanager
async def open_pipeline(bao: Bao) -> AsyncIterator[Pipeline]:
    """Keep connections for the block; they are made when they are first used."""
    pipeline = Pipeline(bao)
    try:
        yield pipeline
    finally:
        pipeline.close()
