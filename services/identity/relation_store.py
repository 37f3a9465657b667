"""The tuple table: the truth about relations, and how it reaches SpiceDB."""

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

import asyncpg
import structlog

from libs.ids import uuid7
from libs.pg import connection, transaction
from libs.telemetry import REFUSALS
from services.identity.model import Caveat, Tuple
from services.identity.relations import Checker, Revocation, TupleRefused
from services.identity.schema import require_storable

KEY = "resource_type, resource_id, relation, subject_type, subject_id"
TUPLE = f"{KEY}, caveat_name, caveat_context"
SUBJECTS = """
SELECT subject_type || ':' || subject_id AS subject FROM identity.relation_tuples
WHERE resource_type = $1 AND resource_id = $2 AND relation = $3 AND state <> 'removing' ORDER BY 1
"""
CHANNEL = "revocations"
BATCH = 500
# What is there keeps its caveat; what is going, or was refused, becomes what is added now.
ADD = f"""
INSERT INTO identity.relation_tuples (id, {TUPLE}, state)
SELECT *, 'pending' FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                                $8::jsonb[])
ON CONFLICT ({KEY})
DO UPDATE SET id = excluded.id, state = 'pending', refused_code = '', caveat_name = excluded.caveat_name,
    caveat_context = excluded.caveat_context
    WHERE relation_tuples.state = 'removing' OR relation_tuples.refused_code <> ''
"""
UNDELIVERED = f"""
SELECT id, {TUPLE}, state FROM identity.relation_tuples
WHERE state <> 'live' AND refused_code = '' ORDER BY id LIMIT $1 FOR UPDATE
"""
THESE = f"""
SELECT id, {TUPLE}, state FROM identity.relation_tuples
WHERE ({KEY}) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]))
ORDER BY id FOR UPDATE
"""
HELD = f"""
SELECT {TUPLE} FROM identity.relation_tuples
WHERE ({KEY}) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]))
  AND state <> 'removing' AND refused_code = ''
"""
KEPT = f"""
SELECT id, {TUPLE}, state FROM identity.relation_tuples
WHERE state <> 'removing' AND refused_code = '' ORDER BY id FOR SHARE
"""
RETRY = "UPDATE identity.relation_tuples SET refused_code = '' WHERE refused_code <> ''"
Write: TypeAlias = Callable[[list[Tuple]], Awaitable[None]]

log = structlog.get_logger()


def split(text: str) -> tuple[str, str]:
    """Return type and id."""
    kind, _, identifier = text.partition(":")
    return kind, identifier


def row_tuple(row: asyncpg.Record) -> Tuple:
    """Return a row as a tuple."""
    resource = f"{row['resource_type']}:{row['resource_id']}"
    name = row["caveat_name"]
    caveat = Caveat(name, json.loads(row["caveat_context"])) if name else None
    return Tuple(resource, row["relation"], f"{row['subject_type']}:{row['subject_id']}", caveat)


def key_of(row: Tuple) -> tuple[str, ...]:
    """Return what makes a tuple the same one, as its columns."""
    return (*split(row.resource), row.relation, *split(row.subject))


def columns_of(rows: list[Tuple]) -> list[tuple[str, ...]]:
    """Return tuples by column."""
    return list(zip(*map(key_of, rows), strict=True))


async def add_tuples(lent: asyncpg.Connection, rows: Iterable[Tuple]) -> None:
    """Add tuples as pending, in the transaction of what they are about; raises RelationNotAllowed."""
    values = []
    for row in rows:
        # What SpiceDB will never take must not stand before what it takes.
        require_storable(row)
        caveat = row.caveat or Caveat("", {})
        values.append((uuid7(), *key_of(row), caveat.name, json.dumps(dict(caveat.context))))
    if columns := list(zip(*values, strict=True)):
        await lent.execute(ADD, *columns)


async def mark_tuples(lent: asyncpg.Connection, where: str, *arguments: object) -> list[Tuple]:
    """Mark tuples as removing and tell the feed, in the transaction of what they are about."""
    # Everybody locks tuples in the order of their ids, so that nobody waits in a circle.
    sql = f"""
    WITH found AS (SELECT id FROM identity.relation_tuples WHERE {where} ORDER BY id FOR UPDATE)
    UPDATE identity.relation_tuples t SET state = 'removing', refused_code = '' FROM found WHERE t.id = found.id
    RETURNING {TUPLE}
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

    async def held(self, rows: list[Tuple]) -> set[Tuple]:
        """Return which of these tuples are there and not being removed, delivered or not."""
        async with connection(self.pool, "held_tuples") as lent:
            return {row_tuple(row) for row in await lent.fetch(HELD, *columns_of(rows))}

    async def retry_refused(self) -> None:
        """Try what SpiceDB refused once more: a new schema may have a place for it."""
        async with connection(self.pool, "retry_refused") as lent:
            await lent.execute(RETRY)

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
                await _bring(lent, checker, await lent.fetch(THESE, *columns_of(rows)))

    async def refill(self, checker: Checker) -> int:
        """Bring every tuple that is not being removed to SpiceDB, and return how many there are."""
        async with transaction(self.pool, "refill_tuples") as lent:
            # A removal waits for the lock: a tuple that was revoked meanwhile must not be written after its removal.
            rows = await lent.fetch(KEPT)
            await _quarantine(lent, await _refused(checker, checker.touch, rows, emptied=True))
        return len(rows)


async def _bring(lent: asyncpg.Connection, checker: Checker, rows: list[asyncpg.Record]) -> None:
    """Bring locked rows to SpiceDB; the lock holds back a removal until a grant of the same tuple has arrived."""
    pending = [row for row in rows if row["state"] == "pending"]
    removing = [row for row in rows if row["state"] == "removing"]
    if pending:
        refused = await _refused(checker, checker.touch, pending)
        await _quarantine(lent, refused)
        ids = [row["id"] for row in pending if row["id"] not in refused]
        await lent.execute("UPDATE identity.relation_tuples SET state = 'live' WHERE id = ANY ($1)", ids)
    if removing:
        # What the schema has no place for is not in SpiceDB either: no schema is taken away from under a tuple.
        await _refused(checker, checker.delete, removing)
        ids = [row["id"] for row in removing]
        await lent.execute("DELETE FROM identity.relation_tuples WHERE id = ANY ($1)", ids)
        # Told once more: who asked between the first time and now was still granted.
        for row in removing:
            await notify(lent, Revocation("relation", relation=row_tuple(row)))


async def _refused(
    checker: Checker, write: Write, rows: list[asyncpg.Record], *, emptied: bool = False
) -> dict[UUID, str]:
    """Write rows to SpiceDB and return which of them it will never take, and why; halving finds them."""
    try:
        await write([row_tuple(row) for row in rows])
    except TupleRefused as error:
        if len(rows) > 1:
            half = len(rows) // 2
            found = await _refused(checker, write, rows[:half], emptied=emptied)
            return found | await _refused(checker, write, rows[half:], emptied=emptied)
        if not emptied:
            # A SpiceDB that lost its schema refuses everything, which says nothing about this row.
            await checker.check([])
        return {rows[0]["id"]: str(error)}
    return {}


async def _quarantine(lent: asyncpg.Connection, refused: dict[UUID, str]) -> None:
    for identifier, code in refused.items():
        log.error("relations.refused", id=str(identifier), code=code)
        REFUSALS.labels("relations", code).inc()
        await lent.execute("UPDATE identity.relation_tuples SET refused_code = $2 WHERE id = $1", identifier, code)
