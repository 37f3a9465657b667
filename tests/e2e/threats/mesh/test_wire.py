"""F-1: what stands between a node and the edge: proxies that buffer, compress and give up, and cut connections."""

import asyncio
import contextlib
import dataclasses
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, TraceConfig, TraceRequestEndParams

from devstack.process import port_open
from tests.e2e.attacker import eventually
from tests.e2e.listener import Listener
from tests.e2e.outside import Edge, Node
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e

# A proxy as people run it: it buffers, compresses everything that it can, and gives up on what is silent. It heeds
# X-Accel-Buffering, which is nginx's own default: one that is told to ignore it (`proxy_ignore_headers`) keeps events
# until a buffer of some kilobytes is full, whatever an origin does, and is not something that can be tested for here.
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    gzip on; gzip_proxied any; gzip_min_length 0; gzip_types *;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {pki}/gateway.crt; ssl_certificate_key {pki}/gateway.key;
        location / {{
            proxy_pass {edge}; proxy_buffering on; proxy_read_timeout 30s;
            proxy_ssl_protocols TLSv1.3; proxy_ssl_verify off;
        }}
    }}
}}
"""
# Longer than the proxy waits, which is half of its default: the edge says something every 25 s.
SILENT_S = 32
AT_ONCE_S = 2.0


def nginx() -> str:
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert found, "nginx is not installed: run `make ci-deps`"
    return found


@contextlib.asynccontextmanager
async def behind_nginx(arena: Arena, folder: Path) -> AsyncIterator[Edge]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = NGINX.format(folder=folder, port=port, pki=arena.world.state / "pki", edge=arena.edge.url)
    (folder / "nginx.conf").write_text(text)
    process = await asyncio.create_subprocess_exec(
        nginx(), "-c", folder / "nginx.conf", "-p", folder, stderr=asyncio.subprocess.DEVNULL
    )
    try:

        async def listening() -> bool:
            try:
                await port_open(port)
            except OSError:
                return False
            return True

        await eventually(listening, 5)
        yield Edge(f"https://127.0.0.1:{port}", arena.operator.http)
    finally:
        process.terminate()
        await process.wait()


@dataclasses.dataclass
class Compressed(Listener):
    """An agent that accepts gzip and notes what it got."""

    encodings: list[str] = dataclasses.field(default_factory=list)

    async def once(self) -> None:
        async def noted(_: object, __: object, found: TraceRequestEndParams) -> None:
            self.encodings.append(found.response.headers.get("Content-Encoding", ""))

        watched = TraceConfig()
        watched.on_request_end.append(noted)
        connector = self.edge.http.connector
        async with ClientSession(connector=connector, connector_owner=False, trace_configs=[watched]) as http:
            self.edge = Edge(self.edge.url, http)
            await super().once()


async def test_a_proxy_that_buffers_compresses_and_gives_up_delays_and_loses_nothing(
    arena: Arena, tmp_path: Path
) -> None:
    async with behind_nginx(arena, tmp_path) as proxied, Compressed(proxied, arena.story.node_a) as node:
        for pause_s in (0, SILENT_S, 0, 0):
            await asyncio.sleep(pause_s)
            # The event may be here before the answer to its publish.
            sent = time.monotonic()
            await node.until(await arena.publish())
            assert time.monotonic() - sent < AT_ONCE_S
    # One connection all the time: the silence was never long enough to be taken for an end.
    assert node.statuses == ["200"]
    assert node.encodings == ["gzip"]
    assert {heard.verdict for heard in node.heard} == {"ok"}


class Raw:
    """A node that reads bytes off its connection, as many as it is let."""

    def __init__(self, arena: Arena, node: Node) -> None:
        self._at = urlsplit(arena.edge.url)
        self._trust = ssl.create_default_context(cafile=arena.world.ca_file)
        self._node = node

    async def read(self, cursor: str, most: int) -> bytes:
        """Return the first bytes of the body of a stream, without its chunk framing, and cut the connection."""
        reader, writer = await asyncio.open_connection(self._at.hostname, self._at.port, ssl=self._trust)
        # HTTP/1.0 gets the stream without chunks, so that an offset is one of the stream itself.
        writer.write(
            f"GET /v1/nodes/{self._node.node_id}/events HTTP/1.0\r\nHost: edge\r\n"
            f"Authorization: Bearer {self._node.bearer}\r\nLast-Event-ID: {cursor}\r\n\r\n".encode()
        )
        try:
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.0 200"), head
                return await reader.readexactly(most) if most else b""
        finally:
            writer.transport.abort()


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Return the frames that are complete."""
    found = []
    for frame in data.split(b"\n\n")[:-1]:
        fields = dict(line.split(b": ", 1) for line in frame.splitlines() if not line.startswith(b":"))
        if b"data" in fields:
            found.append((int(fields[b"id"]), fields[b"data"]))
    return found


async def test_a_stream_cut_at_every_byte_loses_nothing_after_resume(arena: Arena) -> None:
    node = Raw(arena, arena.story.node_a)
    identifiers = [await arena.publish(number=number) for number in range(3)]
    start = (await arena.broker.find(identifiers[0]))[0] - 1
    async with arena.listen(arena.story.node_b) as heard:
        heard.cursor = str(start)
        await heard.until(await arena.publish(), 5)
    length = 0
    with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
        for length in (200, 400, 800, 1200, 1600):
            whole = await node.read(str(start), length)
    wanted = [sequence for sequence, _ in frames(whole)][:2]
    end = whole.index(b"\n\n", whole.index(b"id: %d\n" % wanted[1])) + 2
    for offset in range(end + 1):
        first = frames(await node.read(str(start), offset))
        cursor = first[-1][0] if first else start
        second = frames(await node.read(str(cursor), end)) if len(first) < len(wanted) else []
        sequences = [sequence for sequence, _ in first + second]
        assert sequences[: len(wanted)] == wanted, offset
