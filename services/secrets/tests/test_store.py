"""Races between replicas on the real backends, and what the schema holds."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from libs.columns import guard_columns
from libs.custody import Secret
from libs.errors import PlexError
from libs.ids import uuid7
from services.secrets.administration import SecretsAdmin
from services.secrets.columns import COLUMNS
from services.secrets.store import PgStore
from services.secrets.tests.fakes import World
from services.secrets.vault import BaoVault

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
WRITERS = 12


def replicas(world: World, pools: Pools, vault: BaoVault) -> list[SecretsAdmin]:
    return [replace(world.admin, store=PgStore(pool), vault=vault) for pool in pools]


async def put(admin: SecretsAdmin, world: World, value: bytes, expected: int) -> str:
    try:
        version = await admin.put(world.operator, world.project, "raced", Secret(value), expected)
    except PlexError as error:
        return error.code
    return str(version)


async def test_of_many_writers_one_wins_each_version(pools: Pools, vault: BaoVault) -> None:
    world = World()
    admins = replicas(world, pools, vault)
    for expected in (0, 1, 2):
        values = [f"value {expected} {writer}".encode() for writer in range(WRITERS)]
        answers = await asyncio.gather(*(put(admins[n % 2], world, v, expected) for n, v in enumerate(values)))
        assert Counter(answers) == {str(expected + 1): 1, "precondition_failed": WRITERS - 1}
        row = await PgStore(pools[0]).find(world.project, "raced")
        assert row is not None
        assert (row.current_version, row.pending_version) == (expected + 1, None)
        winner = values[answers.index(str(expected + 1))]
        assert bytes((await vault.read(row, expected + 1)).reveal()) == winner


async def test_a_write_and_a_destruction_leave_all_or_nothing(pools: Pools, vault: BaoVault) -> None:
    world = World()
    one, other = replicas(world, pools, vault)
    for _ in range(5):
        assert await put(one, world, b"first", 0) == "1"
        before = await PgStore(pools[0]).find(world.project, "raced")
        assert before is not None
        written, _ = await asyncio.gather(
            put(one, world, b"second", 1), other.destroy(world.operator, world.project, "raced")
        )
        assert written in {"2", "precondition_failed"}
        assert await PgStore(pools[0]).find(world.project, "raced") is None
        assert await vault.current_version(before) == 0


async def test_no_value_is_in_the_database(pools: Pools, vault: BaoVault) -> None:
    world = World()
    await put(replicas(world, pools, vault)[0], world, b"planted-value-4711", 0)
    async with pools[0].acquire() as connection:
        rows = await connection.fetch(
            "SELECT s::text AS row FROM secrets.secrets s WHERE project_id = $1", world.project
        )
    assert len(rows) == 1
    assert "planted" not in rows[0]["row"]
    assert Secret(b"planted-value-4711").reveal().hex() not in rows[0]["row"]


async def test_a_note_is_told_once_whoever_tells_it(pools: Pools) -> None:
    world, stores = World(), [PgStore(pool) for pool in pools]
    nodes = [uuid7(), uuid7()]
    note = await stores[0].note(world.row, nodes, "secret_granted")
    assert note not in await stores[1].untold(timedelta(minutes=1))
    assert note in await stores[1].untold(timedelta())
    await asyncio.gather(*(stores[n % 2].tell(note) for n in range(10)))
    assert note not in await stores[0].untold(timedelta())
    sql = "SELECT scope, payload::jsonb->>'reason' AS reason FROM secrets.event_outbox WHERE domain_id = $1"
    rows = await pools[0].fetch(sql, world.domain)
    told = {(f"node:{one}", "secret_granted") for one in nodes}
    assert {(row["scope"], row["reason"]) for row in rows} == told
    assert len(rows) == len(told)


async def test_the_columns_are_the_declared_ones(pools: Pools) -> None:
    await guard_columns(pools[0], "secrets", COLUMNS)
