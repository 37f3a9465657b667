"""All SQL about sessions; each method is one transaction."""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from libs.errors import Stale
from libs.ids import uuid7
from libs.outbox import add_event
from libs.pg import connection, transaction
from services.access.model import SCHEMA, Budget, Reserved, Session, Wish

# Longer than any request lives, so that a place is never given away under one that is still being decided.
HELD_FOR = datetime.timedelta(seconds=30)
REPEATS_FOR = datetime.timedelta(minutes=10)

COLUMNS = """id, domain_id, project_id, resource_id, node_id, identity_id, sign_in_id, kind, target, issued_at,
expires_at, last_active_at, revoked_at, revoke_reason, kid, claims"""
RESERVE = "SELECT refused, repeats FROM access.reserve($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
RELEASE = """
WITH held AS (DELETE FROM access.reservations WHERE session_id = $1 RETURNING session_id)
DELETE FROM access.requests q USING held WHERE q.session_id = held.session_id
"""
# One statement is one transaction, and one trip: the place, the session and its event go together or not at all.
OPEN = f"""
WITH taken AS (
    DELETE FROM access.reservations WHERE session_id = $1 AND expires_at > $17 RETURNING session_id
), opened AS (
    INSERT INTO access.sessions ({COLUMNS})
    SELECT $1, $2::uuid, $3::uuid, $4::uuid, $5::uuid, $6::uuid, $7::uuid, $8::text, $9::jsonb, $10::timestamptz,
        $11::timestamptz, $12::timestamptz, $13::timestamptz, $14::text, $15::text, $16::text FROM taken
    RETURNING domain_id, node_id
)
INSERT INTO access.event_outbox (id, domain_id, type, scope, payload, created_at)
SELECT $18::uuid, domain_id, 'session_setup', 'node:' || node_id, $19::jsonb, $17 FROM opened RETURNING true
"""
FIND = f"SELECT {COLUMNS} FROM access.sessions WHERE id = $1"
PAGE = f"""
SELECT {COLUMNS} FROM access.sessions
WHERE project_id = $1 AND ($2 = '' OR $2 = CASE WHEN revoked_at IS NOT NULL THEN 'revoked'
        WHEN expires_at > $7 THEN 'active' ELSE 'expired' END)
    AND ($3 = '' OR kind = $3) AND ($4::uuid IS NULL OR identity_id = $4) AND ($5::uuid IS NULL OR id < $5)
ORDER BY id DESC LIMIT $6
"""
ACTIVE = f"""
SELECT {COLUMNS} FROM access.sessions WHERE revoked_at IS NULL AND id > $1 AND expires_at > $3 ORDER BY id LIMIT $2
"""
REVOKE = """
UPDATE access.sessions SET revoked_at = $2, revoke_reason = $3
WHERE id = $1 AND revoked_at IS NULL AND expires_at > $2 RETURNING true
"""
DENY = "INSERT INTO access.denylist (session_id, expires_at) VALUES ($1, $2)"
FORGET = "DELETE FROM access.denylist WHERE expires_at <= $1"
TOUCH = """
UPDATE access.sessions s SET last_active_at = greatest(last_active_at, $4)
WHERE id = $1 AND node_id = $2 AND kind = $3 AND revoked_at IS NULL AND expires_at > $4
    AND NOT EXISTS (SELECT FROM access.denylist d WHERE d.session_id = s.id)
RETURNING true
"""


def session_of(row: asyncpg.Record) -> Session:
    """Return a row as a session."""
    return Session(**{**row, "target": json.loads(row["target"])})


@dataclass(frozen=True)
class PgStore:
    """Sessions in PostgreSQL."""

    pool: asyncpg.Pool

    async def reserve(
        self, session_id: UUID, identity_id: UUID, node_id: UUID, wish: Wish, budget: Budget, at: datetime.datetime
    ) -> Reserved:
        """Hold a place for a session, or say what there is none for."""
        body = wish.body_digest if wish.request_digest else None
        async with connection(self.pool, "reserve") as lent:
            row = await lent.fetchrow(
                RESERVE, session_id, identity_id, node_id, wish.request_digest, body, at, at + HELD_FOR,
                at - REPEATS_FOR, budget.per_identity, budget.per_node, budget.per_minute,
            )  # fmt: skip
        return Reserved(row["repeats"], row["refused"] or "") if row else Reserved()

    async def release(self, session_id: UUID) -> None:
        """Give a place back, and forget its request, unless the session is there."""
        async with connection(self.pool, "release") as lent:
            await lent.execute(RELEASE, session_id)

    async def open(self, session: Session, payload: Mapping[str, Any], at: datetime.datetime) -> None:
        """Turn a place into a session and announce it."""
        values = {**vars(session), "target": json.dumps(session.target)}
        async with connection(self.pool, "open_session") as lent:
            opened = await lent.fetchval(OPEN, *values.values(), at, uuid7(), json.dumps(payload))
        if not opened:
            raise Stale("the place for the session is gone")

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

    async def active(self, after: UUID, count: int, at: datetime.datetime) -> list[Session]:
        """Return active sessions by id."""
        async with connection(self.pool, "active_sessions") as lent:
            return [session_of(row) for row in await lent.fetch(ACTIVE, after, count, at)]

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

    async def touch(self, session_id: UUID, node_id: UUID, kind: str, at: datetime.datetime) -> bool:
        """Note activity of an active session of a node and kind."""
        async with connection(self.pool, "touch_session") as lent:
            return bool(await lent.fetchval(TOUCH, session_id, node_id, kind, at))
