"""All SQL about signing keys; each method is one transaction."""

import datetime
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from libs.errors import DatastoreUnavailable, RotationUnderWay, Stale
from libs.ids import uuid7
from libs.outbox import add_event
from libs.pg import connection, transaction
from services.mesh.model import STATE_UPDATED, Keys, PublicHalf, SigningKey

SCHEMA = "mesh"
COLUMNS = (
    "kid, domain_id, public_key, version, created_at, expires_at, activated_at, revoked_at, transition_expires, "
    "announcement_id, transition"
)

# One statement: the row that is there wins, and comes back like a new one; the rules compare what it says.
REMEMBER = f"""
WITH made AS (
    INSERT INTO mesh.signing_keys (kid, domain_id, public_key, version) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING
    RETURNING {COLUMNS}
)
SELECT {COLUMNS} FROM made
UNION ALL
SELECT {COLUMNS} FROM mesh.signing_keys WHERE kid = $1 OR (domain_id = $2 AND version = $4)
LIMIT 1
"""
ATTEMPTS = 2
KEYS = f"SELECT {COLUMNS} FROM mesh.signing_keys WHERE domain_id = ANY ($1) ORDER BY version"
LOCK = f"SELECT {COLUMNS} FROM mesh.signing_keys WHERE domain_id = $1 ORDER BY version FOR UPDATE"
ADD = f"""
INSERT INTO mesh.signing_keys (kid, domain_id, public_key, version, activated_at, transition_expires, announcement_id,
    transition)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING {COLUMNS}
"""
RENEW = f"""
UPDATE mesh.signing_keys SET announcement_id = $3, transition_expires = $4::timestamptz + transition
WHERE kid = $1 AND announcement_id = $2 AND activated_at IS NULL AND revoked_at IS NULL
RETURNING {COLUMNS}
"""
PENDING = (
    f"SELECT {COLUMNS} FROM mesh.signing_keys WHERE activated_at IS NULL AND revoked_at IS NULL AND created_at <= $1 "
    "ORDER BY created_at"
)
TO_ANNOUNCE = f"""
SELECT {COLUMNS} FROM mesh.signing_keys
WHERE activated_at IS NOT NULL AND expires_at IS NULL AND revoked_at IS NULL AND transition_expires > $1
  AND announcement_id IS NOT NULL AND announced_at < $2
"""
ASK = """
INSERT INTO mesh.reconciles AS r (domain_id, announced_at) VALUES ($1, $2)
ON CONFLICT (domain_id) DO UPDATE SET announced_at = $2 WHERE r.announced_at <= $2 - $3::interval
RETURNING true
"""


@dataclass(frozen=True)
class PgKeyStore:
    """Public halves in PostgreSQL."""

    pool: asyncpg.Pool

    async def remember(self, domain_id: UUID, half: PublicHalf) -> SigningKey:
        """Return the row of a key version, made when it was not there."""
        async with connection(self.pool, "remember_key") as lent:
            for _ in range(ATTEMPTS):
                row = await lent.fetchrow(REMEMBER, half.kid, domain_id, half.public_key, half.version)
                if row is not None:
                    return SigningKey(**row)
                # Somebody committed the row after this statement had taken its snapshot; the next one sees it.
        raise DatastoreUnavailable("the row of a signing key went away")

    async def keys(self, domain_ids: Collection[UUID]) -> dict[UUID, Keys]:
        """Return the Domains' keys, oldest first."""
        async with connection(self.pool, "keys") as lent:
            rows = await lent.fetch(KEYS, list(domain_ids))
        found: dict[UUID, list[SigningKey]] = defaultdict(list)
        for row in rows:
            found[row["domain_id"]].append(SigningKey(**row))
        return {domain_id: Keys(tuple(keys)) for domain_id, keys in found.items()}

    async def begin_rotation(
        self, domain_id: UUID, half: PublicHalf, transition: datetime.timedelta, at: datetime.datetime
    ) -> SigningKey:
        """Record a key that is to be announced; raises RotationUnderWay when another one is, or still in transition."""
        async with transaction(self.pool, "begin_rotation") as lent:
            keys = Keys(tuple(SigningKey(**row) for row in await lent.fetch(LOCK, domain_id)))
            if keys.pending or keys.previous(at):
                raise RotationUnderWay
            try:
                rows = await lent.fetch(
                    ADD, half.kid, domain_id, half.public_key, half.version, None, at + transition, uuid7(), transition
                )
            except asyncpg.UniqueViolationError:
                raise RotationUnderWay from None
        return SigningKey(**rows[0])

    async def activate(self, key: SigningKey, at: datetime.datetime) -> None:
        """Make an announced key the one that signs, and begin the transition of the one before it."""
        async with transaction(self.pool, "activate_key") as lent:
            keys = Keys(tuple(SigningKey(**row) for row in await lent.fetch(LOCK, key.domain_id)))
            now = keys.by_id(key.kid)
            if now is None or not now.pending or now.announcement_id != key.announcement_id:
                return
            if keys.current:
                sql = "UPDATE mesh.signing_keys SET expires_at = $2 WHERE kid = $1"
                await lent.execute(sql, keys.current.kid, now.transition_expires)
            await lent.execute(
                "UPDATE mesh.signing_keys SET activated_at = $2, announced_at = $2 WHERE kid = $1", key.kid, at
            )

    async def revoke(self, key: SigningKey, successor: PublicHalf | None, at: datetime.datetime) -> None:
        """Revoke a key; of a current one the successor signs from now on. Announces it in the same transaction.

        Raises Stale when the key is the current one and there is no successor.
        """
        async with transaction(self.pool, "revoke_key") as lent:
            keys = Keys(tuple(SigningKey(**row) for row in await lent.fetch(LOCK, key.domain_id)))
            current = keys.current is not None and keys.current.kid == key.kid
            if current and successor is None:
                raise Stale
            await lent.execute("UPDATE mesh.signing_keys SET revoked_at = $2 WHERE kid = $1", key.kid, at)
            if current and successor is not None:
                await lent.execute(
                    ADD, successor.kid, key.domain_id, successor.public_key, successor.version, at, None, None, None
                )
            payload = {"node_id": str(key.domain_id), "revision": key.kid, "reason": "signing_key_revoked"}
            await add_event(lent, SCHEMA, key.domain_id, STATE_UPDATED, f"domain:{key.domain_id}", payload, at)

    async def pending(self, before: datetime.datetime) -> list[SigningKey]:
        """Return the keys that were recorded before a time and are not announced."""
        async with connection(self.pool, "pending_keys") as lent:
            return [SigningKey(**row) for row in await lent.fetch(PENDING, before)]

    async def to_announce(self, at: datetime.datetime, before: datetime.datetime) -> list[SigningKey]:
        """Return the keys in transition at `at` whose last announcement was before `before`."""
        async with connection(self.pool, "keys_to_announce") as lent:
            return [SigningKey(**row) for row in await lent.fetch(TO_ANNOUNCE, at, before)]

    async def repeat(self, key: SigningKey, payload: dict[str, Any], at: datetime.datetime) -> None:
        """Put one more announcement of a key into the outbox, and note when."""
        async with transaction(self.pool, "repeat_announcement") as lent:
            sql = "UPDATE mesh.signing_keys SET announced_at = $2 WHERE kid = $1 AND announced_at < $2 RETURNING true"
            if await lent.fetchval(sql, key.kid, at):
                scope = f"domain:{key.domain_id}"
                await add_event(lent, SCHEMA, key.domain_id, "signing_key_rotated", scope, payload, at)

    async def renew(self, key: SigningKey, announcement_id: UUID, at: datetime.datetime) -> SigningKey:
        """Give the announcement of a pending key another id, and let its transition begin at `at`."""
        async with connection(self.pool, "renew_announcement") as lent:
            row = await lent.fetchrow(RENEW, key.kid, key.announcement_id, announcement_id, at)
        if row is None:
            raise RotationUnderWay
        return SigningKey(**row)

    async def ask_reconcile(
        self,
        domain_id: UUID,
        events: Sequence[tuple[str, dict[str, Any]]],
        at: datetime.datetime,
        quiet: datetime.timedelta,
    ) -> bool:
        """Put events for a Domain's nodes into the outbox; False when some were put there within `quiet`."""
        async with transaction(self.pool, "ask_reconcile") as lent:
            if not await lent.fetchval(ASK, domain_id, at, quiet):
                return False
            for kind, payload in events:
                await add_event(lent, SCHEMA, domain_id, kind, f"domain:{domain_id}", payload, at)
        return True
