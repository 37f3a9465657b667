"""All SQL about session keys; each method is one transaction."""

import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import RotationUnderWay, Stale
from libs.pg import connection, transaction
from libs.together import Together
from services.access.model import PublicHalf, SessionKey

COLUMNS = "kid, domain_id, public_key, version, created_at, expires_at, revoked_at"
KEYS = f"SELECT {COLUMNS} FROM access.signing_keys WHERE domain_id = ANY ($1) ORDER BY version"
ADD = "INSERT INTO access.signing_keys (kid, domain_id, public_key, version, created_at) VALUES ($1, $2, $3, $4, $5)"
# Only where there is no other: a second first key would be one that nobody asked for.
FIRST = f"{ADD} ON CONFLICT DO NOTHING"


@dataclass(frozen=True)
class PgKeyStore:
    """Public halves in PostgreSQL."""

    pool: asyncpg.Pool

    async def keys(self, domain_id: UUID) -> list[SessionKey]:
        """Return a Domain's keys, oldest first."""
        return await self._keys.ask(domain_id)

    @functools.cached_property
    def _keys(self) -> Together[UUID, list[SessionKey]]:
        return Together(self._find)

    async def _find(self, domain_ids: list[UUID]) -> Sequence[list[SessionKey]]:
        found: dict[UUID, list[SessionKey]] = {domain_id: [] for domain_id in domain_ids}
        async with connection(self.pool, "session_keys") as lent:
            for row in await lent.fetch(KEYS, list(found)):
                found[row["domain_id"]].append(SessionKey(**row))
        return [list(found[domain_id]) for domain_id in domain_ids]

    async def remember(self, domain_id: UUID, half: PublicHalf, at: datetime.datetime) -> None:
        """Record a Domain's first key; one that is there stays."""
        async with connection(self.pool, "remember_key") as lent:
            await lent.execute(FIRST, half.kid, domain_id, half.public_key, half.version, at)

    async def succeed(self, domain_id: UUID, half: PublicHalf, at: datetime.datetime, until: datetime.datetime) -> None:
        """Let a key sign from now on, and the one before verify until a time; of two at once one is refused."""
        ends = """
        UPDATE access.signing_keys SET expires_at = $2
        WHERE domain_id = $1 AND expires_at IS NULL AND revoked_at IS NULL
        """
        try:
            async with transaction(self.pool, "succeed_key") as lent:
                await lent.execute(ends, domain_id, until)
                await lent.execute(ADD, half.kid, domain_id, half.public_key, half.version, at)
        except asyncpg.UniqueViolationError:
            raise RotationUnderWay from None

    async def revoke(self, key: SessionKey, successor: PublicHalf | None, at: datetime.datetime) -> None:
        """Revoke a key; of a current one the successor signs from now on."""
        ends = (
            "UPDATE access.signing_keys SET revoked_at = $2 WHERE kid = $1 AND revoked_at IS NULL RETURNING expires_at"
        )
        try:
            async with transaction(self.pool, "revoke_key") as lent:
                row = await lent.fetchrow(ends, key.kid, at)
                if row is None or (row["expires_at"] is None) is (successor is None):
                    raise Stale
                if successor is not None:
                    await lent.execute(
                        ADD, successor.kid, key.domain_id, successor.public_key, successor.version, at
                    )  # fmt: skip
        except asyncpg.UniqueViolationError:
            raise RotationUnderWay from None
