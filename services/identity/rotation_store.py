"""Rotations of mesh keys in PostgreSQL: at most one pending for a node, and receipts of those that are complete."""

import datetime
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import KeysRotateKeyInvalid, KeysRotatePeerNotFound
from libs.ids import uuid7
from libs.outbox import add_event
from libs.pg import connection, transaction
from services.identity.model import NodePlace, Peer
from services.identity.node_model import AffectedPeer, Impact, MeshKey, Receipt
from services.identity.node_store import announce, lock_peer
from services.identity.store import LOCK_RANGES, PgStore

CURRENT = "k.revoked_at IS NULL AND k.valid_until IS NULL"
PENDING = "SELECT id FROM identity.key_rotations WHERE node_id = $1 AND completed_at IS NULL"
# The receipt belongs to the key in force: of the newest rotation that brought it, where one did.
MESH_KEY = f"""
SELECT n.public_key, ({PENDING}) AS pending, r.id, r.kid, r.wrap_key_version
FROM identity.nodes n LEFT JOIN LATERAL (
    SELECT id, kid, wrap_key_version FROM identity.key_rotations
    WHERE node_id = n.id AND public_key = n.public_key ORDER BY completed_at DESC LIMIT 1
) r ON true
WHERE n.id = $1
"""
IMPACT = f"""
SELECT ({PENDING}) IS NOT NULL AS pending, d.heartbeat_interval_s, n.id, k.kid,
    substring(k.wrapped from '^vault:v([0-9]+):')::int AS version
FROM identity.nodes self
JOIN identity.domains d ON d.id = self.domain_id
LEFT JOIN (identity.nodes n JOIN identity.node_secret_keys k ON k.node_id = n.id AND {CURRENT})
    ON n.domain_id = self.domain_id AND n.id <> self.id
WHERE self.id = $1 ORDER BY n.id
"""
IN_USE = "SELECT EXISTS (SELECT FROM identity.nodes WHERE domain_id = $1 AND id <> $2 AND public_key = $3)"
COMPLETE = f"""
UPDATE identity.key_rotations r
SET completed_at = $3, public_key = $4, kid = k.kid,
    wrap_key_version = substring(k.wrapped from '^vault:v([0-9]+):')::int
FROM identity.node_secret_keys k
WHERE r.id = $2 AND r.node_id = $1 AND r.completed_at IS NULL AND k.node_id = $1 AND {CURRENT}
RETURNING r.kid, r.wrap_key_version
"""


@dataclass(frozen=True)
class PgRotationStore:
    """Rotations of mesh keys in PostgreSQL."""

    pool: asyncpg.Pool

    async def place(self, node_id: UUID) -> NodePlace | None:
        """Return where a node stands."""
        return await PgStore(self.pool).place(node_id)

    async def request(self, node_id: UUID, at: datetime.datetime) -> tuple[UUID, bool] | None:
        """Return the pending rotation and whether it was pending before; a new one is announced. None: no such node."""
        async with transaction(self.pool, "request_rotation") as lent:
            found = await lock_peer(lent, node_id)
            if found is None:
                return None
            pending: UUID | None = await lent.fetchval(PENDING, node_id)
            if pending is not None:
                return pending, True
            rotation_id, (domain_id, _) = uuid7(), found
            await lent.execute(
                "INSERT INTO identity.key_rotations (id, node_id, requested_at) VALUES ($1, $2, $3)",
                rotation_id, node_id, at,
            )  # fmt: skip
            payload = {"rotation_id": str(rotation_id)}
            await add_event(lent, "identity", domain_id, "rotate_keys", f"node:{node_id}", payload, at)
        return rotation_id, False

    async def impact(self, node_id: UUID) -> Impact | None:
        """Return what a new key would mean."""
        async with connection(self.pool, "rotation_impact") as lent:
            rows = await lent.fetch(IMPACT, node_id)
        if not rows:
            return None
        peers = [AffectedPeer(row["id"], row["kid"], row["version"]) for row in rows if row["id"] is not None]
        return Impact(peers, rows[0]["pending"], rows[0]["heartbeat_interval_s"])

    async def mesh_key(self, node_id: UUID) -> MeshKey | None:
        """Return what is known of a node's mesh key."""
        async with connection(self.pool, "mesh_key") as lent:
            row = await lent.fetchrow(MESH_KEY, node_id)
        if row is None:
            return None
        receipt = Receipt(row["id"], row["kid"], row["wrap_key_version"]) if row["id"] else None
        return MeshKey(row["public_key"], row["pending"], receipt)

    async def complete(
        self, node_id: UUID, rotation_id: UUID, public_key: bytes, at: datetime.datetime
    ) -> Receipt | None:
        """Put a key in force, finish its rotation and tell the peers; None when the rotation is not pending."""
        async with transaction(self.pool, "complete_rotation") as lent:
            found = await lock_peer(lent, node_id)
            if found is None:
                raise KeysRotatePeerNotFound
            domain_id, peer = found
            # One at a time in a Domain: with another node's key, its traffic would come here.
            await lent.execute(LOCK_RANGES, str(domain_id))
            if await lent.fetchval(IN_USE, domain_id, node_id, public_key):
                raise KeysRotateKeyInvalid("another node has this key")
            row = await lent.fetchrow(COMPLETE, node_id, rotation_id, at, public_key)
            if row is None:
                return None
            await lent.execute("UPDATE identity.nodes SET public_key = $2 WHERE id = $1", node_id, public_key)
            rotated = Peer(peer.node_id, peer.mesh_ip, public_key, peer.fallback_endpoint)
            await announce(lent, domain_id, [("peer_key_rotated", rotated)], at)
        return Receipt(rotation_id, row["kid"], row["wrap_key_version"])
