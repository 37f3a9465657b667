"""Group commit: one writer task a process, batches across callers and chains, heads locked in chain order.

Locking the heads makes two replicas on the same chains wait for each other instead of forking. A head that is not where
it was is checked before anything is appended to it. An error fails every caller of the batch: they fail closed, and
retry with the same key.
"""

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import structlog

from libs.chain import GENESIS
from libs.errors import AcknowledgementStale, AuditUnavailable, PlexError
from libs.pg import transaction
from libs.telemetry import GROUP, QUEUE
from services.audit.entry import link
from services.audit.guard import Guard
from services.audit.model import Draft, Head, Row
from services.audit.store import SERVER

# What callers wait for at most is done within their deadline.
LARGEST_BATCH, LONGEST_QUEUE = 256, 1024
# How long the callers of a batch wait for the next one to be under way.
TOLD_WITHIN_S = 0.05
TRIES = 3

log = structlog.get_logger()

# In chain order, so that two replicas never wait for each other in a circle.
TAKE_HEADS = """
INSERT INTO audit.chains (chain, seq, entry_hash) SELECT c, 0, $2 FROM unnest($1::text[]) c ORDER BY c
ON CONFLICT (chain) DO NOTHING
"""
# With the entry at which each chain was last seen: where that is another one, the database is another one.
LOCK_HEADS = f"""
SELECT c.chain, c.seq, c.entry_hash, e.entry_hash AS there, ({SERVER}) AS server
FROM unnest($1::text[], $2::bigint[]) AS last (chain, seq)
JOIN audit.chains c ON c.chain = last.chain
LEFT JOIN audit.entries e ON e.chain = last.chain AND e.seq = last.seq
ORDER BY c.chain FOR UPDATE OF c
"""
KNOWN_KEYS = "SELECT key, seq FROM audit.idempotency WHERE key = ANY ($1::uuid[])"
WRITE = """
WITH entry AS (
    INSERT INTO audit.entries (chain, seq, prev_hash, entry_hash, canonical, occurred_at, pseudonym, relation,
                               object_type, object_id, reason, correlation_id, context)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], $6::timestamptz[],
                         $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::jsonb[])
), idempotent AS (
    INSERT INTO audit.idempotency (key, chain, seq) SELECT * FROM unnest($14::uuid[], $1::text[], $2::bigint[])
), person AS (
    INSERT INTO audit.personal (chain, seq, pseudonym, salt, subject_id, subject_kind, client_ip, user_agent)
    SELECT * FROM unnest($1::text[], $2::bigint[], $7::text[], $15::bytea[], $16::text[], $17::text[], $18::text[],
                         $19::text[])
)
UPDATE audit.chains SET seq = h.seq, entry_hash = h.entry_hash
FROM unnest($20::text[], $21::bigint[], $22::bytea[]) AS h (chain, seq, entry_hash)
WHERE chains.chain = h.chain
"""


@dataclass(frozen=True)
class Waiting:
    """A caller in the queue."""

    entry: Draft
    answer: "asyncio.Future[int]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, seq: int) -> None:
        """Give the caller its sequence, unless it went away."""
        if not self.answer.done():
            self.answer.set_result(seq)

    def fail(self, error: Exception) -> None:
        """Fail the caller, unless it went away."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Doubted(Exception):
    """A chain has to be checked once more before it is appended to."""


class GroupWriter:
    """Appends for all callers of this process."""

    def __init__(self, pool: asyncpg.Pool, guard: Guard) -> None:
        self._pool = pool
        self._guard = guard
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue(LONGEST_QUEUE)
        # Callers whose entries are durable.
        self._untold: list[tuple[Waiting, int]] = []
        QUEUE.set_function(self._queue.qsize)

    async def append(self, entry: Draft) -> int:
        """Return the entry's sequence once it is durable.

        Raises AuditUnavailable at once when the queue is full, AuditDiverged when the chain may not be appended to.
        """
        for _ in range(TRIES):
            # Here and not in the batch, which would have the other chains wait.
            await self._guard.require(entry.decision.chain)
            waiting = Waiting(entry)
            try:
                self._queue.put_nowait(waiting)
            except asyncio.QueueFull:
                raise AuditUnavailable("the queue is full") from None
            with contextlib.suppress(Doubted):
                return await waiting.answer
        raise AuditUnavailable("the database does not stay the same")

    async def resume(self, entry: Draft, head: Head) -> None:
        """Append an entry if the chain ends at a head, or did so before it; raises AcknowledgementStale. Durable."""
        chain, key = entry.decision.chain, entry.decision.idempotency_key
        async with transaction(self._pool, "resume") as connection:
            await connection.execute(TAKE_HEADS, [chain], GENESIS)
            (found,) = await connection.fetch(LOCK_HEADS, [chain], [head.seq])
            if await connection.fetch(KNOWN_KEYS, [key]):
                return
            if Head(found["seq"], found["entry_hash"]) != head:
                raise AcknowledgementStale
            await connection.execute(WRITE, *columns(link([entry], head)))

    async def run(self) -> None:
        """Write batches for as long as the process lives."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < LARGEST_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            GROUP.observe(len(batch))
            try:
                await self._write(batch)
            except Exception as error:  # a batch that goes wrong fails its callers, and not the writer
                log.warning("audit.batch_failed", size=len(batch), exc_info=error)
                reason = error if isinstance(error, PlexError) else AuditUnavailable(type(error).__name__)
                for waiting in batch:
                    waiting.fail(reason)

    async def _write(self, batch: list[Waiting]) -> None:
        written: dict[UUID, int] = {}
        async with transaction(self._pool, "append") as connection:
            heads = await self._heads(connection, sorted({waiting.entry.decision.chain for waiting in batch}))
            by_key: dict[UUID, list[Waiting]] = defaultdict(list)
            for waiting in batch:
                if waiting.entry.decision.chain in heads:
                    by_key[waiting.entry.decision.idempotency_key].append(waiting)
                else:
                    waiting.fail(Doubted())
            for known in await connection.fetch(KNOWN_KEYS, list(by_key)):
                written[known["key"]] = known["seq"]
            fresh: dict[str, list[Draft]] = defaultdict(list)
            for key, callers in by_key.items():
                if key not in written:
                    fresh[callers[0].entry.decision.chain].append(callers[0].entry)
            rows = [row for chain, drafts in fresh.items() for row in link(drafts, heads[chain])]
            if rows:
                writing = asyncio.ensure_future(connection.execute(WRITE, *columns(rows)))
                self._tell()
                await writing
            written |= {row.draft.decision.idempotency_key: row.seq for row in rows}
        for chain, row in {row.draft.decision.chain: row for row in rows}.items():
            self._guard.wrote(chain, Head(row.seq, row.entry_hash))
        self._untold += [(waiting, written[key]) for key, callers in by_key.items() for waiting in callers]
        if self._queue.empty():
            self._tell()
        else:
            # What they do next is done while PostgreSQL writes, and not while it waits for the next batch.
            asyncio.get_running_loop().call_later(TOLD_WITHIN_S, self._tell)

    def _tell(self) -> None:
        untold, self._untold = self._untold, []
        for waiting, seq in untold:
            waiting.settle(seq)

    async def _heads(self, connection: asyncpg.Connection, chains: list[str]) -> dict[str, Head]:
        """Lock the heads and return those that may be appended to."""
        seen = self._guard.seen(chains)
        found = await connection.fetch(LOCK_HEADS, chains, seen)
        if len(found) < len(chains):
            await connection.execute(TAKE_HEADS, chains, GENESIS)
            found = await connection.fetch(LOCK_HEADS, chains, seen)
        heads = {row["chain"]: (Head(row["seq"], row["entry_hash"]), row["there"], row["server"]) for row in found}
        return {
            chain: head
            for chain, (head, there, server) in heads.items()
            if self._guard.holds(chain, server, head, there)
        }


def columns(rows: list[Row]) -> list[object]:
    """Return the batch column by column, then the new heads."""
    decisions = [row.draft.decision for row in rows]
    heads = {row.draft.decision.chain: row for row in rows}
    return [
        [decision.chain for decision in decisions],
        [row.seq for row in rows],
        [row.prev_hash for row in rows],
        [row.entry_hash for row in rows],
        [row.canonical for row in rows],
        [decision.occurred_at for decision in decisions],
        [row.draft.pseudonym for row in rows],
        [decision.relation for decision in decisions],
        [decision.object_type for decision in decisions],
        [decision.object_id for decision in decisions],
        [decision.reason for decision in decisions],
        [decision.correlation_id for decision in decisions],
        [row.draft.context for row in rows],
        [decision.idempotency_key for decision in decisions],
        [row.draft.salt for row in rows],
        [decision.subject_id for decision in decisions],
        [decision.subject_kind for decision in decisions],
        [decision.client_ip for decision in decisions],
        [decision.user_agent for decision in decisions],
        list(heads),
        [row.seq for row in heads.values()],
        [row.entry_hash for row in heads.values()],
    ]
