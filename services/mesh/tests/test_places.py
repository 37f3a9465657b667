"""A place is noted in time or not at all, and who keeps the stream keeps it by a connection that lives."""

import asyncio
import datetime
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from libs.errors import DatastoreUnavailable
from libs.ids import uuid7
from services.mesh.log_store import KEEPER, NOTE, PgLog
from services.mesh.model import Logged

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]


def logged() -> Logged:
    domain, now = uuid7(), datetime.datetime.now(datetime.UTC)
    return Logged(uuid7(), domain, f"domain:{domain}", "rotate_keys", os.urandom(40), now)


@asynccontextmanager
async def taken(pool: asyncpg.Pool, sequence: int) -> AsyncIterator[None]:
    """Hold a place for the block, without committing."""
    async with pool.acquire() as lent:
        held = lent.transaction()
        await held.start()
        await lent.execute("INSERT INTO mesh.event_positions (sequence, id) VALUES ($1, $2)", sequence, uuid7())
        try:
            yield
        finally:
            await held.rollback()


async def test_a_place_is_noted_in_time_or_not_at_all(pools: Pools) -> None:
    log, row, clock = PgLog(pools[0]), logged(), asyncio.get_running_loop().time
    await log.append([row])
    place, began = await log.highest() + 1, clock()
    async with taken(pools[1], place):
        with pytest.raises(DatastoreUnavailable):
            await log.note([(place, row.id)], 0.4)
        assert clock() - began < 1.5
        # Also when whoever asked is gone.
        async with pools[0].acquire() as lent:
            with pytest.raises(asyncpg.QueryCanceledError):
                await lent.execute(NOTE.format(ms=400, places=place, ids=row.id))
        assert clock() - began < 3
        await asyncio.sleep(began + 3 - clock())
    await asyncio.sleep(0.5)
    assert (await log.find([row.id]))[row.id].sequence is None
    await log.note([(place, row.id)], 2)


async def test_the_wait_for_a_connection_counts(pools: Pools) -> None:
    log, row = PgLog(pools[0]), logged()
    await log.append([row])
    place = await log.highest() + 1
    async with AsyncExitStack() as lent:
        for _ in range(pools[0].get_max_size()):
            await lent.enter_async_context(pools[0].acquire())
        async with asyncio.timeout(5):
            with pytest.raises(DatastoreUnavailable):
                await log.note([(place, row.id)], 0.4)


async def test_who_loses_its_connection_loses_the_lead(pools: Pools) -> None:
    one, other = PgLog(pools[0]), PgLog(pools[1])
    sql = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = hashtext($1)::oid"

    async def lose() -> None:
        async with one.leading() as leads:
            assert await leads()
            await pools[1].execute("SELECT pg_terminate_backend($1, 5000)", await pools[1].fetchval(sql, KEEPER))
            async with other.leading() as follows:
                assert await follows()
            await leads()

    with pytest.raises(DatastoreUnavailable):
        await lose()
