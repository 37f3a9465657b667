"""F-1: what was published once is good once, for every gateway process and after every restart."""

import json
import ssl

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tests.e2e.attacker import eventually, wire
from tests.e2e.outside import Edge
from tests.e2e.threats.mesh.conftest import Arena, another_gateway

pytestmark = pytest.mark.e2e


async def test_a_replay_after_a_restart_of_the_gateway_is_refused(arena: Arena) -> None:
    identifier, subject, _ = await arena.genuine()
    _, _, data = await arena.broker.find(identifier)
    await arena.world.restart("gateway")
    before = (await arena.refused())["nonce_replayed"]
    async with arena.listen() as node:
        place = await arena.broker.put(subject, data)
        after = await arena.publish()
        await node.until(after)
    assert place not in [heard.sequence for heard in node.heard]
    assert identifier not in node.ids
    # The last five minutes are read anew, and with them what other tests have replayed.
    assert (await arena.refused())["nonce_replayed"] >= before + 1
    await arena.recorded("nonce_replayed")
    # The replay stands in the stream; a gateway that reads it anew refuses it again.
    await arena.world.restart("gateway")
    node = arena.listen()
    node.cursor = str(place - 1)
    async with node:
        await node.until(after)
    assert place not in [heard.sequence for heard in node.heard]

    async def counted() -> bool:
        # A process counts from nothing, and may have read from mesh's log first what stands behind.
        return (await arena.refused())["nonce_replayed"] >= 1

    await eventually(counted)


async def test_a_replay_to_another_gateway_process_is_refused(arena: Arena) -> None:
    identifier, subject, _ = await arena.genuine()
    _, _, data = await arena.broker.find(identifier)
    async with another_gateway(arena) as second:
        node, other = arena.listen(), arena.listen(arena.story.node_b, second.edge)
        async with node, other:
            # Both have read what was there before.
            before = [(await arena.refused(port))["nonce_replayed"] for port in (0, second.metrics_port)]
            place = await arena.broker.put(subject, data)
            after = await arena.publish()
            await node.until(after)
            await other.until(after)
        for listener in (node, other):
            assert place not in [heard.sequence for heard in listener.heard]
        after_it = [(await arena.refused(port))["nonce_replayed"] for port in (0, second.metrics_port)]
        assert after_it == [count + 1 for count in before]
    await arena.recorded("nonce_replayed")


async def test_both_gateways_serve_the_same_sequences(arena: Arena) -> None:
    async with another_gateway(arena) as second:
        node, other = arena.listen(), arena.listen(arena.story.node_b, second.edge)
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
