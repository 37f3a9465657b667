"""Who may say what on the bus. A forbidden request is never answered, and NATS tells only the error callback."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoServersError
from nats.errors import TimeoutError as NoAnswer

from devstack.layout import State

pytestmark = pytest.mark.integration

Shown = Callable[[str], ssl.SSLContext]
As = Callable[[str], Awaitable[Client]]
STREAM = {"name": "EVENTS", "subjects": ["events.>"], "storage": "file", "retention": "limits"}


@pytest.fixture
async def acting(stack: State, shown: Shown) -> AsyncIterator[As]:
    """A connection of the named process; what it was refused collects in `refusals`."""
    async with AsyncExitStack() as opened:

        async def client(name: str) -> Client:
            async def refused(error: Exception) -> None:
                refusals.append(str(error))

            refusals: list[str] = []
            connection = await nats.connect(
                f"tls://127.0.0.1:{stack.port('nats')}", tls=shown(name), tls_hostname="nats", error_cb=refused,
                inbox_prefix=f"_INBOX.{name}".encode(), allow_reconnect=False,
            )  # fmt: skip
            connection.refusals = refusals  # type: ignore[attr-defined]
            opened.push_async_callback(connection.close)
            return connection

        yield client


async def ask(connection: Client, subject: str, body: object = "") -> dict[str, object]:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    answer = await connection.request(subject, content, timeout=2)
    return dict(json.loads(answer.data))


async def until_refused(connection: Client) -> list[str]:
    refusals: list[str] = connection.refusals  # type: ignore[attr-defined]
    async with asyncio.timeout(3):
        while not refusals:
            await asyncio.sleep(0.01)
    return refusals


@pytest.fixture
async def stream(acting: As) -> None:
    """The stream of events, as mesh makes it."""
    await ask(await acting("mesh"), "$JS.API.STREAM.CREATE.EVENTS", STREAM)


@pytest.mark.usefixtures("stream")
async def test_what_mesh_publishes_is_acknowledged_from_disk(acting: As) -> None:
    assert "seq" in await ask(await acting("mesh"), "events.devstack.test", "x")


@pytest.mark.usefixtures("stream")
async def test_the_gateway_cannot_publish(acting: As) -> None:
    gateway = await acting("gateway")
    with pytest.raises(NoAnswer):
        await ask(gateway, "events.devstack.test", "forged")
    assert "publish" in (await until_refused(gateway))[0]


@pytest.mark.usefixtures("stream")
async def test_the_gateway_cannot_listen_beside_its_consumer(acting: As) -> None:
    gateway = await acting("gateway")
    await gateway.subscribe("events.>")
    assert "subscription" in (await until_refused(gateway))[0]


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("verb", ["STREAM.DELETE", "STREAM.PURGE", "STREAM.UPDATE", "STREAM.MSG.DELETE"])
async def test_the_gateway_cannot_change_the_stream(acting: As, verb: str) -> None:
    gateway = await acting("gateway")
    with pytest.raises(NoAnswer):
        await ask(gateway, f"$JS.API.{verb}.EVENTS", {})
    assert "publish" in (await until_refused(gateway))[0]


@pytest.mark.usefixtures("stream")
async def test_the_gateway_reads_through_a_pull_consumer_of_its_own(acting: As) -> None:
    await ask(await acting("mesh"), "events.devstack.pulled", "x")
    gateway = await acting("gateway")
    wish = {"stream_name": "EVENTS", "config": {"name": "gateway-t", "ack_policy": "explicit", "mem_storage": True}}
    made = await ask(gateway, "$JS.API.CONSUMER.CREATE.EVENTS.gateway-t", wish)
    assert "error" not in made
    # Not a request: what answers has the subject of the event, not of the inbox.
    inbox = await gateway.subscribe("_INBOX.gateway.pulled")
    await gateway.publish("$JS.API.CONSUMER.MSG.NEXT.EVENTS.gateway-t", b"1", reply=inbox.subject)
    event = await inbox.next_msg(timeout=2)
    assert event.subject.startswith("events.")
    await event.ack_sync()


@pytest.mark.parametrize("name", ["identity", "secrets", "probe"])
async def test_a_process_that_is_no_user_of_the_bus_is_refused(acting: As, name: str) -> None:
    with pytest.raises((NoServersError, ConnectionError, nats.errors.Error)):
        await acting(name)


async def test_no_certificate_is_refused(stack: State, shown: Shown) -> None:
    with pytest.raises((NoServersError, ConnectionError, nats.errors.Error, ssl.SSLError)):
        await nats.connect(
            f"tls://127.0.0.1:{stack.port('nats')}", tls=shown(""), tls_hostname="nats", allow_reconnect=False
        )


async def test_no_tls_is_refused(stack: State) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port("nats"))
    assert b'"tls_required":true' in await reader.readline()
    writer.write(b'CONNECT {"verbose":true}\r\nPING\r\n')
    async with asyncio.timeout(5):
        rest = await reader.read()
    assert b"PONG" not in rest
    writer.close()
