"""What is stored of registered nodes: what is around them, when they were heard of, where they are reached."""

import datetime
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from libs.errors import EndpointPeerGone, EndpointPeerNotFound
from libs.outbox import Event, add_events
from libs.pg import connection, transaction
from services.identity.model import Peer, Reachability
from services.identity.node_model import SignsOfLife, Surroundings, peer_object, spend_change

# The Domain's nodes, the node itself among them: one statement is one moment.
AROUND = """
SELECT n.id, n.mesh_ip, n.public_key, e.endpoint, n.created_at, h.accepted_at, h.healthy_since, d.id AS domain_id,
    d.heartbeat_interval_s, d.stale_after_s, d.unreachable_after_s
FROM identity.nodes self
JOIN identity.domains d ON d.id = self.domain_id
JOIN identity.nodes n ON n.domain_id = self.domain_id
LEFT JOIN identity.endpoints e ON e.node_id = n.id
LEFT JOIN identity.heartbeats h ON h.node_id = n.id AND n.id = self.id
WHERE self.id = $1 ORDER BY n.id
"""
SIGNS = """
SELECT n.created_at, h.accepted_at, h.healthy_since, d.heartbeat_interval_s, d.stale_after_s, d.unreachable_after_s
FROM identity.nodes n
JOIN identity.domains d ON d.id = n.domain_id
LEFT JOIN identity.heartbeats h ON h.node_id = n.id
WHERE n.id = $1
"""
# Held by whatever announces a node as a peer: what is announced is then what is stored, in the same order.
LOCK_NODE = "SELECT true FROM identity.nodes WHERE id = $1 FOR NO KEY UPDATE"
PEER = """
SELECT n.id, n.domain_id, n.mesh_ip, n.public_key, e.endpoint FROM identity.nodes n
LEFT JOIN identity.endpoints e ON e.node_id = n.id WHERE n.id = $1
"""
REPORT = """
INSERT INTO identity.endpoints AS e (node_id, endpoint, nat_type, reported_at, accepted_at)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (node_id) DO UPDATE SET endpoint = $2, nat_type = $3, reported_at = $4, accepted_at = $5
WHERE e.reported_at <= $4 RETURNING changes_tat
"""


def text_of(address: Any) -> str:
    """Return an address without the prefix that a column of type `inet` may have."""
    return str(getattr(address, "ip", address))


def peer_of(row: asyncpg.Record) -> Peer:
    """Return a row as a peer."""
    return Peer(row["id"], text_of(row["mesh_ip"]), row["public_key"], row["endpoint"] or "")


def signs_of(row: asyncpg.Record) -> SignsOfLife:
    """Return a row as a node's signs of life."""
    policy = Reachability(row["heartbeat_interval_s"], row["stale_after_s"], row["unreachable_after_s"])
    return SignsOfLife(row["created_at"], row["accepted_at"], row["healthy_since"], policy)


async def lock_peer(lent: asyncpg.Connection, node_id: UUID) -> tuple[UUID, Peer] | None:
    """Lock a node against whatever else announces it; returns its Domain and the node as peers see it."""
    await lent.execute(LOCK_NODE, node_id)
    # A statement of its own: whoever held the lock may have changed what is joined to the row.
    row = await lent.fetchrow(PEER, node_id)
    return (row["domain_id"], peer_of(row)) if row else None


async def announce(
    lent: asyncpg.Connection, domain_id: UUID, told: list[tuple[str, Peer]], at: datetime.datetime
) -> None:
    """Tell the Domain's nodes what became of peers, in the transaction of the change and after it."""
    scope = f"domain:{domain_id}"
    events = [Event(domain_id, kind, scope, {"peer": peer_object(peer)}) for kind, peer in told]
    await add_events(lent, "identity", events, at)


@dataclass(frozen=True)
class PgNodeStore:
    """Registered nodes in PostgreSQL."""

    pool: asyncpg.Pool

    async def surroundings(self, node_id: UUID) -> Surroundings | None:
        """Return a node and its peers in one round trip."""
        async with connection(self.pool, "surroundings") as lent:
            rows = await lent.fetch(AROUND, node_id)
        this = next((row for row in rows if row["id"] == node_id), None)
        if this is None:
            return None
        return Surroundings(this["domain_id"], signs_of(this), [peer_of(row) for row in rows if row is not this])

    async def signs(self, node_id: UUID) -> SignsOfLife | None:
        """Return when a node was heard of."""
        async with connection(self.pool, "signs") as lent:
            row = await lent.fetchrow(SIGNS, node_id)
        return signs_of(row) if row else None

    async def report_endpoint(
        self, node_id: UUID, endpoint: str, nat_type: str, reported_at: datetime.datetime, at: datetime.datetime
    ) -> None:
        """Store where a node is reached, and tell its peers when that is new; an older report changes nothing.

        Raises TooMany, and stores nothing, when the node's peers were told too often already.
        """
        async with transaction(self.pool, "report_endpoint") as lent:
            found = await lock_peer(lent, node_id)
            if found is None:
                # The row of its key stays when a node is deregistered.
                known = "SELECT EXISTS (SELECT FROM identity.node_secret_keys WHERE node_id = $1)"
                raise EndpointPeerGone if await lent.fetchval(known, node_id) else EndpointPeerNotFound
            domain_id, peer = found
            taken = await lent.fetchrow(REPORT, node_id, endpoint, nat_type, reported_at, at)
            if taken and peer.fallback_endpoint != endpoint:
                tat = spend_change(taken["changes_tat"], at)
                await lent.execute("UPDATE identity.endpoints SET changes_tat = $2 WHERE node_id = $1", node_id, tat)
                moved = Peer(peer.node_id, peer.mesh_ip, peer.public_key, endpoint)
                await announce(lent, domain_id, [("peer_endpoint_changed", moved)], at)
