"""All SQL about the log of published events; each method is one transaction, and nothing is ever changed."""

import asyncio
import contextlib
import datetime
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import DatastoreUnavailable, EventBusUnavailable
from libs.pg import connection, held, unavailable
from services.mesh.model import Logged, Publication, Seen

# The log is joined row by row: a plan that was made while the tables were small would read all of them for ever.
ROW = "l.id, l.domain_id, l.scope, l.type, l.envelope, l.issued_at"
LOGGED = "LATERAL (SELECT * FROM mesh.event_log e WHERE e.id = {id} LIMIT 1) l"
FIND = f"""
SELECT {ROW}, (SELECT max(p.sequence) FROM mesh.event_positions p WHERE p.id = l.id) AS sequence
FROM unnest($1::uuid[]) s (id) CROSS JOIN {LOGGED.format(id="s.id")}
"""
APPEND = """
INSERT INTO mesh.event_log (id, domain_id, scope, type, envelope, digest, issued_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::timestamptz[])
ON CONFLICT (id) DO NOTHING RETURNING id
"""
# Two statements at once, so without parameters: the server itself gives up in time, whoever is gone by then.
NOTE = """
SET LOCAL statement_timeout = {ms:d};
INSERT INTO mesh.event_positions (sequence, id) SELECT * FROM unnest('{{{places}}}'::bigint[], '{{{ids}}}'::uuid[])
"""
# From the newest place back to the first that was noted before; what was issued later stands above it.
FRESH = f"""
SELECT {ROW}, p.newest AS sequence FROM (
    SELECT id, min(sequence) AS oldest, max(sequence) AS newest FROM mesh.event_positions
    WHERE sequence > coalesce(
        (SELECT o.sequence FROM mesh.event_positions o WHERE o.noted_at <= $1 ORDER BY o.sequence DESC LIMIT 1), 0)
    GROUP BY id
) p CROSS JOIN {LOGGED.format(id="p.id")}
WHERE l.issued_at > $1 ORDER BY p.oldest
"""
CHECK = f"""
SELECT p.id AS there, l.digest, EXISTS (SELECT FROM mesh.event_positions o WHERE o.id = s.id) AS placed
FROM unnest($1::bigint[], $2::uuid[]) WITH ORDINALITY AS s (sequence, id, turn)
LEFT JOIN LATERAL (SELECT o.id FROM mesh.event_positions o WHERE o.sequence = s.sequence LIMIT 1) p ON true
LEFT JOIN {LOGGED.format(id="s.id")} ON true
ORDER BY s.turn
"""
# The first is always there, however long it is.
BETWEEN = f"""
SELECT id, domain_id, scope, type, envelope, issued_at, sequence FROM (
    SELECT *, sum(length(envelope)) OVER (ORDER BY sequence) - length(envelope) AS before FROM (
        SELECT {ROW}, p.sequence FROM mesh.event_positions p CROSS JOIN {LOGGED.format(id="p.id")}
        WHERE p.sequence BETWEEN $1 AND $2 AND l.issued_at > $3 ORDER BY p.sequence LIMIT $4
    ) few
) short WHERE before < $5 ORDER BY sequence
"""
KEEPER = "mesh.keeper"


@dataclass(frozen=True)
class PgLog:
    """The log in PostgreSQL."""

    pool: asyncpg.Pool

    async def find(self, ids: Collection[UUID]) -> dict[UUID, Logged]:
        """Return the events that are logged, with their newest place."""
        async with connection(self.pool, "find_events") as lent:
            return {row["id"]: Logged(**row) for row in await lent.fetch(FIND, list(ids))}

    async def append(self, rows: Sequence[Logged]) -> set[UUID]:
        """Log events; returns the ids of those that were not there."""
        async with connection(self.pool, "log_events") as lent:
            added = await lent.fetch(
                APPEND,
                [row.id for row in rows],
                [row.domain_id for row in rows],
                [row.scope for row in rows],
                [row.type for row in rows],
                [row.envelope for row in rows],
                [hashlib.sha256(row.envelope).digest() for row in rows],
                [row.issued_at for row in rows],
            )
        return {row["id"] for row in added}

    async def note(self, rows: Sequence[tuple[int, UUID]], within_s: float) -> None:
        """Note at which sequence events were published, within so many seconds or not at all.

        Raises EventBusUnavailable when one is another's already.
        """
        places, ids = (",".join(str(one) for one in column) for column in zip(*rows, strict=True))
        sql = NOTE.format(ms=max(1, round(within_s * 1000)), places=places, ids=ids)
        with unavailable():
            # The wait for a connection counts, too.
            async with asyncio.timeout(within_s), connection(self.pool, "note_positions") as lent:
                try:
                    await lent.execute(sql)
                except asyncpg.UniqueViolationError:
                    raise EventBusUnavailable("the stream gave a sequence twice") from None

    async def highest(self, at: datetime.datetime | None = None) -> int:
        """Return the highest sequence that was noted, ever or until a time; 0 for none."""
        async with connection(self.pool, "highest_sequence") as lent:
            if at is None:
                return int(await lent.fetchval("SELECT coalesce(max(sequence), 0) FROM mesh.event_positions"))
            # From the newest back, like those that are fresh.
            sql = "SELECT sequence FROM mesh.event_positions WHERE noted_at <= $1 ORDER BY sequence DESC LIMIT 1"
            return int(await lent.fetchval(sql, at) or 0)

    async def fresh(self, since: datetime.datetime) -> list[Logged]:
        """Return published events issued after `since`, with their newest places and in the order of their first."""
        async with connection(self.pool, "fresh_events") as lent:
            return [Logged(**row) for row in await lent.fetch(FRESH, since)]

    async def check(self, seen: Sequence[Seen]) -> list[Publication]:
        """Say of each whether exactly these bytes were published at this sequence."""
        async with connection(self.pool, "check_published") as lent:
            rows = await lent.fetch(CHECK, [one.sequence for one in seen], [one.id for one in seen])
        return [_verdict(one, row) for one, row in zip(seen, rows, strict=True)]

    async def between(self, first: int, last: int, since: datetime.datetime, most: int, size: int) -> list[Logged]:
        """Return what was published at these sequences and issued after `since`, both ends included, in order.

        Ends after `most` events, and with the one that reaches `size` bytes.
        """
        async with connection(self.pool, "events_between") as lent:
            return [Logged(**row) for row in await lent.fetch(BETWEEN, first, last, since, most, size)]

    async def roll(self) -> None:
        """Make the partitions of the next days and let go of what is past keeping.

        Raises DatastoreUnavailable when it must be asked again for the latter.
        """
        async with connection(self.pool, "roll_log") as lent:
            # Each a statement of its own: however much is past keeping, the next days are there.
            await lent.execute("SELECT mesh.roll_log()")
            dropped = await lent.fetchval("SELECT mesh.drop_old_log()")
            while await lent.fetchval("SELECT mesh.forget_old_places()"):
                pass
        if not dropped:
            raise DatastoreUnavailable("the log is in use")

    @contextlib.asynccontextmanager
    async def leading(self) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        """Hold the keeper's lock for the block; what it gives says whether this replica holds it, or raises."""
        async with held(self.pool) as lent:

            async def leads() -> bool:
                # A lock of the session may be had many times; with its connection it is gone, and so is the lead.
                return bool(await lent.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", KEEPER))

            yield leads


def _verdict(one: Seen, row: asyncpg.Record) -> Publication:
    if row["digest"] is None:
        return Publication.UNKNOWN
    if row["there"] == one.id:
        return Publication.PUBLISHED if row["digest"] == one.digest else Publication.ALTERED
    if row["digest"] != one.digest:
        return Publication.ALTERED
    return Publication.REPLAYED if row["placed"] or row["there"] else Publication.PENDING
