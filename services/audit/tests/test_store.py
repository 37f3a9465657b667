"""Two replicas, lost connections and hostile hands on the real PostgreSQL."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from libs.columns import guard_columns
from libs.custody import Secret
from libs.errors import AuditUnavailable, DatastoreUnavailable
from libs.pg import check_durable
from services.audit.columns import COLUMNS
from services.audit.entry import draft
from services.audit.model import Draft, Filter
from services.audit.store import PgStore
from services.audit.tests.fakes import FakeChains, trusting
from services.audit.tests.test_service import decision
from services.audit.writer import LONGEST_QUEUE, GroupWriter

pytestmark = pytest.mark.integration

PEPPER = Secret(b"p" * 32)


def entry(chain: str, key: uuid.UUID | None = None) -> Draft:
    return draft(decision(chain=chain, idempotency_key=key or uuid.uuid4()), PEPPER)


@contextlib.asynccontextmanager
async def running(writer: GroupWriter) -> AsyncIterator[GroupWriter]:
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def whole(store: PgStore, chain: str) -> list[int]:
    """Return the sequences of a chain, each row linked to the one before it."""
    before, seen = bytes(32), []
    async for row in store.walk(chain, 1, 2**60):
        assert row.prev_hash == before
        before = row.entry_hash
        seen.append(row.seq)
    assert (await store.head(chain)).entry_hash == before
    return seen


async def test_it_runs_on_the_declared_schema_and_a_durable_server(pool: asyncpg.Pool) -> None:
    await guard_columns(pool, "audit", COLUMNS)
    await check_durable(pool)


async def test_two_replicas_append_to_the_same_chains_without_gap_or_fork(pool: asyncpg.Pool) -> None:
    chains = [str(uuid.uuid4()) for _ in range(3)]
    async with running(GroupWriter(pool, trusting(pool))) as one, running(GroupWriter(pool, trusting(pool))) as other:
        appends = [writer.append(entry(chain)) for writer in (one, other) for chain in chains for _ in range(100)]
        answered = await asyncio.gather(*appends)
    for number, chain in enumerate(chains):
        assert await whole(PgStore(pool), chain) == list(range(1, 201))
        mine = answered[number * 100 : number * 100 + 100] + answered[300 + number * 100 : 400 + number * 100]
        assert sorted(mine) == list(range(1, 201))


async def test_one_key_is_one_row_within_a_batch_and_across_replicas(pool: asyncpg.Pool) -> None:
    chain, key = str(uuid.uuid4()), uuid.uuid4()
    async with running(GroupWriter(pool, trusting(pool))) as one, running(GroupWriter(pool, trusting(pool))) as other:
        seqs = await asyncio.gather(*(writer.append(entry(chain, key)) for writer in (one, other) for _ in range(20)))
        assert set(seqs) == {1}
        assert await one.append(entry(chain)) == 2
    assert await whole(PgStore(pool), chain) == [1, 2]


async def test_a_lost_connection_fails_its_callers_and_the_next_append_works(pool: asyncpg.Pool) -> None:
    chain = str(uuid.uuid4())
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        await writer.append(entry(chain))
        async with pool.acquire() as blocker:
            await blocker.execute("BEGIN")
            await blocker.execute("SELECT 1 FROM audit.chains WHERE chain = $1 FOR UPDATE", chain)
            waiting = [asyncio.create_task(writer.append(entry(chain))) for _ in range(5)]
            await asyncio.sleep(0.2)
            # A DBA ends the writer's connection while it waits for the head.
            await blocker.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'audit' "
                "AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"
            )
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            await blocker.execute("ROLLBACK")
        assert all(isinstance(answer, (AuditUnavailable, DatastoreUnavailable)) for answer in answers)
        assert await writer.append(entry(chain)) == 2
    assert await whole(PgStore(pool), chain) == [1, 2]


async def test_who_is_durable_is_told_though_the_next_batch_waits(pool: asyncpg.Pool) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    lock = "SELECT 1 FROM audit.chains WHERE chain = $1 FOR UPDATE"
    async with running(GroupWriter(pool, trusting(pool))) as writer, pool.acquire() as one, pool.acquire() as other:
        await asyncio.gather(writer.append(entry(first)), writer.append(entry(second)))
        async with other.transaction():
            await other.fetch(lock, second)
            async with one.transaction():
                await one.fetch(lock, first)
                mine = asyncio.create_task(writer.append(entry(first)))
                await asyncio.sleep(0.2)
                theirs = asyncio.create_task(writer.append(entry(second)))
                await asyncio.sleep(0)
            # The other's head is held, so that its batch is not under way.
            assert await asyncio.wait_for(mine, 1) == 2
            assert not theirs.done()
        assert await theirs == 2


async def test_a_full_queue_refuses_at_once(pool: asyncpg.Pool) -> None:
    writer = GroupWriter(pool, trusting(pool))  # nobody runs it
    waiting = [asyncio.create_task(writer.append(entry("x"))) for _ in range(LONGEST_QUEUE)]
    await asyncio.sleep(0)
    with pytest.raises(AuditUnavailable):
        await writer.append(entry("x"))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("real", [False, True])
async def test_fake_and_real_keep_the_same_promises(pool: asyncpg.Pool, real: bool) -> None:  # noqa: FBT001 — a parameter
    chain, fake = str(uuid.uuid4()), FakeChains()
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        appender, store = (writer, PgStore(pool)) if real else (fake, fake)
        drafts = [entry(chain) for _ in range(5)]
        assert [await appender.append(one) for one in drafts] == [1, 2, 3, 4, 5]
        assert await appender.append(drafts[2]) == 3
        assert [row.seq for row in await store.page(chain, Filter(), 4, 2)] == [3, 2]
        assert [row.seq async for row in store.walk(chain, 2, 4)] == [2, 3, 4]
        assert await store.get(chain, 9) is None
        row = await store.get(chain, 1)
        assert row is not None
        assert row.subject_id == decision().subject_id
        first = decision().occurred_at
        assert await store.erase(chain, [row.pseudonym], first) == first
        assert await store.erase(chain, [row.pseudonym], first.replace(year=2030)) == first
        erased = await store.get(chain, 1)
        assert erased is not None
        assert (erased.subject_id, erased.salt) == ("", None)
        assert (await store.head(chain)).seq == 5
