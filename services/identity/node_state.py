"""The rules of what a node should be, and of whether it is heard of."""

import datetime
import hashlib
from dataclasses import dataclass
from uuid import UUID, uuid5

from libs.clock import Clock
from libs.errors import NotFound
from libs.principal import Principal
from services.identity.authority import Gate
from services.identity.model import Caller
from services.identity.node_model import Health, SignsOfLife, Snapshot
from services.identity.node_ports import NodeStore

# Nothing writes rules yet. A revision is known by the Domain and its rules, so that it stays the same at every pull.
NO_RULES = b"[]"


def health(signs: SignsOfLife, now: datetime.datetime) -> Health:
    """Say whether a node is heard of; its registration counts as its first sign of life."""
    last = signs.last_heartbeat_at or signs.registered_at
    for state, bound_s in (
        ("unreachable", signs.policy.unreachable_after_s),
        ("stale", signs.policy.stale_after_s),
    ):
        bound = datetime.timedelta(seconds=bound_s)
        if now - last >= bound:
            return Health(state, last + bound, signs.last_heartbeat_at)
    return Health("healthy", signs.healthy_since or signs.registered_at, signs.last_heartbeat_at)


@dataclass(frozen=True)
class NodeState:
    """Tells nodes what they should be, and operators how nodes are."""

    store: NodeStore
    gate: Gate
    clock: Clock

    async def get(self, principal: Principal, node_id: str) -> Snapshot:
        """Return all that the calling node should be; equal as long as nothing changes."""
        # Relation before existence: who is not its own agent learns nothing else.
        await self.gate.agent(principal, node_id, "node.state")
        around = await self.store.surroundings(UUID(node_id))
        if around is None:
            raise NotFound
        return Snapshot(
            peers=around.peers,
            revision_id=uuid5(around.domain_id, NO_RULES.decode()),
            fingerprint=hashlib.sha256(NO_RULES).digest(),
            health=health(around.signs, self.clock.now()),
        )

    async def get_reachability(self, caller: Caller, node_id: UUID) -> Health:
        """Return whether a node is heard of."""
        await self.gate.read(caller, "observe", f"node:{node_id}")
        signs = await self.store.signs(node_id)
        if signs is None:
            raise NotFound
        return health(signs, self.clock.now())
