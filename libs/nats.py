"""NATS over TLS with the service's own certificate: one connection a process, opened again whenever it is lost.

Nothing is kept for later while the connection is away: what was refused to a caller must not go out behind its back.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from libs import tls
from libs.errors import EventBusUnavailable
from libs.settings import Nats, StartRefused, Tls

RETRY_S = 0.25
FOLLOW_EVERY_S = 1.0
PENDING_MESSAGES = 65_536
PENDING_BYTES = 256 * 1024 * 1024

log = structlog.get_logger()
JSON = dict[str, Any]


class Bus:
    """The connection; raises EventBusUnavailable while there is none."""

    def __init__(self, settings: Nats, identity: Tls, service: str) -> None:
        self._settings = settings
        self._identity = identity
        self._service = service
        self._client: Client | None = None
        self._refused: asyncio.Future[None] | None = None
        # Counts connections, so that whoever depends on one notices that it is another.
        self.generation = 0

    @property
    def client(self) -> Client:
        """Return the connected client."""
        if self._client is None or not self._client.is_connected:
            raise EventBusUnavailable("not connected")
        return self._client

    @property
    def inbox(self) -> str:
        """Where this service may receive answers; its permissions name the prefix."""
        return f"_INBOX.{self._service}"

    async def run(self) -> None:
        """Connect, and follow the certificate files, for as long as the process lives."""
        context, seen = tls.client(self._identity), tls.changed_at(self._identity)
        refused = self._refused = asyncio.get_running_loop().create_future()
        while self._client is None:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                self._client = await self._connect(context)
                self.generation += 1
                log.info("bus.connected")
                break
            await asyncio.sleep(RETRY_S)
        try:
            while True:
                # Something that the broker forbids us is a deployment that is wrong: better loud than half working.
                await asyncio.wait([refused], timeout=FOLLOW_EVERY_S)
                if refused.done():
                    refused.result()
                seen = self._follow(context, seen)
        finally:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await asyncio.wait_for(self._client.close(), self._settings.timeout_s)

    def _follow(self, context: ssl.SSLContext, seen: tuple[int, ...]) -> tuple[int, ...]:
        with contextlib.suppress(OSError):
            if (now := tls.changed_at(self._identity)) != seen:
                context.load_cert_chain(self._identity.certificate_file, self._identity.key_file)
                return now
        return seen

    async def _connect(self, context: ssl.SSLContext) -> Client:
        async def failed(error: Exception) -> None:
            if "permissions violation" in str(error).lower():
                log.error("bus.forbidden", what=str(error))
                if self._refused is not None and not self._refused.done():
                    self._refused.set_exception(StartRefused(f"NATS forbids what this service needs: {error}"))
            else:
                log.warning("bus.error", cause=type(error).__name__)

        async def lost() -> None:
            log.warning("bus.lost")

        async def back() -> None:
            self.generation += 1
            log.info("bus.connected")

        return await nats.connect(
            self._settings.address,
            tls=context,
            inbox_prefix=self.inbox.encode(),
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RETRY_S,
            connect_timeout=self._settings.timeout_s,
            ping_interval=5,
            max_outstanding_pings=1,
            pending_size=0,
            error_cb=failed,
            disconnected_cb=lost,
            reconnected_cb=back,
        )

    async def request(self, subject: str, body: JSON) -> JSON:
        """Ask JetStream's API; raises EventBusUnavailable for no answer. An `error` in the answer is the caller's."""
        try:
            answer: Msg = await self.client.request(
                subject, json.dumps(body).encode(), timeout=self._settings.timeout_s
            )
        except (NatsError, OSError, TimeoutError) as error:
            raise EventBusUnavailable(type(error).__name__) from error
        found: JSON = json.loads(answer.data)
        return found

    async def ping(self) -> None:
        """Raise EventBusUnavailable unless the broker answers."""
        try:
            await self.client.flush(timeout=1)
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
        with contextlib.suppress(asyncio.CancelledError, StartRefused):
            await running
