"""What is streamed from the real PostgreSQL: whole pieces, constant memory, and nothing held while a reader waits."""

import asyncio
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from libs.chain import GENESIS
from libs.clock import SystemClock
from libs.cursor import Cursors
from libs.custody import Secret
from services.audit.checkpoints import Checkpoints
from services.audit.model import Piece, Progress, Stored, Verdict
from services.audit.proofs import Proofs
from services.audit.service import Audit
from services.audit.store import PgStore
from services.audit.tests.fakes import FakeAnchors, FakePeppers, FakeRelations, FakeSigner, trusting
from services.audit.tests.test_service import AUDITOR, decision
from services.audit.tests.test_store import running
from services.audit.tree_store import PgTrees
from services.audit.verification import PIECE, Verification, pieces
from services.audit.writer import GroupWriter

pytestmark = pytest.mark.integration

OPEN = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'audit' AND state LIKE 'idle in transaction%'"


@asynccontextmanager
async def serving(pool: asyncpg.Pool, chain: str) -> AsyncIterator[Audit]:
    """The rules on the real store, with an anchor of a test's own."""
    store, clock = PgStore(pool), SystemClock()
    checkpoints = Checkpoints("log", store, PgTrees(pool), FakeAnchors(), FakeSigner(), clock)
    relations = FakeRelations({("audit", f"domain:{chain}")})
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        cursors = Cursors(Secret(b"k" * 32))
        yield Audit(writer, store, FakePeppers(), relations, Proofs(checkpoints), cursors, clock)


async def filled(audit: Audit, chain: str, count: int) -> None:
    # No more at once than the queue takes.
    for begin in range(0, count, PIECE):
        wanted = range(min(PIECE, count - begin))
        await asyncio.gather(*(audit.append(decision(chain=chain, idempotency_key=uuid.uuid4())) for _ in wanted))


async def test_an_export_is_of_what_was_there_when_it_began(pool: asyncpg.Pool) -> None:
    chain = str(uuid.uuid4())
    async with serving(pool, chain) as audit:
        await filled(audit, chain, PIECE + 3)
        await audit.proofs.checkpoints.turn(chain)
        found = await audit.export(AUDITOR, chain, 0, 0)
        await filled(audit, chain, 5)
        before, seen = GENESIS, []
        async for rows in found.pieces:
            assert len(rows) <= PIECE
            for row in rows:
                assert row.prev_hash == before
                before = row.entry_hash
                seen.append(row.seq)
        assert seen == list(range(1, PIECE + 4))
        assert found.checkpoint is not None
        assert found.checkpoint.signed.size == found.last == PIECE + 3
        recorded = await audit.store.get(chain, found.last + 1)
        assert recorded is not None
        assert recorded.context["action"] == ["audit.export"]
        part = await audit.export(AUDITOR, chain, 4, 7)
        assert [row.seq async for rows in part.pieces for row in rows] == [4, 5, 6, 7]
        beyond = await audit.export(AUDITOR, chain, 10_000, 0)
        assert [rows async for rows in beyond.pieces] == []


async def test_nothing_is_held_while_a_reader_takes_its_time(pool: asyncpg.Pool) -> None:
    chain = str(uuid.uuid4())
    async with serving(pool, chain) as audit:
        await filled(audit, chain, PIECE + 1)
        pieces = (await audit.export(AUDITOR, chain, 0, 0)).pieces
        await anext(pieces)
        steps = audit.verify_stream(AUDITOR, chain, 0, 0)
        assert [await anext(steps), await anext(steps)] == [Progress(0, PIECE + 2), Progress(PIECE, PIECE + 2)]
        assert await pool.fetchval(OPEN) == 0
        assert len(await anext(pieces)) == 1
        assert [one async for one in steps][-1] == Verdict(1, PIECE + 2)


async def test_memory_is_that_of_a_piece_however_long_the_chain_is(pool: asyncpg.Pool) -> None:
    peaks = []
    for count in (2 * PIECE, 12 * PIECE):
        chain = str(uuid.uuid4())
        async with serving(pool, chain) as audit:
            await filled(audit, chain, count)
            tracemalloc.start()
            try:
                assert sum([len(rows) async for rows in pieces(audit.store, chain, 1, count)]) == count
                verification = Verification(audit.store, audit.proofs)
                steps = verification.run(chain, None, 1, count, await audit.store.head(chain))
                assert [one async for one in steps if isinstance(one, Verdict)] == [Verdict(1, count)]
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks


async def test_a_chain_that_lacks_a_whole_piece_ends_there(pool: asyncpg.Pool) -> None:
    chain = str(uuid.uuid4())

    class Holed(PgStore):
        def walk(self, chain: str, first: int, last: int) -> AsyncIterator[Stored]:
            return super().walk(chain, first, last if first == 1 else first - 1)

        async def piece(self, chain: str, first: int, last: int) -> Piece:
            return await super().piece(chain, first, last if first == 1 else first - 1)

    async with serving(pool, chain) as audit:
        await filled(audit, chain, 3 * PIECE)
        holed = replace(audit, store=Holed(pool))
        assert [len(rows) async for rows in (await holed.export(AUDITOR, chain, 0, 0)).pieces] == [PIECE]
        assert (await holed.verify(AUDITOR, chain, 0, 0)).divergent_seq == PIECE + 1
