"""All SQL about sessions; each method is one transaction."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from libs.errors import Stale
from libs.ids import uuid7
from libs.outbox import add_event
from libs.pg import connection, transaction
from libs.together import Each, Together
from services.access.model import POLICY_VIOLATION, SCHEMA, Budget, Reserved, Session, Wish

# Longer than any request lives, so that a place is never given away under one that is still being decided.
HELD_FOR = datetime.timedelta(seconds=30)
REPEATS_FOR = datetime.timedelta(minutes=10)
# What a node says of a session fills no database.
MOST_REPORTS = 1000

COLUMNS = """id, domain_id, project_id, resource_id, node_id, identity_id, sign_in_ids, kind, target, issued_at,
expires_at, last_active_at, revoked_at, revoke_reason, kid, claims, seal"""
# A session ends with the key that signed it: at once, whenever somebody comes round to writing it down and telling.
ENDED = "coalesce(s.revoked_at, CASE WHEN k.revoked_at < s.expires_at THEN k.revoked_at END)"
SELECT = f"""
SELECT s.id, s.domain_id, s.project_id, s.resource_id, s.node_id, s.identity_id, s.sign_in_ids, s.kind, s.target,
    s.issued_at, s.expires_at, s.last_active_at, {ENDED} AS revoked_at,
    CASE WHEN s.revoked_at IS NULL AND {ENDED} IS NOT NULL THEN '{POLICY_VIOLATION}' ELSE s.revoke_reason END
    AS revoke_reason, s.kid, s.claims, s.seal
FROM access.sessions s JOIN access.signing_keys k ON k.kid = s.kid
"""
RESERVE = "SELECT refused, repeats FROM access.reserve($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
# What reserving locks, for several at once: in one order, so that nobody waits in a circle.
LOCK = """
SELECT pg_advisory_xact_lock(key) FROM (
    SELECT DISTINCT turn, hashtextextended(kind || id, 0) AS key
    FROM (SELECT 1, 'access.identity:', unnest($1::uuid[]) UNION ALL SELECT 2, 'access.node:', unnest($2::uuid[]))
        AS of (turn, kind, id)
    ORDER BY turn, key
) locks
"""
RELEASE = """
WITH held AS (DELETE FROM access.reservations WHERE session_id = $1 RETURNING session_id)
DELETE FROM access.requests q USING held WHERE q.session_id = held.session_id
"""
# One statement is one transaction, and one trip: the place, the session and its event go together or not at all.
# A revocation of the key waits for it, or it for the revocation: no session is opened under a key that counts no more.
OPEN = f"""
WITH trusted AS (
    SELECT kid FROM access.signing_keys WHERE kid = $15 AND revoked_at IS NULL FOR SHARE
), taken AS (
    DELETE FROM access.reservations WHERE session_id = $1 AND expires_at > $18 RETURNING session_id
), opened AS (
    INSERT INTO access.sessions ({COLUMNS})
    SELECT $1, $2::uuid, $3::uuid, $4::uuid, $5::uuid, $6::uuid, $7::uuid[], $8::text, $9::jsonb, $10::timestamptz,
        $11::timestamptz, $12::timestamptz, $13::timestamptz, $14::text, $15::text, $16::text, $17::bytea
    FROM taken, trusted
    RETURNING id, domain_id, node_id
), told AS (
    INSERT INTO access.event_outbox (id, domain_id, type, scope, payload, created_at)
    SELECT $19::uuid, domain_id, 'session_setup', 'node:' || node_id, $20::jsonb, $18 FROM opened
)
SELECT id FROM opened
"""
FIND = f"{SELECT} WHERE s.id = $1"
PAGE = f"""{SELECT}
WHERE s.project_id = $1 AND ($2 = '' OR $2 = CASE WHEN {ENDED} IS NOT NULL THEN 'revoked'
        WHEN s.expires_at > $7 THEN 'active' ELSE 'expired' END)
    AND ($3 = '' OR s.kind = $3) AND ($4::uuid IS NULL OR s.identity_id = $4) AND ($5::uuid IS NULL OR s.id < $5)
ORDER BY s.id DESC LIMIT $6
"""
UNREVOKED = f"{SELECT} WHERE s.revoked_at IS NULL AND s.id > $1 AND s.expires_at > $3 ORDER BY s.id LIMIT $2"
JOIN = """
UPDATE access.sessions SET sign_in_ids = array_remove(sign_in_ids, $2) || $2::uuid
WHERE id = $1 AND revoked_at IS NULL AND expires_at > $3
    AND NOT EXISTS (SELECT FROM access.denylist d WHERE d.session_id = $1) RETURNING true
"""
REVOKE = """
UPDATE access.sessions SET revoked_at = $2, revoke_reason = $3
WHERE id = $1 AND revoked_at IS NULL AND expires_at > $2 RETURNING true
"""
DENY = "INSERT INTO access.denylist (session_id, expires_at) VALUES ($1, $2)"
FORGET = "DELETE FROM access.denylist WHERE expires_at <= $1"
TOUCH = f"""
WITH touched AS (
UPDATE access.sessions s SET last_active_at = greatest(last_active_at, $4)
WHERE id = $1 AND node_id = $2 AND kind = $3 AND revoked_at IS NULL AND expires_at > $4
    AND NOT EXISTS (SELECT FROM access.denylist d WHERE d.session_id = s.id)
    AND NOT EXISTS (SELECT FROM access.signing_keys k WHERE k.kid = s.kid AND k.revoked_at IS NOT NULL)
RETURNING id
), kept AS (
INSERT INTO access.activity (session_id, reported_at, report) SELECT id, $4, $5::jsonb FROM touched
WHERE (SELECT count(*) FROM access.activity a WHERE a.session_id = $1) < {MOST_REPORTS}
)
SELECT true FROM touched
"""


Row = tuple[Any, ...]


def session_of(row: asyncpg.Record) -> Session:
    """Return a row as a session."""
    target, sign_ins = json.loads(row["target"]), tuple(row["sign_in_ids"])
    return Session(**{**row, "target": target, "sign_in_ids": sign_ins, "seal": row["seal"] or b""})


@dataclass(frozen=True)
class PgStore:
    """Sessions in PostgreSQL."""

    pool: asyncpg.Pool

    async def reserve(
        self, session_id: UUID, identity_id: UUID, node_id: UUID, wish: Wish, budget: Budget, at: datetime.datetime
    ) -> Reserved:
        """Hold a place for a session, or say what there is none for."""
        body = wish.body_digest if wish.request_digest else None
        return await self._reserving[wish.project_id].ask(
            (
                session_id, identity_id, node_id, wish.request_digest, body, at, at + HELD_FOR, at - REPEATS_FOR,
                budget.per_identity, budget.per_node, budget.per_minute,
            )
        )  # fmt: skip

    @functools.cached_property
    def _reserving(self) -> Each[UUID, Together[Row, Reserved]]:
        return Each(lambda _: Together(self._reserve))

    async def _reserve(self, rows: list[Row]) -> Sequence[Reserved]:
        async with transaction(self.pool, "reserve") if len(rows) > 1 else connection(self.pool, "reserve") as lent:
            if len(rows) > 1:
                await lent.execute(LOCK, [row[1] for row in rows], [row[2] for row in rows])
            found = await lent.fetchmany(RESERVE, rows)
        return [Reserved(row["repeats"], row["refused"] or "") for row in found]

    async def release(self, session_id: UUID) -> None:
        """Give a place back, and forget its request, unless the session is there."""
        async with connection(self.pool, "release") as lent:
            await lent.execute(RELEASE, session_id)

    async def open(self, session: Session, payload: Mapping[str, Any], at: datetime.datetime) -> None:
        """Turn a place into a session and announce it."""
        values = {**vars(session), "target": json.dumps(session.target)}
        if not await self._opening[session.domain_id].ask((*values.values(), at, uuid7(), json.dumps(payload))):
            raise Stale("the place for the session is gone, or its key")

    @functools.cached_property
    def _opening(self) -> Each[UUID, Together[Row, bool]]:
        return Each(lambda _: Together(self._open))

    async def _open(self, rows: list[Row]) -> Sequence[bool]:
        async with connection(self.pool, "open_session") as lent:
            opened = {row["id"] for row in await lent.fetchmany(OPEN, rows)}
        return [row[0] in opened for row in rows]

    async def find(self, session_id: UUID) -> Session | None:
        """Return a session."""
        async with connection(self.pool, "find_session") as lent:
            row = await lent.fetchrow(FIND, session_id)
        return session_of(row) if row else None

    async def page(
        self, project_id: UUID, status: str, kind: str, identity_id: UUID | None, before: UUID | None, count: int,
        at: datetime.datetime,
    ) -> list[Session]:  # fmt: skip
        """Return a project's sessions, newest first."""
        async with connection(self.pool, "page_sessions") as lent:
            rows = await lent.fetch(PAGE, project_id, status, kind, identity_id, before, count, at)
        return [session_of(row) for row in rows]

    async def unrevoked(self, after: UUID, count: int, at: datetime.datetime) -> list[Session]:
        """Return sessions that nobody has revoked yet, by id."""
        async with connection(self.pool, "unrevoked_sessions") as lent:
            return [session_of(row) for row in await lent.fetch(UNREVOKED, after, count, at)]

    async def join(self, session_id: UUID, sign_in_id: UUID, at: datetime.datetime) -> bool:
        """Bind an active session to one more sign-in."""
        async with connection(self.pool, "join_session") as lent:
            return bool(await lent.fetchval(JOIN, session_id, sign_in_id, at))

    async def revoke(self, session: Session, reason: str, payload: Mapping[str, Any], at: datetime.datetime) -> bool:
        """Revoke an active session, deny its token and announce it."""
        async with transaction(self.pool, "revoke_session") as lent:
            if not await lent.fetchval(REVOKE, session.id, at, reason):
                return False
            await lent.execute(FORGET, at)
            await lent.execute(DENY, session.id, session.expires_at)
            scope = f"node:{session.node_id}"
            await add_event(lent, SCHEMA, session.domain_id, "session_revoked", scope, dict(payload), at)
        return True

    async def touch(
        self, session_id: UUID, node_id: UUID, kind: str, report: Mapping[str, Any], at: datetime.datetime
    ) -> bool:
        """Keep a report on an active session of a node and kind."""
        async with connection(self.pool, "touch_session") as lent:
            return bool(await lent.fetchval(TOUCH, session_id, node_id, kind, at, json.dumps(report)))
