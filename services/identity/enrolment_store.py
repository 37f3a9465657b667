"""Registration in one transaction: token, node, address, key, tuples, event; or nothing."""

import datetime
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import (
    AllocatorContention,
    InvalidRequest,
    MalformedHeartbeat,
    NonceCollision,
    PlexError,
    PoolExhausted,
    PublicKeyInvalid,
    ResourceNotFound,
    SubrangeExhausted,
    TokenConsumed,
    TokenExpired,
    TokenRevoked,
)
from libs.ids import parse_uuid
from libs.pg import connection, transaction
from services.identity.model import BootstrapToken, Candidate, Peer, Registered, Resource, Tuple, WrappedKey
from services.identity.node_key_store import add_key, revoke_keys
from services.identity.node_model import Wanted
from services.identity.node_store import LOCK_NODE, PEER, announce, peer_of, text_of
from services.identity.relation_store import add_tuples
from services.identity.store import BOOTSTRAP, LOCK_RANGES, RESOURCE

CONSUME = """
UPDATE identity.bootstrap_tokens SET consumed_at = $2, nonce = $3, public_key = $4, node_id = $5
WHERE id = $1 AND consumed_at IS NULL AND revoked_at IS NULL AND expires_at > $2 RETURNING true
"""
KEYED = "EXISTS (SELECT FROM identity.node_secret_keys k WHERE k.node_id = n.id AND k.revoked_at IS NULL)"
NODE_OF = f"SELECT n.id, {KEYED} AS keyed FROM identity.nodes n WHERE n.resource_id = $1"
RANGES = f"""
SELECT d.mesh_cidr, p.sub_range_cidr, n.id AS node_id, {KEYED} AS keyed
FROM identity.projects p JOIN identity.domains d ON d.id = p.domain_id
LEFT JOIN identity.nodes n ON n.resource_id = $2 WHERE p.id = $1
"""
# The lowest free host address outside other projects' ranges: the first one, or the one after a taken one or range.
LOWEST_FREE = """
WITH bounds AS (SELECT host(network($2::cidr))::inet + 1 AS low, host(broadcast($2::cidr))::inet - 1 AS high),
others AS (SELECT sub_range_cidr AS cidr FROM identity.projects WHERE domain_id = $1 AND id <> $3)
SELECT candidate FROM (
    SELECT low AS candidate FROM bounds
    UNION ALL
    SELECT n.mesh_ip + 1 FROM identity.nodes n, bounds WHERE n.domain_id = $1 AND n.mesh_ip BETWEEN low AND high
    UNION ALL
    SELECT host(broadcast(cidr))::inet + 1 FROM others, bounds WHERE broadcast(cidr) < high
) free, bounds
WHERE candidate BETWEEN low AND high
  AND NOT EXISTS (SELECT FROM identity.nodes n WHERE n.domain_id = $1 AND n.mesh_ip = candidate)
  AND NOT EXISTS (SELECT FROM others WHERE candidate <<= cidr)
ORDER BY candidate LIMIT 1
"""
# A retry is one of the registration that stands: nobody revoked its key, and no later token registered the node again.
RETRIED = f"""
SELECT n.id, n.domain_id, n.mesh_ip, d.mesh_cidr,
    {KEYED} AND NOT EXISTS (
        SELECT FROM identity.bootstrap_tokens t WHERE t.node_id = n.id AND t.consumed_at > $3
    ) AS stands
FROM identity.nodes n JOIN identity.domains d ON d.id = n.domain_id WHERE n.id = $1 AND n.resource_id = $2
"""
ADD_NODE = """
INSERT INTO identity.nodes (id, resource_id, project_id, domain_id, mesh_ip, public_key, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
PEERS = """
SELECT n.id, n.mesh_ip, n.public_key, e.endpoint FROM identity.nodes n
LEFT JOIN identity.endpoints e ON e.node_id = n.id WHERE n.domain_id = $1 AND n.id <> $2 ORDER BY n.id
"""
# A node is healthy since its registration, or since it was heard of again after it had been silent for too long.
BEAT = """
WITH place AS (
    SELECT n.id, n.created_at, make_interval(secs => d.stale_after_s) AS stale_after
    FROM identity.nodes n JOIN identity.domains d ON d.id = n.domain_id WHERE n.id = $1
)
INSERT INTO identity.heartbeats AS h
    (node_id, accepted_at, binary_checksum, binary_version, nat_summary, healthy_since)
SELECT id, $2, $3, $4, $5, CASE WHEN $2 < created_at + stale_after THEN created_at ELSE $2 END FROM place
ON CONFLICT (node_id) DO UPDATE
SET accepted_at = $2, binary_checksum = $3, binary_version = $4, nat_summary = $5,
    healthy_since = CASE WHEN $2 < h.accepted_at + (SELECT stale_after FROM place) THEN h.healthy_since ELSE $2 END
RETURNING EXISTS (SELECT FROM identity.key_rotations WHERE node_id = $1 AND completed_at IS NULL) AS rotate_keys,
    healthy_since = $2 AS reconcile
"""


def uuid_or_none(text: str) -> UUID | None:
    """Return what may be an id, in either case."""
    try:
        return parse_uuid(text.lower())
    except ValueError:
        return None


@dataclass(frozen=True)
class PgEnrolmentStore:
    """Registration and heartbeats in PostgreSQL."""

    pool: asyncpg.Pool

    async def find_token(self, selector: str) -> BootstrapToken | None:
        """Return a token by its selector."""
        async with connection(self.pool, "find_token") as lent:
            sql = f"SELECT {BOOTSTRAP} FROM identity.bootstrap_tokens WHERE selector = $1"
            row = await lent.fetchrow(sql, selector)
        return BootstrapToken(**row) if row else None

    async def domain_of(self, project_id: UUID) -> UUID | None:
        """Return the Domain of a project."""
        async with connection(self.pool, "domain_of") as lent:
            domain: UUID | None = await lent.fetchval(
                "SELECT domain_id FROM identity.projects WHERE id = $1", project_id
            )
        return domain

    async def find_resource(self, project_id: UUID, handle: str) -> Resource | None:
        """Return a project's resource by id or by its name elsewhere."""
        sql = f"""
        SELECT {RESOURCE} FROM identity.resources
        WHERE project_id = $1 AND (id = $3 OR external_ref = $2) ORDER BY id = $3 DESC NULLS LAST LIMIT 1
        """
        async with connection(self.pool, "find_resource") as lent:
            row = await lent.fetchrow(sql, project_id, handle, uuid_or_none(handle))
        return Resource(**row) if row else None

    async def node_of(self, resource_id: UUID) -> tuple[UUID, bool] | None:
        """Return the node of a resource, and whether it has a key that counts."""
        async with connection(self.pool, "node_of") as lent:
            row = await lent.fetchrow(NODE_OF, resource_id)
        return (row["id"], row["keyed"]) if row else None

    async def register(
        self, token: BootstrapToken, resource: Resource, node: Candidate, at: datetime.datetime
    ) -> Registered:
        """Consume the token and create all that a node is, in one transaction, or nothing."""
        try:
            async with transaction(self.pool, "register") as lent:
                if not await lent.fetchval(CONSUME, token.id, at, node.nonce, node.public_key, node.node_id):
                    raise await self._lost(lent, token, node)
                # One allocation of a Domain at a time; the UNIQUE constraint stays the judge.
                await lent.execute(LOCK_RANGES, str(resource.domain_id))
                peer, mesh_cidr, told = await self._place(lent, resource, node, at)
                await add_key(lent, node.node_id, node.key, at)
                this, project = f"node:{node.node_id}", f"project:{resource.project_id}"
                await add_tuples(
                    lent,
                    [
                        Tuple(this, "project", project),
                        Tuple(this, "agent", this),
                        Tuple(project, "agent", this),
                        Tuple(f"resource:{resource.id}", "agent", this),
                    ],
                )
                await announce(lent, resource.domain_id, told, peer, at)
                peers = await self._peers(lent, resource.domain_id, node.node_id)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name == "nonce_once":
                raise NonceCollision from None
            if error.constraint_name == "one_node_a_mesh_key":
                raise PublicKeyInvalid("another node has this key") from None
            raise AllocatorContention from None
        except asyncpg.ForeignKeyViolationError:
            raise ResourceNotFound from None
        return Registered(node.node_id, peer.mesh_ip, peers, mesh_cidr)

    async def _lost(self, lent: asyncpg.Connection, token: BootstrapToken, node: Candidate) -> PlexError:
        """Say why the token could not be consumed a moment after it looked as if it could."""
        sql = "SELECT consumed_at, revoked_at, nonce, public_key FROM identity.bootstrap_tokens WHERE id = $1"
        row = await lent.fetchrow(sql, token.id)
        if row is None or row["revoked_at"] is not None:
            return TokenRevoked()
        if row["consumed_at"] is None:
            return TokenExpired()
        # The same request twice at once: whoever lost the race is told to come back, and then gets its key.
        same = (row["nonce"], row["public_key"]) == (node.nonce, node.public_key)
        return AllocatorContention() if same else TokenConsumed()

    async def _place(
        self, lent: asyncpg.Connection, resource: Resource, node: Candidate, at: datetime.datetime
    ) -> tuple[Peer, str, str]:
        """Give the node its row; returns it as a peer, the Domain's range, and what its peers are told."""
        ranges = await lent.fetchrow(RANGES, resource.project_id, resource.id)
        if ranges is None:
            raise ResourceNotFound
        mesh_cidr = str(ranges["mesh_cidr"])
        if ranges["node_id"] is not None:
            if ranges["keyed"] or ranges["node_id"] != node.node_id:
                raise ResourceNotFound("the resource is registered already")
            await lent.execute("UPDATE identity.nodes SET public_key = $2 WHERE id = $1", node.node_id, node.public_key)
            (row,) = await lent.fetch(PEER, node.node_id)
            return peer_of(row), mesh_cidr, "peer_key_rotated"
        within = ranges["sub_range_cidr"] or ranges["mesh_cidr"]
        address = await lent.fetchval(LOWEST_FREE, resource.domain_id, within, resource.project_id)
        if address is None:
            raise SubrangeExhausted if ranges["sub_range_cidr"] else PoolExhausted
        await lent.execute(
            ADD_NODE, node.node_id, resource.id, resource.project_id, resource.domain_id, address, node.public_key, at
        )
        return Peer(node.node_id, text_of(address), node.public_key), mesh_cidr, "peer_added"

    async def _peers(self, lent: asyncpg.Connection, domain_id: UUID, node_id: UUID) -> list[Peer]:
        return [peer_of(row) for row in await lent.fetch(PEERS, domain_id, node_id)]

    async def replace_key(
        self, token: BootstrapToken, resource: Resource, key: WrappedKey, at: datetime.datetime
    ) -> Registered:
        """Give the token's node a fresh key; the earlier one is revoked in the same transaction."""
        async with transaction(self.pool, "replace_key") as lent:
            # A statement of its own: who held the lock may have revoked the keys.
            await lent.execute(LOCK_NODE, token.node_id)
            node = await lent.fetchrow(RETRIED, token.node_id, resource.id, token.consumed_at)
            if node is None:
                raise NonceCollision
            if not node["stands"]:
                raise TokenConsumed
            await revoke_keys(lent, node["id"], at)
            await add_key(lent, node["id"], key, at)
            peers = await self._peers(lent, node["domain_id"], node["id"])
        return Registered(node["id"], text_of(node["mesh_ip"]), peers, str(node["mesh_cidr"]))

    async def heartbeat(
        self, node_id: UUID, checksum: bytes, version: str, nat_summary: str, at: datetime.datetime
    ) -> Wanted | None:
        """Take a sign of life; returns what the node should do, None when there is no such node."""
        try:
            async with transaction(self.pool, "heartbeat") as lent:
                row = await lent.fetchrow(BEAT, node_id, at, checksum, version, nat_summary)
        except asyncpg.ForeignKeyViolationError:
            return None
        except (asyncpg.InvalidTextRepresentationError, InvalidRequest):
            raise MalformedHeartbeat("nat_summary cannot be stored") from None
        return Wanted(**row) if row else None
