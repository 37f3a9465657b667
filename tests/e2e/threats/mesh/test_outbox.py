"""F-1: an event commits with its cause; whoever is killed between commit and publish, it arrives once and in order."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.freeze import frozen
from tests.e2e.stories.main_job import SECRET_NAME
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e


async def register(_: Arena, scene: Scene) -> None:
    """Identity announces three nodes to the Domain."""
    for _turn in range(3):
        await scene.newcomer(f"newcomer-{uuid.uuid4().hex[:8]}")


async def change_secret(arena: Arena, scene: Scene) -> None:
    """Secrets tells the one reader of three versions."""
    for _turn in range(3):
        page = await arena.operator.call("GET", f"/v1/projects/{arena.story.project_id}/secrets")
        version = next(row["current_version"] for row in page.json["items"] if row["name"] == SECRET_NAME)
        headers = {"If-Match": str(version), "Content-Type": "application/octet-stream"}
        put = await arena.operator.call("PUT", scene.secret_path, arena.story.value, headers=headers)
        assert put.status in {200, 201}, put.body


OWNERS: dict[str, Callable[[Arena, Scene], Awaitable[None]]] = {"identity": register, "secrets": change_secret}


@asynccontextmanager
async def dead(arena: Arena, name: str) -> AsyncIterator[None]:
    """SIGKILL a process for the block."""
    await arena.world.kill(name)
    try:
        yield
    finally:
        await arena.world.start(name)


async def waiting(dba: asyncpg.Connection, owner: str) -> list[str]:
    """Return the ids in an owner's outbox in their order; they are those of the envelopes."""
    sql = f"SELECT id FROM {owner}.event_outbox WHERE refused_code = '' ORDER BY position"
    return [str(row["id"]) for row in await dba.fetch(sql)]


@dataclass
class Case:
    """Three events of one owner, each of which must be heard once and in order, whatever happens to them."""

    arena: Arena
    scene: Scene
    dba: asyncpg.Connection
    owner: str
    before: int
    wanted: list[str]

    async def cause(self) -> None:
        """Let the owner commit its events, while something keeps them from being published."""
        await OWNERS[self.owner](self.arena, self.scene)
        self.wanted = await waiting(self.dba, self.owner)
        assert len(self.wanted) == 3

    async def stands(self) -> tuple[bool, bool, bool]:
        """Say of the first event whether it is in the log, in the stream, and whether its place is noted."""
        first = self.wanted[0]
        logged = await self.dba.fetchval("SELECT count(*) FROM mesh.event_log WHERE id = $1", UUID(first))
        placed = await self.dba.fetchval("SELECT count(*) FROM mesh.event_positions WHERE id = $1", UUID(first))
        broker = self.arena.broker
        messages = [await broker.get(place) for place in range(self.before + 1, await broker.last() + 1)]
        return bool(logged), any(first.encode() in data for _, data in messages), bool(placed)

    async def caught(self, user: str, statement: str) -> list[int]:
        """Wait until a process has just begun to wait for a lock; returns its connections."""
        sql = """
        SELECT pid FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%' || $2 || '%'
        AND wait_event_type = 'Lock' AND clock_timestamp() - query_start < interval '0.2 s'
        """
        async with asyncio.timeout(30):
            while not (rows := await self.dba.fetch(sql, user, statement)):  # noqa: ASYNC110 — it is another process
                await asyncio.sleep(0.02)
        return [row["pid"] for row in rows]

    async def forget(self, pids: list[int]) -> None:
        """End the connections of who was killed: left alone, the database would finish what it was asked for."""
        for pid in pids:
            await self.dba.execute("SELECT pg_terminate_backend($1, 5000)", pid)

    async def settled(self, pids: list[int]) -> None:
        """Wait until connections are gone."""

        async def over() -> bool:
            return not await self.dba.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1)", pids)

        await eventually(over)

    async def hold(self, *statements: str) -> asyncpg.Connection:
        """Do something as the database's superuser that is undone when the connection is closed."""
        opened = await self.arena.world.superuser()
        await opened.execute("BEGIN")
        for statement in statements:
            await opened.execute(statement)
        return opened

    async def hold_log(self) -> asyncpg.Connection:
        """Let nobody write to the log: its parts are locked, as the whole would stop also who prepares a statement."""
        sql = "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'mesh.event_log'::regclass"
        parts = [row["name"] for row in await self.dba.fetch(sql)]
        return await self.hold(*(f"LOCK TABLE {part} IN SHARE ROW EXCLUSIVE MODE" for part in parts))

    async def hold_places(self) -> asyncpg.Connection:
        """Let nobody note a place: the next ones are taken, by who will not commit."""
        taken = f"SELECT {self.before} + turn, gen_random_uuid() FROM generate_series(1, 100) turn"
        return await self.hold(f"INSERT INTO mesh.event_positions (sequence, id) {taken}")


@asynccontextmanager
async def unwatched(dba: asyncpg.Connection) -> AsyncIterator[None]:
    """Let the database not look for the block whether who asked is still there: it would undo what it may finish."""
    await dba.execute("ALTER SYSTEM SET client_connection_check_interval = 0")
    await dba.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await dba.execute("ALTER SYSTEM RESET client_connection_check_interval")
        await dba.execute("SELECT pg_reload_conf()")


@asynccontextmanager
async def told(arena: Arena, scene: Scene, owner: str) -> AsyncIterator[Case]:
    """Listen for the block, and then for as long as the events need; each has one place, and is heard once."""
    dba = await arena.world.superuser()

    async def emptied() -> bool:
        return await waiting(dba, owner) == []

    try:
        async with arena.listen() as listener:
            # A node without a cursor begins now, whatever it missed.
            await listener.until(await arena.publish())
            await eventually(emptied)
            case = Case(arena, scene, dba, owner, await arena.broker.last(), [])
            yield case
            await eventually(emptied)
            for identifier in case.wanted:
                await listener.until(identifier)
            await listener.until(await arena.publish())
        assert [identifier for identifier in listener.ids if identifier in case.wanted] == case.wanted
        assert len(listener.ids) == len(listener.heard)
        places = "SELECT count(*) FROM mesh.event_positions WHERE id = ANY ($1::uuid[])"
        assert await dba.fetchval(places, case.wanted) == len(case.wanted)
    finally:
        await dba.close()


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("victim", ["owner", "mesh"])
async def test_who_dies_between_commit_and_publish(arena: Arena, scene: Scene, owner: str, victim: str) -> None:
    # Without the broker nothing is published, so the events wait between commit and publish.
    async with told(arena, scene, owner) as case, dead(arena, "nats"):
        await case.cause()
        async with dead(arena, owner if victim == "owner" else "mesh"):
            await arena.world.start("nats")


@dataclass(frozen=True)
class Point:
    """Where mesh is killed: at a statement that waits, which the database then finishes without it, or not."""

    hold: Callable[[Case], Awaitable[asyncpg.Connection]]
    statement: str
    finishes: bool
    # In the log, in the stream, with a place.
    stands: tuple[bool, bool, bool]


LOG, PLACE = "INSERT INTO mesh.event_log", "INSERT INTO mesh.event_positions"
POINTS = {
    "before the log": Point(Case.hold_log, LOG, finishes=False, stands=(False, False, False)),
    "between log and stream": Point(Case.hold_log, LOG, finishes=True, stands=(True, False, False)),
    "between stream and place": Point(Case.hold_places, PLACE, finishes=False, stands=(True, True, False)),
    "between place and answer": Point(Case.hold_places, PLACE, finishes=True, stands=(True, True, True)),
}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("point", POINTS)
async def test_mesh_dies_in_the_middle_of_a_publish(arena: Arena, scene: Scene, owner: str, point: str) -> None:
    at = POINTS[point]
    async with told(arena, scene, owner) as case, unwatched(case.dba):
        held = await at.hold(case)
        await case.cause()
        connections = await case.caught("mesh", at.statement)
        async with dead(arena, "mesh"):
            if not at.finishes:
                await case.forget(connections)
            await held.close()
            await case.settled(connections)
            assert await case.stands() == at.stands


@pytest.mark.parametrize("owner", OWNERS)
async def test_mesh_dies_before_the_broker_acknowledges(arena: Arena, scene: Scene, owner: str) -> None:
    async with told(arena, scene, owner) as case:
        async with frozen(arena.world, "nats"):
            await case.cause()
            logged = "SELECT count(*) FROM mesh.event_log WHERE id = $1"

            async def sent() -> bool:
                return bool(await case.dba.fetchval(logged, UUID(case.wanted[0])))

            await eventually(sent)
            await arena.world.kill("mesh")
        await arena.world.start("mesh")


@pytest.mark.parametrize("owner", OWNERS)
async def test_places_that_are_noted_later_than_gateways_wait_lose_nothing(
    arena: Arena, scene: Scene, owner: str
) -> None:
    async with told(arena, scene, owner) as case:
        held = await case.hold_places()
        await case.cause()
        await asyncio.sleep(3)
        await held.close()


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("victim", ["owner", "mesh"])
async def test_who_dies_between_answer_and_delete(arena: Arena, scene: Scene, owner: str, victim: str) -> None:
    async with told(arena, scene, owner) as case:
        places = await case.hold_places()
        await case.cause()
        rows = await case.hold(f"SELECT FROM {owner}.event_outbox FOR UPDATE")
        await places.close()
        connections = await case.caught(owner, f"DELETE FROM {owner}.event_outbox")
        assert await case.stands() == (True, True, True)
        async with dead(arena, owner if victim == "owner" else "mesh"):
            if victim == "owner":
                await case.forget(connections)
            await rows.close()


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
