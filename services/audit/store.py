"""All SQL of the read side; each method is one transaction."""

import datetime
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from libs.chain import GENESIS
from libs.pg import connection, transaction
from services.audit.model import Filter, Head, Piece, Storage, Stored

# Times that Python does not have come as its first or last one, which are not what was written either.
COLUMNS = """
e.chain, e.seq, e.prev_hash, e.entry_hash, e.canonical,
least(greatest(e.occurred_at, '0001-01-01'), '9999-12-31') AS occurred_at, e.pseudonym, e.relation, e.object_type,
e.object_id, e.reason, e.correlation_id, e.context, CASE WHEN p.pseudonym = e.pseudonym THEN p.salt END AS salt,
p.subject_id, p.subject_kind, p.client_ip, p.user_agent,
p.seq IS NULL AND EXISTS (
    SELECT FROM audit.erasures x WHERE x.chain = e.chain AND x.pseudonym = e.pseudonym
) AS erased
"""
FROM = "FROM audit.entries e LEFT JOIN audit.personal p ON p.chain = e.chain AND p.seq = e.seq"
SHOWN = f"""
SELECT {COLUMNS}, a.etag, a.archived_at {FROM}
LEFT JOIN LATERAL (
    SELECT epoch, first, last FROM audit.segments s
    WHERE s.chain = e.chain AND s.epoch = (SELECT max(epoch) FROM audit.segments m WHERE m.chain = e.chain)
      AND s.first <= e.seq ORDER BY s.first DESC LIMIT 1
) s ON s.last >= e.seq
LEFT JOIN audit.archived a ON a.chain = e.chain AND a.epoch = s.epoch AND a.first = s.first
"""
WALK_PAGE = 500
# A query of one value: another one after a restart, and when database or table are replaced under a running server.
SERVER = """
SELECT concat_ws('.', pg_postmaster_start_time(), d.oid, 'audit.entries'::regclass::oid,
                 pg_relation_filenode('audit.entries'))
FROM pg_database d WHERE d.datname = current_database()
"""
# What a dump and its restore do not keep, while a standby that takes over and a physical backup do.
STORAGE = f"""
SELECT ({SERVER}) AS server, concat_ws('.', system_identifier, d.oid, 'audit.entries'::regclass::oid,
                                       pg_relation_filenode('audit.entries')) AS name
FROM pg_control_system(), pg_database d WHERE d.datname = current_database()
"""


@dataclass(frozen=True)
class PgStore:
    """Chains in PostgreSQL."""

    pool: asyncpg.Pool

    async def storage(self) -> Storage:
        """Return where the database is that answers now."""
        async with connection(self.pool, "storage") as lent:
            (row,) = await lent.fetch(STORAGE)
        return Storage(row["server"], row["name"])

    async def head(self, chain: str) -> Head:
        """Return where a chain ends now."""
        async with connection(self.pool, "head") as lent:
            row = await lent.fetchrow("SELECT seq, entry_hash FROM audit.chains WHERE chain = $1", chain)
        return Head(row["seq"], row["entry_hash"]) if row else Head(0, GENESIS)

    async def page(self, chain: str, wanted: Filter, below: int, limit: int) -> list[Stored]:
        """Return matching entries with a sequence below `below`, newest first."""
        sql = f"""
        {SHOWN}
        WHERE e.chain = $1 AND e.seq < $2
          AND ($4 = '' OR e.pseudonym = $4) AND ($5 = '' OR e.relation = $5)
          AND ($6 = '' OR e.object_type = $6) AND ($7 = '' OR e.object_id = $7)
          AND ($8 = '' OR e.reason = $8) AND ($9 = '' OR e.correlation_id = $9)
          AND ($10::timestamptz IS NULL OR e.occurred_at >= $10)
          AND ($11::timestamptz IS NULL OR e.occurred_at <= $11)
        ORDER BY e.seq DESC LIMIT $3
        """
        async with connection(self.pool, "page") as lent:
            rows = await lent.fetch(
                sql, chain, below, limit, wanted.subject, wanted.relation, wanted.object_type, wanted.object_id,
                wanted.reason, wanted.correlation_id, wanted.after, wanted.before,
            )  # fmt: skip
        return [stored(row) for row in rows]

    async def get(self, chain: str, seq: int) -> Stored | None:
        """Return one entry."""
        async with connection(self.pool, "get") as lent:
            row = await lent.fetchrow(f"{SHOWN} WHERE e.chain = $1 AND e.seq = $2", chain, seq)
        return stored(row) if row else None

    async def walk(self, chain: str, first: int, last: int) -> AsyncIterator[Stored]:
        """Yield entries in order, in constant memory, from one snapshot."""
        sql = f"""
        SELECT {COLUMNS}, NULL AS etag, NULL::timestamptz AS archived_at {FROM}
        WHERE e.chain = $1 AND e.seq BETWEEN $2 AND $3 ORDER BY e.seq
        """
        async with connection(self.pool, "walk") as lent, lent.transaction(isolation="repeatable_read", readonly=True):
            async for row in lent.cursor(sql, chain, first, last, prefetch=WALK_PAGE):
                yield stored(row)

    async def piece(self, chain: str, first: int, last: int) -> Piece:
        """Return the entries that there are of some, in order."""
        sql = f"SELECT {COLUMNS} {FROM} WHERE e.chain = $1 AND e.seq BETWEEN $2 AND $3 ORDER BY e.seq"
        async with connection(self.pool, "piece") as lent:
            rows = await lent.fetch(sql, chain, first, last)
        return Piece._make(zip(*rows, strict=True) if rows else [()] * len(Piece._fields))

    async def erase(self, chain: str, pseudonyms: list[str], at: datetime.datetime) -> datetime.datetime:
        """Remove the personal data behind pseudonyms; returns when it was first removed."""
        async with transaction(self.pool, "erase") as lent:
            await lent.execute(
                "INSERT INTO audit.erasures (chain, pseudonym, erased_at) SELECT $1, n, $3 FROM unnest($2::text[]) n "
                "ON CONFLICT DO NOTHING",
                chain, pseudonyms, at,
            )  # fmt: skip
            await lent.execute(
                "DELETE FROM audit.personal WHERE chain = $1 AND pseudonym = ANY ($2::text[])", chain, pseudonyms
            )
            sql = "SELECT erased_at FROM audit.erasures WHERE chain = $1 AND pseudonym = $2"
            erased: datetime.datetime = await lent.fetchval(sql, chain, pseudonyms[0])
        return erased

    async def erased_at(self, chain: str, pseudonym: str) -> datetime.datetime | None:
        """Return when personal data was removed, if it was."""
        async with connection(self.pool, "erased_at") as lent:
            sql = "SELECT erased_at FROM audit.erasures WHERE chain = $1 AND pseudonym = $2"
            erased: datetime.datetime | None = await lent.fetchval(sql, chain, pseudonym)
        return erased


def stored(row: asyncpg.Record) -> Stored:
    """Return a row of the database as the rules see it."""
    return Stored(
        chain=row["chain"],
        seq=row["seq"],
        prev_hash=row["prev_hash"],
        entry_hash=row["entry_hash"],
        canonical=row["canonical"],
        occurred_at=row["occurred_at"],
        pseudonym=row["pseudonym"],
        relation=row["relation"],
        object_type=row["object_type"],
        object_id=row["object_id"],
        reason=row["reason"],
        correlation_id=row["correlation_id"],
        context=_names(row["context"]),
        salt=row["salt"],
        subject_id=row["subject_id"] or "",
        subject_kind=row["subject_kind"] or "",
        client_ip=row["client_ip"] or "",
        user_agent=row["user_agent"] or "",
        erased=row["erased"],
        archive_etag=row["etag"] or "",
        archived_at=row["archived_at"],
    )


def _names(text: str) -> dict[str, list[str]]:
    """Return a context; an empty one, which nobody writes, for what was put in its place."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
