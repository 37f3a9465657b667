"""F-1: an event commits with its cause; whoever is killed between commit and publish, it arrives once and in order."""

import asyncio
import time
import uuid

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e


async def waiting(arena: Arena, schema: str) -> int:
    dba = await arena.world.superuser()
    try:
        return int(await dba.fetchval(f"SELECT count(*) FROM {schema}.event_outbox WHERE refused_code = ''"))
    finally:
        await dba.close()


@pytest.mark.parametrize("victim", ["identity", "mesh"])
async def test_a_registration_is_announced_whoever_dies_in_between(arena: Arena, scene: Scene, victim: str) -> None:
    async with arena.listen() as listener:
        # A node without a cursor begins now, whatever it missed.
        await listener.until(await arena.publish())
        # Without the broker nothing is published, so the event waits between commit and publish.
        await arena.world.kill("nats")
        newcomers = [await scene.newcomer(f"{victim}-{number}-{uuid.uuid4().hex[:6]}") for number in range(3)]
        assert await waiting(arena, "identity") >= 3
        await arena.world.kill(victim)
        await arena.world.start("nats")
        await arena.world.start(victim)

        async def emptied() -> bool:
            return await waiting(arena, "identity") == 0

        await eventually(emptied, 30)
        wanted = [node.node_id for node in newcomers]

        async def heard() -> bool:
            return set(wanted) <= {one.envelope["payload"].get("peer", {}).get("node_id") for one in listener.heard}

        await eventually(heard, 30)
    told = [
        one.envelope["payload"]["peer"]["node_id"] for one in listener.heard if one.envelope["type"] == "peer_added"
    ]
    assert [node_id for node_id in told if node_id in wanted] == wanted
    assert len(listener.ids) == len(listener.heard)


async def test_a_kill_at_any_moment_of_a_publish_loses_nothing_and_repeats_nothing(arena: Arena) -> None:
    """Rows go into identity's outbox while mesh is killed again and again."""
    dba = await arena.world.superuser()
    ids: list[str] = []

    async def fill() -> None:
        for number in range(120):
            identifier = str(uuid.UUID(int=uuid7_now() | number))
            ids.append(identifier)
            await dba.execute(
                "INSERT INTO identity.event_outbox (id, domain_id, type, scope, payload, created_at) "
                "VALUES ($1, $2, 'action_request', $3, $4, now())",
                identifier,
                arena.domain,
                arena.scope,
                f'{{"number": {number}}}',
            )
            await asyncio.sleep(0.05)

    async with arena.listen() as listener:
        await listener.until(await arena.publish())
        filling = asyncio.create_task(fill())
        for _ in range(3):
            await asyncio.sleep(1)
            await arena.world.restart("mesh")
        await filling

        async def all_told() -> bool:
            return set(ids) <= set(listener.ids)

        await eventually(all_told, 40)
    await dba.close()
    mine = set(ids)
    assert [identifier for identifier in listener.ids if identifier in mine] == ids
    assert len(listener.ids) == len(listener.heard)


def uuid7_now() -> int:

    return (time.time_ns() // 1_000_000) << 80 | 7 << 76 | 2 << 62 | (uuid.uuid4().int & ((1 << 40) - 1)) << 16
