"""F-1: whom a change of a secret concerns hears of it, and nobody else; also when the service dies in the middle."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener
from tests.e2e.outside import Node
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e


class Secret:
    """A secret of its own, and what its operator does to it."""

    def __init__(self, arena: Arena) -> None:
        self.operator = arena.operator
        self.path = f"/v1/projects/{arena.story.project_id}/secrets/s{uuid.uuid4().hex[:12]}"
        self.version = 0

    async def put(self) -> None:
        headers = {"If-Match": str(self.version), "Content-Type": "application/octet-stream"}
        answer = await self.operator.call("PUT", self.path, b"value", headers=headers)
        assert answer.status in {200, 201}, answer.body
        self.version += 1

    async def do(self, method: str, tail: str) -> None:
        answer = await self.operator.call(method, self.path + tail)
        assert answer.status == 204, answer.body


def told(node: Listener) -> list[str]:
    """Return why a node was told to fetch its state."""
    return [
        one.envelope["payload"]["reason"]
        for one in node.heard
        if one.envelope["type"] == "node_state_updated" and one.envelope["scope"] == f"node:{node.node.node_id}"
    ]


@contextlib.asynccontextmanager
async def untold(arena: Arena) -> AsyncIterator[None]:
    """For the block, changes are made and the events that tell of them cannot be put into the outbox."""
    lock = await arena.world.superuser()
    try:
        await lock.execute("BEGIN")
        await lock.execute("LOCK TABLE secrets.event_outbox IN SHARE MODE")
        yield
    finally:
        await lock.close()


async def killed(arena: Arena) -> None:
    """Kill the service when it is about to tell, and let a minute pass: then nobody can be at it any more."""
    dba = await arena.world.superuser()
    sql = (
        "SELECT pid FROM pg_stat_activity WHERE usename = 'secrets' AND query LIKE '%INSERT INTO secrets.event_outbox%'"
    )
    found: list[int] = []

    async def telling() -> bool:
        found[:] = [row["pid"] for row in await dba.fetch(sql + " AND wait_event_type = 'Lock'")]
        return bool(found)

    await eventually(telling)
    await arena.world.kill("secrets")
    for pid in found:
        await dba.execute("SELECT pg_terminate_backend($1, 5000)", pid)
    await dba.execute("UPDATE secrets.untold SET noted_at = noted_at - interval '1 minute'")
    await dba.close()


async def test_a_secrets_readers_hear_of_each_change(arena: Arena, scene: Scene) -> None:
    reader, other = [await scene.newcomer(f"reader-{uuid.uuid4().hex[:8]}") for _ in range(2)]
    secret = Secret(arena)
    await secret.put()
    async with arena.listen(reader) as node, arena.listen(other) as stranger:
        await node.until(await arena.publish())
        await secret.do("PUT", f"/readers/{reader.node_id}")
        await secret.put()
        await secret.do("DELETE", "/versions/1")
        await secret.do("DELETE", f"/readers/{reader.node_id}")
        await secret.put()
        await secret.do("PUT", f"/readers/{reader.node_id}")
        await secret.do("DELETE", "")
        wanted = ["granted", "updated", "destroyed", "revoked", "granted", "destroyed"]

        async def all_told() -> bool:
            return len(told(node)) >= len(wanted)

        await eventually(all_told)
        last = await arena.publish()
        for listener in (node, stranger):
            await listener.until(last)
    assert told(node) == [f"secret_{what}" for what in wanted]
    assert told(stranger) == []
    assert {one.verdict for one in node.heard} == {"ok"}


@pytest.mark.parametrize(
    ("method", "tail", "reason"),
    [
        ("PUT", "/readers/{node}", "secret_granted"),
        ("DELETE", "/readers/{node}", "secret_revoked"),
        ("DELETE", "/versions/1", "secret_destroyed"),
    ],
)
async def test_a_change_whose_service_dies_before_it_tells_is_told_of_after_all(
    arena: Arena, scene: Scene, method: str, tail: str, reason: str
) -> None:
    reader: Node = await scene.newcomer(f"crash-{uuid.uuid4().hex[:8]}")
    secret = Secret(arena)
    await secret.put()
    async with arena.listen(reader) as node:
        await node.until(await arena.publish())
        if reason != "secret_granted":
            await secret.do("PUT", f"/readers/{reader.node_id}")
            await node.hears("node_state_updated")
        before = len(told(node))
        async with untold(arena):
            changing = asyncio.create_task(arena.operator.call(method, secret.path + tail.format(node=reader.node_id)))
            await killed(arena)
        assert (await changing).status == 503
        await arena.world.start("secrets")

        async def heard() -> bool:
            return len(told(node)) > before

        await eventually(heard, 60)
        await node.until(await arena.publish())
    assert told(node)[before:] == [reason]
