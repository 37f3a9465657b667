"""The rules of mesh-key rotation: an operator asks, the node brings a key of its own making, its peers are told."""

from dataclasses import dataclass
from uuid import UUID

from libs.clock import Clock
from libs.errors import (
    KeysRotateKeyInvalid,
    KeysRotateKeyUnchanged,
    KeysRotateNoPending,
    KeysRotatePeerNotFound,
    NodeUnauthorized,
    NotFound,
    PublicKeyInvalid,
)
from libs.principal import Principal
from services.identity.authority import Act, Gate, caller_of
from services.identity.enrolment import check_public_key
from services.identity.model import Caller
from services.identity.node_model import Impact, MeshKey, Receipt
from services.identity.node_ports import RotationStore


def judge(known: MeshKey, public_key: bytes) -> UUID | Receipt:
    """Return the rotation that a key would complete, or the receipt of the one that it has completed already."""
    unchanged = public_key == known.public_key
    # The answer to the first completion may have been lost. Under a new rotation the same key is the old one.
    if unchanged and known.receipt and known.pending is None:
        return known.receipt
    if unchanged:
        raise KeysRotateKeyUnchanged
    if known.pending is None:
        raise KeysRotateNoPending
    return known.pending


@dataclass(frozen=True)
class KeyRotation:
    """Rotates mesh keys."""

    store: RotationStore
    gate: Gate
    clock: Clock

    async def request(self, caller: Caller, node_id: UUID) -> tuple[UUID, bool]:
        """Ask a node for a new key; returns the pending rotation, and whether it was pending before."""
        this = f"node:{node_id}"
        place = await self.store.place(node_id)
        act = Act("key_rotation.request", this, str(place.domain_id) if place else "")
        await self.gate.write(caller, "node-operate", this, act)
        requested = await self.store.request(node_id, self.clock.now()) if place else None
        if requested is None:
            raise NotFound
        return requested

    async def preview(self, caller: Caller, node_id: UUID) -> Impact:
        """Return what a new key of a node would mean."""
        await self.gate.read(caller, "node-operate", f"node:{node_id}")
        impact = await self.store.impact(node_id)
        if impact is None:
            raise NotFound
        return impact

    async def complete(self, principal: Principal, public_key: bytes) -> Receipt:
        """Put the calling node's new key in force; the same key again gets the same receipt and leaves no row."""
        try:
            check_public_key(public_key)
        except PublicKeyInvalid:
            raise KeysRotateKeyInvalid from None
        if not principal.node_id:
            raise NodeUnauthorized
        await self.gate.agent(principal, principal.node_id, "key_rotation.complete")
        node_id = UUID(principal.node_id)
        # Asked before the row, so that a node that asks for ever without a rotation does not fill the chain.
        wanted = judge(await self._known(node_id), public_key)
        if isinstance(wanted, Receipt):
            return wanted
        act = Act("key_rotation.complete", f"node:{node_id}", principal.domain_id, {"rotation": [str(wanted)]})
        await self.gate.record(caller_of(principal), "node-agent", act)
        receipt = await self.store.complete(node_id, wanted, public_key, self.clock.now())
        if receipt is None:
            # Another request of this node completed it meanwhile: with the same key, or with one that counts.
            lost = judge(await self._known(node_id), public_key)
            if not isinstance(lost, Receipt):
                raise KeysRotateNoPending
            receipt = lost
        return receipt

    async def _known(self, node_id: UUID) -> MeshKey:
        known = await self.store.mesh_key(node_id)
        if known is None:
            raise KeysRotatePeerNotFound
        return known
