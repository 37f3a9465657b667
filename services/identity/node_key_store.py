"""Node keys in PostgreSQL: of each node one is current, and one that it superseded may count for a while."""

import asyncio
import datetime
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import structlog

from libs.clock import Clock
from libs.errors import DatastoreUnavailable
from libs.pg import connection, transaction
from services.identity.model import WrappedKey
from services.identity.node_store import LOCK_NODE
from services.identity.relation_store import notify
from services.identity.relations import Revocation

RETIRE_EVERY_S = 1.0
LIVE = "SELECT kid, valid_until FROM identity.node_secret_keys WHERE node_id = $1 AND revoked_at IS NULL"
REVOKE = """
UPDATE identity.node_secret_keys SET revoked_at = $2
WHERE node_id = $1 AND revoked_at IS NULL AND kid <> $3 RETURNING kid
"""
RETIRE = """
UPDATE identity.node_secret_keys SET revoked_at = valid_until
WHERE revoked_at IS NULL AND valid_until <= $1 RETURNING node_id
"""
ADD = """
INSERT INTO identity.node_secret_keys (kid, node_id, domain_id, wrapped, fingerprint, created_at)
SELECT w.kid, n.id, n.domain_id, w.wrapped, w.fingerprint, $5
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[]) AS w (node_id, kid, wrapped, fingerprint)
JOIN identity.nodes n ON n.id = w.node_id
"""

log = structlog.get_logger()


async def add_keys(lent: asyncpg.Connection, keys: list[tuple[UUID, WrappedKey]], at: datetime.datetime) -> None:
    """Store nodes' current keys, in the transaction that made room for them."""
    rows = [(node_id, key.kid, key.wrapped, key.fingerprint) for node_id, key in keys]
    await lent.execute(ADD, *zip(*rows, strict=True), at)


async def revoke_keys(lent: asyncpg.Connection, node_id: UUID, at: datetime.datetime, keep: str = "") -> None:
    """End a node's keys but for one, and tell the feed when any did."""
    if await lent.fetch(REVOKE, node_id, at, keep):
        await notify(lent, Revocation("node", str(node_id)))


@dataclass(frozen=True)
class PgNodeKeyStore:
    """Node keys in PostgreSQL."""

    pool: asyncpg.Pool

    async def domain_of(self, node_id: UUID) -> UUID | None:
        """Return the Domain of a node, with keys or without."""
        async with connection(self.pool, "domain_of_node") as lent:
            domain: UUID | None = await lent.fetchval("SELECT domain_id FROM identity.nodes WHERE id = $1", node_id)
        return domain

    async def made_since(self, node_id: UUID, since: datetime.datetime) -> int:
        """Return how many keys of a node were made after a time."""
        sql = "SELECT count(*) FROM identity.node_secret_keys WHERE node_id = $1 AND created_at > $2"
        async with connection(self.pool, "keys_made") as lent:
            return int(await lent.fetchval(sql, node_id, since))

    async def rotate(
        self, node_id: UUID, kid: str, key: WrappedKey, at: datetime.datetime, until: datetime.datetime
    ) -> datetime.datetime | None:
        """Put a fresh key beside the one with this KID, and end any other; None when the KID counts no longer.

        Returns until when that KID counts: a superseded one keeps its time.
        """
        async with transaction(self.pool, "rotate_node_key") as lent:
            await lent.execute(LOCK_NODE, node_id)
            live = {row["kid"]: row["valid_until"] for row in await lent.fetch(LIVE, node_id)}
            if kid not in live or (live[kid] or until) <= at:
                return None
            await revoke_keys(lent, node_id, at, keep=kid)
            last = live[kid] or until
            await lent.execute("UPDATE identity.node_secret_keys SET valid_until = $2 WHERE kid = $1", kid, last)
            await add_keys(lent, [(node_id, key)], at)
        return last

    async def revoke(self, node_id: UUID, at: datetime.datetime) -> None:
        """End all keys of a node."""
        async with transaction(self.pool, "revoke_node_keys") as lent:
            await lent.execute(LOCK_NODE, node_id)
            await revoke_keys(lent, node_id, at)

    async def retire(self, at: datetime.datetime) -> None:
        """End the superseded keys whose grace is over; their nodes' streams open anew, with the current key."""
        async with transaction(self.pool, "retire_node_keys") as lent:
            for row in await lent.fetch(RETIRE, at):
                await notify(lent, Revocation("node", str(row["node_id"])))


async def retire_keys(store: PgNodeKeyStore, clock: Clock) -> None:
    """Retire keys for ever. A bearer is refused from its time on even when this does not run."""
    while True:
        try:
            await store.retire(clock.now())
        except DatastoreUnavailable as error:
            log.warning("node_keys.not_retired", reason=str(error))
        await asyncio.sleep(RETIRE_EVERY_S)
