"""Registered nodes in memory: one fake for both ports, as both are about the same rows."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.errors import EndpointPeerGone, EndpointPeerNotFound, KeysRotateKeyInvalid, KeysRotatePeerNotFound
from libs.ids import uuid7
from services.identity.model import NodePlace, Peer, Reachability, WrappedKey
from services.identity.node_model import (
    AffectedPeer,
    Impact,
    MeshKey,
    Receipt,
    SignsOfLife,
    Surroundings,
    peer_object,
    spend_change,
)


@dataclass
class FakeNode:
    """A node's row and what hangs on it."""

    domain_id: UUID
    peer: Peer
    registered_at: datetime
    kid: str
    wrap_key_version: int = 1
    last_heartbeat_at: datetime | None = None
    healthy_since: datetime | None = None
    reported_at: datetime | None = None
    changes_tat: datetime | None = None
    pending: UUID | None = None
    receipts: list[tuple[bytes, Receipt]] = field(default_factory=list)


@dataclass
class FakeNodes:
    """NodeStore and RotationStore; `events` is the outbox as (type, scope, payload)."""

    trace: list[str] = field(default_factory=list)
    nodes: dict[UUID, FakeNode] = field(default_factory=dict)
    gone: set[UUID] = field(default_factory=set)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    policy: Reachability = field(default_factory=Reachability)
    # What another request does just before this one's transaction.
    meanwhile: list[Any] = field(default_factory=list)

    def add(self, domain_id: UUID, at: datetime, public_key: bytes) -> UUID:
        node_id, number = uuid7(), len(self.nodes) + 1
        peer = Peer(node_id, f"10.1.0.{number}", public_key)
        self.nodes[node_id] = FakeNode(domain_id, peer, at, f"nsk_{node_id.hex}")
        return node_id

    def remove(self, node_id: UUID) -> None:
        del self.nodes[node_id]
        self.gone.add(node_id)

    def _others(self, node_id: UUID) -> list[FakeNode]:
        domain_id = self.nodes[node_id].domain_id
        found = [row for row in self.nodes.values() if row.domain_id == domain_id and row.peer.node_id != node_id]
        return sorted(found, key=lambda row: row.peer.node_id)

    def _announce(self, kind: str, node: FakeNode) -> None:
        self.events.append((kind, f"domain:{node.domain_id}", {"peer": peer_object(node.peer)}))

    async def surroundings(self, node_id: UUID) -> Surroundings | None:
        signs = await self.signs(node_id)
        if signs is None:
            return None
        return Surroundings(self.nodes[node_id].domain_id, signs, [row.peer for row in self._others(node_id)])

    async def signs(self, node_id: UUID) -> SignsOfLife | None:
        node = self.nodes.get(node_id)
        if node is None:
            return None
        return SignsOfLife(node.registered_at, node.last_heartbeat_at, node.healthy_since, self.policy)

    async def report_endpoint(
        self, node_id: UUID, endpoint: str, nat_type: str, reported_at: datetime, at: datetime
    ) -> None:
        node = self.nodes.get(node_id)
        if node is None:
            raise EndpointPeerGone if node_id in self.gone else EndpointPeerNotFound
        if node.reported_at and node.reported_at > reported_at:
            return
        if node.peer.fallback_endpoint != endpoint:
            node.changes_tat = spend_change(node.changes_tat, at)
            node.peer = replace(node.peer, fallback_endpoint=endpoint)
            self._announce("peer_endpoint_changed", node)
        node.reported_at = reported_at

    async def place(self, node_id: UUID) -> NodePlace | None:
        node = self.nodes.get(node_id)
        return NodePlace(node_id, node.domain_id, node.domain_id, node.kid) if node else None

    async def request(self, node_id: UUID, at: datetime) -> tuple[UUID, bool] | None:
        self.trace.append("request")
        node = self.nodes.get(node_id)
        if node is None:
            return None
        if node.pending:
            return node.pending, True
        node.pending = uuid7()
        self.events.append(("rotate_keys", f"node:{node_id}", {"rotation_id": str(node.pending)}))
        return node.pending, False

    async def impact(self, node_id: UUID) -> Impact | None:
        node = self.nodes.get(node_id)
        if node is None:
            return None
        peers = [AffectedPeer(row.peer.node_id, row.kid, row.wrap_key_version) for row in self._others(node_id)]
        return Impact(peers, node.pending is not None, self.policy.heartbeat_interval_s)

    async def mesh_key(self, node_id: UUID) -> MeshKey | None:
        node = self.nodes.get(node_id)
        if node is None:
            return None
        public_key = node.peer.public_key
        receipt = next((receipt for key, receipt in reversed(node.receipts) if key == public_key), None)
        return MeshKey(public_key, node.pending, receipt)

    async def complete(self, node_id: UUID, rotation_id: UUID, public_key: bytes, at: datetime) -> Receipt | None:
        self.trace.append("complete")
        first, self.meanwhile = self.meanwhile, []
        for other in first:
            await other()
        node = self.nodes.get(node_id)
        if node is None:
            raise KeysRotatePeerNotFound
        if any(row.peer.public_key == public_key for row in self._others(node_id)):
            raise KeysRotateKeyInvalid
        if node.pending != rotation_id:
            return None
        receipt = Receipt(rotation_id, node.kid, node.wrap_key_version)
        node.pending, node.peer = None, replace(node.peer, public_key=public_key)
        node.receipts.append((public_key, receipt))
        self._announce("peer_key_rotated", node)
        return receipt


@dataclass
class FakeKey:
    """A node key at rest."""

    key: WrappedKey
    made_at: datetime
    valid_until: datetime | None = None


@dataclass
class FakeNodeKeys:
    """NodeKeyStore: the keys of each node that count, and when each was made that ever did."""

    trace: list[str] = field(default_factory=list)
    domains: dict[UUID, UUID] = field(default_factory=dict)
    live: dict[UUID, dict[str, FakeKey]] = field(default_factory=dict)
    made: dict[UUID, list[datetime]] = field(default_factory=dict)

    def add(self, node_id: UUID, kid: str, at: datetime) -> None:
        self.live.setdefault(node_id, {})[kid] = FakeKey(WrappedKey(kid, "", kid.encode()), at)
        self.made.setdefault(node_id, []).append(at)

    async def domain_of(self, node_id: UUID) -> UUID | None:
        return self.domains.get(node_id)

    async def made_since(self, node_id: UUID, since: datetime) -> int:
        return sum(at > since for at in self.made.get(node_id, ()))

    async def rotate(self, node_id: UUID, kid: str, key: WrappedKey, at: datetime, until: datetime) -> datetime | None:
        self.trace.append("rotate")
        old = self.live.get(node_id, {}).get(kid)
        if old is None or (old.valid_until or until) <= at:
            return None
        old.valid_until = old.valid_until or until
        self.live[node_id] = {kid: old}
        self.add(node_id, key.kid, at)
        return old.valid_until

    async def revoke(self, node_id: UUID, at: datetime) -> None:
        self.trace.append("revoke")
        self.live[node_id] = {}
