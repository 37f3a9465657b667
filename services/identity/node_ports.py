"""What the rules about registered nodes need from outside; each docstring is the promise."""

import datetime
from typing import Protocol
from uuid import UUID

from services.identity.model import NodePlace, WrappedKey
from services.identity.node_model import Impact, MeshKey, Receipt, SignsOfLife, Surroundings


class NodeStore(Protocol):
    """Nodes as they are and where they are reached; a method is a transaction, and its event commits with it."""

    async def surroundings(self, node_id: UUID) -> Surroundings | None:
        """Return a node and its peers in one round trip."""

    async def signs(self, node_id: UUID) -> SignsOfLife | None:
        """Return when a node was heard of."""

    async def report_endpoint(
        self, node_id: UUID, endpoint: str, nat_type: str, reported_at: datetime.datetime, at: datetime.datetime
    ) -> None:
        """Store where a node is reached, and tell its peers when that is new; an older report changes nothing.

        Raises EndpointPeerNotFound, or EndpointPeerGone for a node that was deregistered, and TooMany, storing nothing,
        when the node's peers were told too often already.
        """


class RotationStore(Protocol):
    """Rotations of mesh keys, at most one pending for a node; its event commits with what it announces."""

    async def place(self, node_id: UUID) -> NodePlace | None:
        """Return where a node stands."""

    async def request(self, node_id: UUID, at: datetime.datetime) -> tuple[UUID, bool] | None:
        """Return the pending rotation and whether it was pending before; a new one is announced. None: no such node."""

    async def impact(self, node_id: UUID) -> Impact | None:
        """Return what a new key would mean."""

    async def mesh_key(self, node_id: UUID) -> MeshKey | None:
        """Return what is known of a node's mesh key."""

    async def complete(
        self, node_id: UUID, rotation_id: UUID, public_key: bytes, at: datetime.datetime
    ) -> Receipt | None:
        """Put a key in force, finish its rotation and tell the peers; None when the rotation is not pending.

        Raises KeysRotatePeerNotFound, and KeysRotateKeyInvalid when another node of the Domain has the key.
        """


class NodeKeyStore(Protocol):
    """Node keys: of each node one is current, and one that it superseded may count until its time."""

    async def domain_of(self, node_id: UUID) -> UUID | None:
        """Return the Domain of a node, with keys or without."""

    async def made_since(self, node_id: UUID, since: datetime.datetime) -> int:
        """Return how many keys of a node were made after a time."""

    async def rotate(
        self, node_id: UUID, kid: str, key: WrappedKey, at: datetime.datetime, until: datetime.datetime
    ) -> datetime.datetime | None:
        """Put a fresh key beside the one with this KID, and end any other; None when the KID counts no longer.

        Returns until when that KID counts: a superseded one keeps its time.
        """

    async def revoke(self, node_id: UUID, at: datetime.datetime) -> None:
        """End all keys of a node; every replica and gateway is told."""
