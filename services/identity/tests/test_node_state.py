"""What a node is told to be, and when it counts as heard of."""

import base64
import hashlib
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from libs.errors import AuthzUnavailable, Forbidden, NodeIdMismatch, NotFound
from libs.ids import uuid7
from services.identity.model import Reachability
from services.identity.node_model import SignsOfLife, peer_object
from services.identity.node_state import NodeState, health
from services.identity.tests.fakes import NOW, World, node_principal
from services.identity.tests.node_fakes import FakeNodes

pytestmark = pytest.mark.unit

POLICY = Reachability(10, 90, 300)


class Scene:
    """A Domain with three nodes, each its own agent."""

    def __init__(self) -> None:
        self.world, self.nodes = World(), FakeNodes()
        self.ids = [self.nodes.add(self.world.domain.id, NOW, bytes([number]) * 32) for number in range(1, 4)]
        for node_id in self.ids:
            this = f"node:{node_id}"
            self.world.authority.granted.add((this, "node-agent", this))
        self.state = NodeState(self.nodes, self.world.identity.gate, self.world.clock)

    async def get(self, node_id: UUID, path: UUID | None = None) -> object:
        return await self.state.get(node_principal(node_id, self.world.domain.id), str(path or node_id))


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


BEATS = {
    "heard of just now": (None, None, 0, "healthy", 0),
    "silent since its registration, for a little": (None, None, 89, "healthy", 0),
    "silent since its registration": (None, None, 90, "stale", 90),
    "silent since its registration, for long": (None, None, 1000, "unreachable", 300),
    "heard of": (50, 0, 139, "healthy", 0),
    "heard of again": (500, 500, 589, "healthy", 500),
    "silent for the first bound": (500, 400, 590, "stale", 590),
    "silent for less than the second": (500, 400, 799, "stale", 590),
    "silent for the second": (500, 400, 800, "unreachable", 800),
    "silent for ever": (500, 400, 9999, "unreachable", 800),
}


@pytest.mark.parametrize(("last", "since", "now", "state", "changed"), BEATS.values(), ids=BEATS.keys())
def test_silence_means_what_the_policy_says(
    last: float | None, since: float | None, now: float, state: str, changed: float
) -> None:
    heard = None if last is None else after(last)
    found = health(SignsOfLife(NOW, heard, None if since is None else after(since), POLICY), after(now))
    assert (found.state, found.changed_at, found.last_heartbeat_at) == (state, after(changed), heard)


async def test_a_node_sees_its_peers_and_no_change_is_no_difference() -> None:
    scene = Scene()
    this, *others = scene.ids
    first = await scene.state.get(node_principal(this, scene.world.domain.id), str(this))
    assert [peer.node_id for peer in first.peers] == sorted(others)
    assert first.fingerprint == hashlib.sha256(b"[]").digest()
    scene.world.clock.advance(60)
    assert await scene.get(this) == first
    assert scene.world.audit.rows == []
    # Rules are the Domain's, so their revision is as well.
    other = await scene.state.get(node_principal(others[0], scene.world.domain.id), str(others[0]))
    assert other.revision_id == first.revision_id


async def test_another_nodes_state_is_refused_with_a_row_before_anything_is_asked() -> None:
    scene = Scene()
    with pytest.raises(NodeIdMismatch):
        await scene.get(scene.ids[0], scene.ids[1])
    (row,) = scene.world.audit.rows
    assert (row.action, row.reason, row.context) == (
        "node.state", "insufficient_relation", {"state": ["node_id_mismatch"]},
    )  # fmt: skip
    assert "relation" not in scene.world.trace


async def test_who_is_not_its_own_agent_is_refused_with_a_row_whether_it_exists_or_not() -> None:
    for node_id in (Scene().ids[0], uuid7()):
        scene = Scene()
        with pytest.raises(Forbidden):
            await scene.get(node_id)
        assert [(row.action, row.reason) for row in scene.world.audit.rows] == [("node.state", "out_of_scope")]


async def test_a_doubt_is_no_denial_and_leaves_no_row() -> None:
    scene = Scene()
    scene.world.authority.refusal = AuthzUnavailable()
    with pytest.raises(AuthzUnavailable):
        await scene.get(scene.ids[0])
    assert scene.world.audit.rows == []


async def test_existence_comes_after_the_relation() -> None:
    scene = Scene()
    scene.nodes.remove(scene.ids[0])
    with pytest.raises(NotFound):
        await scene.get(scene.ids[0])


async def test_an_operator_who_may_observe_sees_whether_a_node_is_heard_of() -> None:
    scene = Scene()
    owner, node_id = scene.world.owner, scene.ids[0]
    with pytest.raises(Forbidden):
        await scene.state.get_reachability(owner, node_id)
    scene.world.authority.granted.add((owner.reference, "observe", f"node:{node_id}"))
    scene.world.clock.advance(100)
    assert (await scene.state.get_reachability(owner, node_id)).state == "stale"
    scene.nodes.remove(node_id)
    with pytest.raises(NotFound):
        await scene.state.get_reachability(owner, node_id)
    assert scene.world.audit.rows == []


def test_a_peer_shows_its_endpoint_only_when_it_has_one() -> None:
    nodes = FakeNodes()
    node = nodes.nodes[nodes.add(uuid7(), NOW, b"k" * 32)]
    shown = peer_object(node.peer)
    assert shown == {
        "node_id": str(node.peer.node_id),
        "mesh_ip": node.peer.mesh_ip,
        "public_key": base64.b64encode(b"k" * 32).decode(),
    }
