"""The tuple table: the truth about relations, and how it reaches SpiceDB."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from libs.ids import uuid7
from libs.pg import connection, transaction
from services.identity.model import Tuple
from services.identity.relations import Checker, Revocation

SUBJECTS = """
SELECT subject_type || ':' || subject_id AS subject FROM identity.relation_tuples
WHERE resource_type = $1 AND resource_id = $2 AND relation = $3 AND state <> 'removing' ORDER BY 1
"""
CHANNEL = "revocations"
BATCH = 500
ADD = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
SELECT *, 'pending' FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
ON CONFLICT (resource_type, resource_id, relation, subject_type, subject_id)
DO UPDATE SET state = 'pending' WHERE relation_tuples.state = 'removing'
"""
UNDELIVERED = """
SELECT id, resource_type, resource_id, relation, subject_type, subject_id, state FROM identity.relation_tuples
WHERE state <> 'live' ORDER BY id LIMIT $1 FOR UPDATE
"""
THESE = """
SELECT id, resource_type, resource_id, relation, subject_type, subject_id, state FROM identity.relation_tuples
WHERE (resource_type, resource_id, relation, subject_type, subject_id)
    IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]))
ORDER BY id FOR UPDATE
"""
HOLDS = """
SELECT EXISTS (
    SELECT FROM identity.relation_tuples
    WHERE (resource_type, resource_id, relation, subject_type, subject_id)
        IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]))
      AND state <> 'removing'
)
"""
KEPT = """
SELECT resource_type, resource_id, relation, subject_type, subject_id FROM identity.relation_tuples
WHERE state <> 'removing' ORDER BY id FOR SHARE
"""


def split(text: str) -> tuple[str, str]:
    """Return type and id."""
    kind, _, identifier = text.partition(":")
    return kind, identifier


def row_tuple(row: asyncpg.Record) -> Tuple:
    """Return a row as a tuple."""
    resource = f"{row['resource_type']}:{row['resource_id']}"
    return Tuple(resource, row["relation"], f"{row['subject_type']}:{row['subject_id']}")


async def add_tuples(lent: asyncpg.Connection, rows: Iterable[Tuple]) -> None:
    """Add tuples as pending, in the transaction of what they are about."""
    values = ((uuid7(), *split(row.resource), row.relation, *split(row.subject)) for row in rows)
    if columns := list(zip(*values, strict=True)):
        await lent.execute(ADD, *columns)


async def mark_tuples(lent: asyncpg.Connection, where: str, *arguments: object) -> list[Tuple]:
    """Mark tuples as removing and tell the feed, in the transaction of what they are about."""
    # Everybody locks tuples in the order of their ids, so that nobody waits in a circle.
    sql = f"""
    WITH found AS (SELECT id FROM identity.relation_tuples WHERE {where} ORDER BY id FOR UPDATE)
    UPDATE identity.relation_tuples t SET state = 'removing' FROM found WHERE t.id = found.id
    RETURNING resource_type, resource_id, relation, subject_type, subject_id
    """
    rows = [row_tuple(row) for row in await lent.fetch(sql, *arguments)]
    await notify(lent, *(Revocation("relation", relation=row) for row in rows))
    return rows


async def notify(lent: asyncpg.Connection, *revocations: Revocation) -> None:
    """Tell every replica, when the transaction commits."""
    await lent.execute(
        "SELECT pg_notify($1, payload) FROM unnest($2::text[]) payload", CHANNEL, list(map(_payload, revocations))
    )


def _payload(revocation: Revocation) -> str:
    relation = revocation.relation
    parts = [relation.resource, relation.relation, relation.subject] if relation else []
    return json.dumps({"kind": revocation.kind, "value": revocation.value, "relation": parts})


@dataclass(frozen=True)
class PgTupleStore:
    """Tuples in PostgreSQL."""

    pool: asyncpg.Pool

    async def add(self, rows: list[Tuple]) -> None:
        """Add tuples as pending; those that exist stay."""
        async with transaction(self.pool, "add_tuples") as lent:
            await add_tuples(lent, rows)

    async def mark(self, resource: str, relation: str, subject: str) -> list[Tuple]:
        """Mark tuples as removing, empty arguments matching all, and tell the feed; returns them."""
        where = "resource_type = $1 AND resource_id = $2 AND ($3 = '' OR relation = $3)"
        where += " AND ($4 = '' OR subject_type || ':' || subject_id = $4)"
        async with transaction(self.pool, "mark_tuples") as lent:
            return await mark_tuples(lent, where, *split(resource), relation, subject)

    async def subjects(self, resource: str, relation: str) -> list[str]:
        """Return the subjects of a relation, those whose grant has not arrived yet among them."""
        async with connection(self.pool, "subjects") as lent:
            rows = await lent.fetch(SUBJECTS, *split(resource), relation)
        return [row["subject"] for row in rows]

    async def holds(self, rows: list[Tuple]) -> bool:
        """Whether any of these tuples is there and not being removed, delivered or not."""
        async with connection(self.pool, "holds_tuples") as lent:
            return bool(await lent.fetchval(HOLDS, *_columns(rows)))

    async def deliver(self, checker: Checker) -> int:
        """Bring pending tuples to SpiceDB and finish removals, waiting for whoever is at it; returns how many."""
        done = 0
        while True:
            async with transaction(self.pool, "deliver_tuples") as lent:
                rows = await lent.fetch(UNDELIVERED, BATCH)
                await _bring(lent, checker, rows)
            done += len(rows)
            if len(rows) < BATCH:
                return done

    async def finish(self, checker: Checker, rows: list[Tuple]) -> None:
        """Bring these tuples to SpiceDB as the table has them now; those that are gone are gone there too."""
        if rows:
            async with transaction(self.pool, "finish_tuples") as lent:
                await _bring(lent, checker, await lent.fetch(THESE, *_columns(rows)))

    async def refill(self, checker: Checker) -> int:
        """Bring every tuple that is not being removed to SpiceDB, and return how many there are."""
        async with transaction(self.pool, "refill_tuples") as lent:
            # A removal waits for the lock: a tuple that was revoked meanwhile must not be written after its removal.
            rows = await lent.fetch(KEPT)
            await checker.touch([row_tuple(row) for row in rows])
        return len(rows)


def _columns(rows: list[Tuple]) -> list[tuple[str, ...]]:
    return list(zip(*((*split(row.resource), row.relation, *split(row.subject)) for row in rows), strict=True))


async def _bring(lent: asyncpg.Connection, checker: Checker, rows: list[asyncpg.Record]) -> None:
    """Bring locked rows to SpiceDB; the lock holds back a removal until a grant of the same tuple has arrived."""
    pending = [row for row in rows if row["state"] == "pending"]
    removing = [row for row in rows if row["state"] == "removing"]
    if pending:
        await checker.touch([row_tuple(row) for row in pending])
        ids = [row["id"] for row in pending]
        await lent.execute("UPDATE identity.relation_tuples SET state = 'live' WHERE id = ANY ($1)", ids)
    if removing:
        await checker.delete([row_tuple(row) for row in removing])
        ids = [row["id"] for row in removing]
        await lent.execute("DELETE FROM identity.relation_tuples WHERE id = ANY ($1)", ids)
        # Told once more: who asked between the first time and now was still granted.
        for row in removing:
            await notify(lent, Revocation("relation", relation=row_tuple(row)))
