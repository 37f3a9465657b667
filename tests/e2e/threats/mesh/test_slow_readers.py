"""F-1: a node that stops reading in the middle of what it missed is ended like any other, and gets nothing more."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from libs.ids import uuid7
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.e2e.attacker import peer
from tests.e2e.conftest import Scene
from tests.e2e.outside import Node
from tests.e2e.threats.mesh.conftest import Arena
from tests.e2e.threats.mesh.test_streams import delete_resource_of

pytestmark = pytest.mark.e2e

# More than all buffers between the two take.
EVENTS, SIZE = 250, 55_000


async def much(arena: Arena) -> tuple[str, int]:
    """Publish much for the whole Domain; returns the cursor before it, and how many bytes it is."""
    first = (await arena.broker.find(await arena.publish()))[0]
    async with peer(arena.world, "mesh", "identity") as mesh:
        for _ in range(EVENTS):
            await mesh_pb2_grpc.PublishServiceStub(mesh).Publish(
                mesh_pb2.PublishRequest(
                    domain_id=arena.domain,
                    id=str(uuid7()),
                    type="action_request",
                    scope=arena.scope,
                    payload_json=json.dumps({"a": "x" * SIZE}),
                )
            )
    return str(first), EVENTS * SIZE


@dataclass
class Parked:
    """A node's connection on which nothing is read but the status."""

    reader: asyncio.StreamReader

    async def rest(self) -> bytes:
        """Read all that still comes until the connection ends."""
        found = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            async with asyncio.timeout(20):
                while part := await self.reader.read(65_536):
                    found += part
        return found


@contextlib.asynccontextmanager
async def parked(arena: Arena, node: Node, cursor: str) -> AsyncIterator[Parked]:
    """Resume a stream and stop reading."""
    url = urlsplit(arena.edge.url)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (str(url.hostname), int(url.port or 443)))
    context = ssl.create_default_context(cafile=arena.world.ca_file)
    reader, writer = await asyncio.open_connection(sock=raw, ssl=context, server_hostname=url.hostname, limit=1024)
    lines = (
        f"GET /v1/nodes/{node.node_id}/events HTTP/1.1",
        f"Host: {url.netloc}",
        f"Authorization: Bearer {node.bearer}",
        f"Last-Event-ID: {cursor}",
    )
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    assert b" 200 " in await reader.readline()
    # Meanwhile everything that fits anywhere is on its way.
    await asyncio.sleep(1)
    try:
        yield Parked(reader)
    finally:
        writer.transport.abort()


async def test_a_node_that_is_revoked_while_it_does_not_read_gets_nothing_of_what_comes_after(
    arena: Arena, scene: Scene
) -> None:
    node = await scene.newcomer("does-not-read")
    cursor, size = await much(arena)
    async with parked(arena, node, cursor) as stalled, arena.listen() as other:
        await delete_resource_of(arena, "does-not-read")
        await other.hears("peer_removed")
        after = [await arena.publish() for _ in range(3)]
        await other.until(after[-1])
        got = await stalled.rest()
    assert b"event: action_request" in got
    assert not any(identifier.encode() in got for identifier in after)
    # What had not left the gateway by then did not leave it.
    assert len(got) < size


async def test_a_second_stream_of_a_node_ends_one_that_does_not_read(arena: Arena) -> None:
    cursor, size = await much(arena)
    async with parked(arena, arena.story.node_a, cursor) as stalled, arena.listen() as second:
        await second.until(await arena.publish())
        got = await stalled.rest()
    assert len(got) < size


async def test_a_node_that_reads_again_gets_all_that_it_missed_in_order(arena: Arena) -> None:
    cursor, _ = await much(arena)
    node = arena.listen(arena.story.node_b)
    node.cursor = cursor
    async with node:
        last = await arena.publish()
        await node.until(last)
    assert len(node.ids) == len(node.heard) >= EVENTS
    assert [one.sequence for one in node.heard] == sorted(one.sequence for one in node.heard)
    assert {one.verdict for one in node.heard} == {"ok"}
