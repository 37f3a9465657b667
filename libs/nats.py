"""NATS over TLS with the service's own certificate: one connection a process, opened again whenever it is lost.

Nothing is kept for later while the connection is away: what was refused to a caller must not go out behind its back.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from libs import tls
from libs.errors import EventBusUnavailable
from libs.settings import Nats, Tls

RETRY_S = 0.25
# After the broker forbade something or ended the connection for good; the log says which, and nothing works meanwhile.
REFUSED_RETRY_S = 5.0
FOLLOW_EVERY_S = 1.0
PING_WITHIN_S = 1.0
NO_END_S = 24 * 3600

log = structlog.get_logger()
JSON = dict[str, Any]


class Tolerant(Client):
    """The library's client; a message whose headers cannot be read has none, and does not end the connection."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except (IndexError, ValueError):
            return None
        return found


class Bus:
    """The connection; raises EventBusUnavailable while there is none."""

    def __init__(self, settings: Nats, identity: Tls, service: str, refused_retry_s: float = REFUSED_RETRY_S) -> None:
        self._settings = settings
        self._identity = identity
        self._service = service
        self._refused_retry_s = refused_retry_s
        self._client: Client | None = None
        self._probe: tuple[int, asyncio.Future[None]] | None = None
        # Counts connections, so that whoever depends on one notices that it is another.
        self.generation = 0

    @property
    def client(self) -> Client:
        """Return the connected client."""
        if self._client is None or not self._client.is_connected:
            raise EventBusUnavailable("not connected")
        return self._client

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._client is not None and bool(self._client.is_connected)

    @property
    def inbox(self) -> str:
        """Where this service may receive answers; its permissions name the prefix."""
        return f"_INBOX.{self._service}"

    async def run(self) -> None:
        """Keep a connection, and follow the certificate files, for as long as the process lives."""
        context = tls.client(self._identity)
        follow = tls.follow(self._identity, context)
        while True:
            ended = asyncio.get_running_loop().create_future()
            try:
                self._client = await self._connect(context, ended)
            except (NatsError, OSError, TimeoutError):
                follow()
                await asyncio.sleep(RETRY_S)
                continue
            self.generation += 1
            log.info("bus.connected")
            try:
                while not ended.done():
                    await asyncio.wait([ended], timeout=FOLLOW_EVERY_S)
                    follow()
            finally:
                with contextlib.suppress(NatsError, OSError, TimeoutError):
                    await asyncio.wait_for(self._client.close(), self._settings.timeout_s)
            await asyncio.sleep(self._refused_retry_s)

    async def _connect(self, context: ssl.SSLContext, ended: "asyncio.Future[None]") -> Client:
        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        async def failed(error: Exception) -> None:
            if "permissions violation" in str(error).lower():
                # A forbidden subscription succeeds and is never heard: better none at all than half of what is needed.
                log.error("bus.forbidden", what=str(error))
                end()
            else:
                log.warning("bus.error", cause=type(error).__name__)

        async def lost() -> None:
            log.warning("bus.lost")

        async def back() -> None:
            self.generation += 1
            log.info("bus.connected")

        async def closed() -> None:
            # What the broker calls an error closes the client for good, and it does not come back by itself.
            end()

        options: dict[str, Any] = {
            "tls": context,
            "inbox_prefix": self.inbox.encode(),
            "allow_reconnect": True,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RETRY_S,
            "connect_timeout": self._settings.timeout_s,
            "ping_interval": 5,
            "max_outstanding_pings": 1,
            "pending_size": 0,
            "error_cb": failed,
            "disconnected_cb": lost,
            "reconnected_cb": back,
            "closed_cb": closed,
        }
        client = Tolerant()
        await client.connect(self._settings.address, **options)
        return client

    async def request(self, subject: str, body: JSON) -> JSON:
        """Ask JetStream's API; raises EventBusUnavailable for no answer. An `error` in the answer is the caller's."""
        try:
            answer: Msg = await self.client.request(
                subject, json.dumps(body).encode(), timeout=self._settings.timeout_s
            )
            found: JSON = json.loads(answer.data)
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            raise EventBusUnavailable(type(error).__name__) from error
        if not isinstance(found, dict):
            raise EventBusUnavailable("not an answer")
        return found

    async def ping(self) -> None:
        """Raise EventBusUnavailable unless the broker answers."""
        # Nobody cancels it: an answer that comes late for a wait that was given up would end the client's reader.
        if self._probe is None or self._probe[0] != self.generation or self._probe[1].done():
            self._probe = (self.generation, asyncio.ensure_future(self.client.flush(timeout=NO_END_S)))
        probe = self._probe[1]
        await asyncio.wait([probe], timeout=PING_WITHIN_S)
        if not probe.done():
            raise EventBusUnavailable("no answer")
        try:
            probe.result()
        except (NatsError, OSError, TimeoutError) as error:
            raise EventBusUnavailable(type(error).__name__) from error


@contextlib.asynccontextmanager
async def open_bus(settings: Nats, identity: Tls, service: str) -> AsyncIterator[Bus]:
    """Keep a connection for the block."""
    bus = Bus(settings, identity, service)
    running = asyncio.ensure_future(bus.run())
    try:
        yield bus
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
