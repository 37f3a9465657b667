"""All SQL of mesh; each method is one transaction."""

from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import DatastoreUnavailable
from libs.pg import connection
from services.mesh.model import PublicHalf, SigningKey

# One statement: the row that is there wins, and comes back like a new one; the rules compare what it says.
REMEMBER = """
WITH made AS (
    INSERT INTO mesh.signing_keys (kid, domain_id, public_key, version) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING
    RETURNING kid, domain_id, public_key, version, created_at, expires_at
)
SELECT kid, domain_id, public_key, version, created_at, expires_at FROM made
UNION ALL
SELECT kid, domain_id, public_key, version, created_at, expires_at FROM mesh.signing_keys
WHERE kid = $1 OR (domain_id = $2 AND version = $4)
LIMIT 1
"""
ATTEMPTS = 2


@dataclass(frozen=True)
class PgStore:
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
