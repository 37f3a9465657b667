"""F-1: what was published once is good once, for every gateway process and after every restart."""

import asyncio
import contextlib
import json
import ssl
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from devstack.process import port_open
from tests.e2e.attacker import wire
from tests.e2e.outside import Edge
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e


@contextlib.asynccontextmanager
async def another_gateway(arena: Arena) -> AsyncIterator[Edge]:
    """Start one more gateway process beside the stack's, with the same settings but for its ports."""
    ports = json.loads((arena.world.state / "ports.json").read_text())
    with contextlib.ExitStack() as held:
        import socket

        found = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
    port, metrics = found
    text = arena.world.config("gateway").replace(f"port = {ports['gateway']}\n", f"port = {port}\n", 1)
    text = text.replace(f"metrics_port = {ports['gateway-metrics']}", f"metrics_port = {metrics}")
    text = text.replace("gateway.trace.jsonl", "gateway-2.trace.jsonl")
    config = arena.world.state / "config/gateway-2.toml"
    config.write_text(text)
    with (arena.world.state / "log/gateway-2.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway", "--config", config, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError, Exception):
                    await port_open(port)
                    break
                await asyncio.sleep(0.1)
        yield Edge(f"https://127.0.0.1:{port}", arena.operator.http)
    finally:
        process.terminate()
        await process.wait()


async def test_a_replay_after_a_restart_of_the_gateway_is_refused(arena: Arena) -> None:
    identifier, subject, _ = await arena.genuine()
    _, _, data = await arena.broker.find(identifier)
    await arena.world.restart("gateway")
    async with arena.listen() as node:
        place = await arena.broker.put(subject, data)
        after = await arena.publish()
        await node.until(after)
    assert place not in [heard.sequence for heard in node.heard]
    assert identifier not in node.ids
    # The replay stands in the stream; a gateway that reads it anew refuses it again.
    await arena.world.restart("gateway")
    node = arena.listen()
    node.cursor = str(place - 1)
    async with node:
        await node.until(after)
    assert place not in [heard.sequence for heard in node.heard]


async def test_a_replay_to_another_gateway_process_is_refused(arena: Arena) -> None:
    identifier, subject, _ = await arena.genuine()
    _, _, data = await arena.broker.find(identifier)
    async with another_gateway(arena) as second:
        node, other = arena.listen(), arena.listen(arena.story.node_b, second)
        async with node, other:
            place = await arena.broker.put(subject, data)
            after = await arena.publish()
            await node.until(after)
            await other.until(after)
        for listener in (node, other):
            assert place not in [heard.sequence for heard in listener.heard]


async def test_both_gateways_serve_the_same_sequences(arena: Arena) -> None:
    async with another_gateway(arena) as second:
        node, other = arena.listen(), arena.listen(arena.story.node_b, second)
        async with node, other:
            sent = [await arena.publish(number=number) for number in range(20)]
            await node.until(sent[-1])
            await other.until(sent[-1])
        assert [(one.sequence, one.id) for one in node.heard] == [(one.sequence, one.id) for one in other.heard]


def changed(line: bytes) -> bytes:
    """Change what an envelope says."""
    envelope = json.loads(line.removeprefix(b"data: "))
    return b"data: " + wire({**envelope, "payload": {"do": "wipe"}}) + b"\n"


async def test_who_alters_or_repeats_what_passes_through_a_proxy_is_found_out_by_the_node(arena: Arena) -> None:
    """The proxy has a certificate that the node trusts; the signature is all that is left."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arena.world.state / "pki/gateway.crt", arena.world.state / "pki/gateway.key")

    async def proxy(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name in {"Authorization", "Last-Event-ID"}}
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        async with (
            ClientSession(connector=TCPConnector(ssl=arena.operator.http.connector._ssl)) as http,  # type: ignore[union-attr]  # the test's own trust
            http.get(arena.edge.url + request.path, headers=headers, timeout=ClientTimeout(sock_read=30)) as upstream,
        ):
            async for line in upstream.content:
                await answer.write(changed(line) if line.startswith(b"data: ") else line)
        return answer

    app = web.Application()
    app.router.add_get("/{path:.*}", proxy)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    try:
        node = arena.listen(edge=Edge(f"https://127.0.0.1:{port}", arena.operator.http))
        async with node:
            identifier = await arena.publish(do="reboot")
            await node.until(identifier)
    finally:
        await runner.cleanup()
    assert {heard.verdict for heard in node.heard} == {"InvalidSignature"}
