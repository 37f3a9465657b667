"""Who may say what on the bus. A forbidden request is never answered, and NATS tells only the error callback."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import nats
import pytest
from nats.aio.client import Client
from nats.errors import TimeoutError as NoAnswer

from devstack.layout import State
from devstack.process import until

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
    await until(lambda: refusals, 3)
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
async def test_the_gateway_pulls_from_a_consumer_that_mesh_made_and_makes_none(acting: As) -> None:
    mesh, gateway = await acting("mesh"), await acting("gateway")
    await ask(mesh, "events.devstack.pulled", "x")
    config = {"name": "gateway-t", "ack_policy": "none", "mem_storage": True, "filter_subject": "events.>"}
    wish = {"stream_name": "EVENTS", "config": config, "action": "create"}
    subject = "$JS.API.CONSUMER.CREATE.EVENTS.gateway-t.events.>"
    with pytest.raises(NoAnswer):
        await ask(gateway, subject, wish)
    assert "publish" in (await until_refused(gateway))[0]
    assert "error" not in await ask(mesh, subject, wish)
    # Not a request: what answers has the subject of the event, not of the inbox.
    inbox = await gateway.subscribe("_INBOX.gateway.pulled")
    await gateway.publish("$JS.API.CONSUMER.MSG.NEXT.EVENTS.gateway-t", b"1", reply=inbox.subject)
    event = await inbox.next_msg(timeout=2)
    assert event.subject.startswith("events.")


async def admitted(stack: State, context: ssl.SSLContext | None) -> bool:
    """Say whether the server answers a PING, by its plain protocol: the client library hides who hung up and why."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port("nats"))
    try:
        await reader.readline()
        if context is not None:
            await writer.start_tls(context, server_hostname="nats")
        writer.write(b'CONNECT {"verbose":false,"protocol":1}\r\nPING\r\n')
        async with asyncio.timeout(5):
            while line := await reader.readline():
                if line.startswith(b"PONG"):
                    return True
    except (ssl.SSLError, ConnectionError):
        return False
    finally:
        writer.transport.abort()
    return False


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mesh", True), ("gateway", True), ("identity", False), ("secrets", False), ("probe", False), ("", False)],
)
async def test_only_a_user_of_the_bus_gets_in(stack: State, shown: Shown, name: str, expected: bool) -> None:  # noqa: FBT001 — a row of the table
    assert await admitted(stack, shown(name)) is expected


async def test_nobody_gets_in_without_tls(stack: State) -> None:
    assert not await admitted(stack, None)
