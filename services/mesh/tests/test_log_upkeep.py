"""The log is kept up within the service's own time-out, whatever is past keeping and whoever is in the way."""

import asyncio
import datetime
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from devstack.layout import State
from libs.errors import DatastoreUnavailable
from libs.ids import uuid7
from libs.migrations import Migrate, migrate
from libs.pg import create_pool
from libs.settings import load
from services.mesh.log_store import PgLog
from services.mesh.settings import MeshSettings
from services.mesh.tests.test_ports import logged

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
PLACES = 300_000
# What a slower disk would make of the service's two seconds.
TIMEOUT_S = 0.5


@pytest.fixture
async def dba(backends: State) -> AsyncIterator[Any]:
    opened = await asyncpg.connect(backends.superuser_url)
    yield opened
    await opened.close()


@pytest.fixture
async def log(settings: MeshSettings) -> AsyncIterator[PgLog]:
    hurried = settings.postgres.model_copy(update={"timeout_s": TIMEOUT_S})
    async with create_pool(hurried, settings.tls) as pool:
        yield PgLog(pool)


def day(days: int) -> str:
    return f"event_log_{datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days):%Y%m%d}"


async def tables(dba: Any) -> set[str]:
    rows = await dba.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'mesh.event_log'::regclass"
    )
    return {row["relname"] for row in rows}


async def add_old_day(dba: Any) -> str:
    """Add the partition of a day that is past keeping, as it would be there after a missed run."""
    first, last = [
        await dba.fetchval("SELECT mesh.first_id(now() - $1::interval)", datetime.timedelta(days=days))
        for days in (9, 8.9)
    ]
    await dba.execute(
        f"CREATE TABLE mesh.{day(-9)} PARTITION OF mesh.event_log FOR VALUES FROM ('{first}') TO ('{last}')"
    )
    return day(-9)


async def test_partitions_are_made_ahead_and_dropped_when_past_keeping(pools: Pools, dba: Any) -> None:
    old = await add_old_day(dba)
    await asyncio.gather(*(PgLog(pool).roll() for pool in pools))
    assert old not in await tables(dba)
    assert {day(days) for days in range(-1, 3)} <= await tables(dba)


async def test_places_past_keeping_go_however_many_and_the_newest_stays(log: PgLog, dba: Any) -> None:
    before = await log.highest()
    try:
        await dba.execute(
            "INSERT INTO mesh.event_positions (sequence, id, noted_at) "
            "SELECT n, gen_random_uuid(), now() - interval '10 days' FROM generate_series($1::bigint + 1, $1 + $2) n",
            before, PLACES,
        )  # fmt: skip
        await log.roll()
        old = "SELECT count(*) FROM mesh.event_positions WHERE noted_at < now() - interval '9 days'"
        assert (await dba.fetchval(old), await log.highest()) == (1, before + PLACES)
    finally:
        # The broker's stream stands far below.
        await dba.execute("DELETE FROM mesh.event_positions WHERE sequence > $1", before)


async def test_the_next_days_are_there_when_nothing_can_be_let_go(log: PgLog, dba: Any) -> None:
    await dba.execute(f"DROP TABLE IF EXISTS mesh.{day(2)}")
    async with dba.transaction():
        await dba.execute("LOCK TABLE mesh.event_positions IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatastoreUnavailable):
            await log.roll()
    assert day(2) in await tables(dba)


async def test_appends_go_on_while_the_log_is_kept_up_beside_a_long_one(pools: Pools, dba: Any) -> None:
    log, old = PgLog(pools[1]), await add_old_day(dba)
    await dba.execute(f"DROP TABLE IF EXISTS mesh.{day(2)}")
    async with dba.transaction():
        # An append that takes its time.
        await dba.execute("LOCK TABLE mesh.event_log IN ROW EXCLUSIVE MODE")
        rolling, longest = asyncio.create_task(log.roll()), 0.0
        while not rolling.done():
            began = time.monotonic()
            await PgLog(pools[0]).append([logged(uuid7())])
            longest = max(longest, time.monotonic() - began)
        with pytest.raises(DatastoreUnavailable):
            await rolling
        assert longest < 1
    assert {old, day(2)} <= await tables(dba)
    await log.roll()
    assert old not in await tables(dba)


async def test_a_downgrade_is_refused_and_changes_nothing(backends: State, log: PgLog) -> None:
    with pytest.raises(asyncpg.FeatureNotSupportedError):
        await migrate(load(backends / "config/migrate.toml", Migrate), ["mesh"], "0003")
    await log.roll()
