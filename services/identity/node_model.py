"""What identity knows of nodes that are registered: whether they are heard of, their peers, their mesh keys."""

import base64
import datetime
import math
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from libs.errors import TooMany
from services.identity.model import Peer, Reachability

# How often a node's peers are told that it moved: each time costs a signature and reaches the whole Domain.
CHANGES_AT_ONCE = 5
CHANGE_EVERY = datetime.timedelta(seconds=10)


@dataclass(frozen=True)
class SignsOfLife:
    """When a node was heard of, and the policy that says what its silence means."""

    registered_at: datetime.datetime
    last_heartbeat_at: datetime.datetime | None
    healthy_since: datetime.datetime | None
    policy: Reachability


@dataclass(frozen=True)
class Wanted:
    """What a node that was heard of should do: bring a new mesh key, fetch its state because it was silent too long."""

    rotate_keys: bool
    reconcile: bool


@dataclass(frozen=True)
class Health:
    """Whether a node is heard of ("healthy", "stale", "unreachable"), and since when."""

    state: str
    changed_at: datetime.datetime
    last_heartbeat_at: datetime.datetime | None


@dataclass(frozen=True)
class Surroundings:
    """What is stored of a node and around it; peers by id."""

    domain_id: UUID
    signs: SignsOfLife
    peers: list[Peer]


@dataclass(frozen=True)
class Snapshot:
    """All that a node should be, as it is told."""

    peers: list[Peer]
    revision_id: UUID
    fingerprint: bytes
    health: Health


@dataclass(frozen=True)
class Receipt:
    """What a node gets for a mesh key that is in force: which rotation, and its node key at that time."""

    rotation_id: UUID
    kid: str
    wrap_key_version: int


@dataclass(frozen=True)
class MeshKey:
    """A node's mesh key: the one in force, the pending rotation, and the receipt of the key in force if it has one."""

    public_key: bytes
    pending: UUID | None
    receipt: Receipt | None


@dataclass(frozen=True)
class AffectedPeer:
    """A node that would be told another node's new key."""

    node_id: UUID
    kid: str
    wrap_key_version: int


@dataclass(frozen=True)
class Impact:
    """What a new mesh key of one node would mean; peers by id."""

    peers: list[AffectedPeer]
    already_pending: bool
    heartbeat_interval_s: float


def peer_object(peer: Peer) -> dict[str, Any]:
    """Return a peer as events carry it, which is as the state snapshot shows it."""
    shown = {
        "node_id": str(peer.node_id),
        "mesh_ip": peer.mesh_ip,
        "public_key": base64.b64encode(peer.public_key).decode(),
    }
    return shown | ({"fallback_endpoint": peer.fallback_endpoint} if peer.fallback_endpoint else {})


def spend_change(tat: datetime.datetime | None, at: datetime.datetime) -> datetime.datetime:
    """Return a node's cell after one more change of its endpoint (GCRA, ITU-T I.371, annex A).

    Raises TooMany with the whole seconds after which one gets through.
    """
    after = max(tat or at, at) + CHANGE_EVERY
    early = after - at - CHANGES_AT_ONCE * CHANGE_EVERY
    if early > datetime.timedelta():
        raise TooMany("the node's endpoint changes too often", retry_after_s=math.ceil(early.total_seconds()))
    return after
