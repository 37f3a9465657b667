"""The connection to NATS against a broker that misbehaves: it is lost for a while, and never for good."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg

from libs.errors import EventBusUnavailable
from libs.nats import Bus
from libs.settings import Nats, Tls
from libs.tests.pki import Authority

pytestmark = pytest.mark.unit

INFO = (
    b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576,"proto":1,"tls_required":true}\r\n'
)


class Hostile:
    """A broker that says what a test wants it to say."""

    def __init__(self, identity: Tls) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(identity.certificate_file, identity.key_file)
        self.connections: list[asyncio.StreamWriter] = []
        self.silent = False
        self.unanswered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.write(INFO)
            await writer.start_tls(self.context)
            self.connections.append(writer)
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    self.unanswered += 1
                    if not self.silent:
                        self.answer()
        writer.close()

    def answer(self) -> None:
        self.say(b"PONG\r\n" * self.unanswered)
        self.unanswered = 0

    def say(self, text: bytes) -> None:
        self.connections[-1].write(text)


@pytest.fixture
async def hostile(authority: Authority) -> AsyncIterator[tuple[Hostile, Bus]]:
    broker = Hostile(authority.issue("nats"))
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    address = f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    bus = Bus(Nats(address=address), authority.issue("mesh"), "mesh", refused_retry_s=0.05)
    async with server:
        running = asyncio.ensure_future(bus.run())
        await connected(bus)
        yield broker, bus
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def connected(bus: Bus, above: int = 0) -> None:
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(EventBusUnavailable):
                if bus.client.is_connected and bus.generation > above:
                    return
            await asyncio.sleep(0.02)


ERRORS = {
    "something is forbidden": b"-ERR 'Permissions Violation for Subscription to \"_INBOX.mesh.x\"'\r\n",
    "an error of the protocol": b"-ERR 'Unknown Protocol Operation'\r\n",
    "the user is refused": b"-ERR 'Authorization Violation'\r\n",
    "garbage": b"BOO 1 2 3\r\n",
}


@pytest.mark.parametrize("error", ERRORS)
async def test_whatever_the_broker_says_the_connection_comes_back(hostile: tuple[Hostile, Bus], error: str) -> None:
    broker, bus = hostile
    before = bus.generation
    broker.say(ERRORS[error])
    await connected(bus, before)
    await bus.ping()


async def test_a_message_with_headers_that_cannot_be_read_is_one_without(hostile: tuple[Hostile, Bus]) -> None:
    broker, bus = hostile
    before, heard = bus.generation, list[dict[str, str] | None]()

    async def hear(message: Msg) -> None:
        heard.append(message.headers)

    await bus.client.subscribe("_INBOX.mesh.x", cb=hear)
    await bus.ping()
    broker.say(b"HMSG _INBOX.mesh.x 1 8 10\r\nNATS/1.0{}\r\n")
    await bus.ping()
    await asyncio.sleep(0.05)
    assert heard == [None]
    assert bus.generation == before


async def test_a_late_answer_does_not_end_the_reader(hostile: tuple[Hostile, Bus]) -> None:
    broker, bus = hostile
    before = bus.generation
    broker.silent = True
    with pytest.raises(EventBusUnavailable):
        await bus.ping()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.ping(), 0.05)
    broker.silent = False
    broker.answer()
    await bus.ping()
    assert bus.generation == before
