"""The store's chained appends, against a raw group commit of the same rows without a chain.

The raw side inserts what ours would have written, made beforehand: the same columns of the same three tables, personal
record and idempotency key included, under the same CHECKs, keys and indexes. It commits
in the same way, one writer that takes what came meanwhile as its next batch, by one statement. It looks up no key and
locks no head, and hashes and canonicalises nothing. Ours begins with the decision: pseudonym, commitment, canonical
bytes and hashes are its own work.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg

from bench.chains import decision
from bench.measure import Bar, Check, Figures, Report, alternate, column
from libs.audit import DEADLINE_S
from libs.custody import Secret
from services.audit.entry import draft, link
from services.audit.model import Head, Row
from services.audit.writer import LARGEST_BATCH, LONGEST_QUEUE, GroupWriter, columns

# Twice a batch, so that the next one waits when one is written.
IN_FLIGHT, ROWS = 2 * LARGEST_BATCH, 10_000
FLOOR, AIM, GROWTH = 0.6, 0.85, 1.2
TWINS = """
CREATE SCHEMA IF NOT EXISTS bench;
CREATE TABLE bench.entries (LIKE audit.entries INCLUDING ALL);
CREATE TABLE bench.idempotency (LIKE audit.idempotency INCLUDING ALL);
CREATE TABLE bench.personal (LIKE audit.personal INCLUDING ALL);
GRANT USAGE ON SCHEMA bench TO audit;
GRANT INSERT ON ALL TABLES IN SCHEMA bench TO audit;
"""
INSERT = """
WITH entry AS (
    INSERT INTO bench.entries SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[],
        $6::timestamptz[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::jsonb[])
), person AS (
    INSERT INTO bench.personal SELECT * FROM unnest($1::text[], $2::bigint[], $7::text[], $15::bytea[], $16::text[],
        $17::text[], $18::text[], $19::text[])
)
INSERT INTO bench.idempotency SELECT * FROM unnest($14::uuid[], $1::text[], $2::bigint[])
"""
Append = Callable[[], Awaitable[object]]


@dataclass
class Raw:
    """Group commit without a chain."""

    pool: asyncpg.Pool
    queue: "asyncio.Queue[tuple[Row, asyncio.Future[None]]]" = field(default_factory=asyncio.Queue)

    async def append(self, row: Row) -> None:
        """Return once the row is durable."""
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((row, answer))
        await answer

    async def run(self) -> None:
        """Write batches for ever."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < LARGEST_BATCH and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            await self.pool.execute(INSERT, *columns([row for row, _ in batch])[:19])
            for _, answer in batch:
                answer.set_result(None)


@dataclass
class Sides:
    """Both sides, and where they append to."""

    writer: GroupWriter
    raw: Raw
    pepper: Secret
    chain: str
    head: Head = field(default_factory=lambda: Head(0, bytes(32)))

    async def ours(self) -> Figures:
        """Append to the chain."""
        decisions = [decision(self.chain) for _ in range(ROWS)]
        waiting = iter(decisions)

        async def worker() -> None:
            for one in waiting:
                await self.writer.append(draft(one, self.pepper))

        return await timed(worker)

    async def theirs(self) -> Figures:
        """Insert rows that were made beforehand."""
        rows = link((draft(decision(self.chain), self.pepper) for _ in range(ROWS)), self.head)
        self.head = Head(rows[-1].seq, rows[-1].entry_hash)
        waiting = iter(rows)

        async def worker() -> None:
            for row in waiting:
                await self.raw.append(row)

        return await timed(worker)


async def timed(worker: Callable[[], Awaitable[None]]) -> Figures:
    """Return rows a second, and this process's microseconds a row."""
    used, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    elapsed = time.perf_counter() - started
    return {"rate": ROWS / elapsed, "own_us": (time.process_time() - used) / ROWS * 1e6}


async def measure(sides: Sides, report: Report, size: int) -> list[float]:
    """Add the bar; returns what an append costs in raw inserts of the same moment."""
    ours, theirs = await alternate(sides.ours, sides.theirs)
    a, b = column(ours, "rate"), column(theirs, "rate")
    report.bars.append(Bar(f"chained appends to {size:,} rows, by raw inserts", "rows/s", a, b, FLOOR, AIM))
    wait_s = LONGEST_QUEUE / statistics.median(a)
    name = f"the last of a full queue waits, {size:,} rows"
    report.checks.append(
        Check(name, f"< {DEADLINE_S} s, its caller's deadline", f"{wait_s:.2f} s", wait_s < DEADLINE_S)
    )
    report.shares[f"this process, µs a row, {size:,} rows"] = {
        side: statistics.median(column(rounds, "own_us")) for side, rounds in (("chained", ours), ("raw", theirs))
    }
    return [theirs / ours for ours, theirs in zip(a, b, strict=True)]
