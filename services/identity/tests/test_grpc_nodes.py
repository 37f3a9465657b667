"""What the wire gets about registered nodes."""

import hashlib
from typing import Any

import pytest

from libs.principal import Principal
from libs.rpc import context
from plexsphere.identity.v1 import enrolment_pb2 as pb
from services.identity.endpoints import Endpoints
from services.identity.grpc_nodes import NodeAdminApi, NodeApi
from services.identity.key_rotation import KeyRotation
from services.identity.node_state import NodeState
from services.identity.tests.fakes import NOW, World, node_principal
from services.identity.tests.node_fakes import FakeNodes
from services.identity.tests.test_key_rotation import fresh_key

pytestmark = pytest.mark.unit

NO_CONTEXT: Any = None
UNUSED: Any = None


class Wire:
    """Both services on two nodes; calls are made as the first node or as the operator."""

    def __init__(self) -> None:
        self.world, self.nodes = World(), FakeNodes()
        self.node_id, self.peer_id = (self.nodes.add(self.world.domain.id, NOW, fresh_key()) for _ in range(2))
        this, owner = f"node:{self.node_id}", self.world.owner.reference
        self.world.authority.granted |= {
            (this, "node-agent", this), (owner, "node-operate", this), (owner, "observe", this),
        }  # fmt: skip
        gate, clock = self.world.identity.gate, self.world.clock
        state, rotation = NodeState(self.nodes, gate, clock), KeyRotation(self.nodes, gate, clock)
        self.api = NodeApi(self.world.enrolment, state, Endpoints(self.nodes, gate, clock), rotation, UNUSED)
        self.admin = NodeAdminApi(state, rotation, UNUSED)

    def as_node(self) -> Any:
        return context.bind(context.Call(principal=node_principal(self.node_id, self.world.domain.id)))

    def as_operator(self) -> Any:
        return context.bind(context.Call(principal=Principal(self.world.owner.subject, "user", "session")))


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def test_a_state_is_the_same_bytes_until_something_changes(wire: Wire) -> None:
    request = pb.GetStateRequest(node_id=str(wire.node_id))
    with wire.as_node():
        first = await wire.api.GetState(request, NO_CONTEXT)
        again = await wire.api.GetState(request, NO_CONTEXT)
        await wire.nodes.report_endpoint(wire.peer_id, "203.0.113.7:443", "full_cone", NOW, NOW)
        changed = await wire.api.GetState(request, NO_CONTEXT)
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert [(peer.node_id, peer.fallback_endpoint) for peer in first.peers] == [(str(wire.peer_id), "")]
    assert first.policy.fingerprint == hashlib.sha256(b"[]").digest()
    assert first.reachability.state == pb.REACHABILITY_STATE_HEALTHY
    assert not first.reachability.HasField("last_heartbeat_at")
    assert first.reachability.changed_at.ToDatetime() == NOW.replace(tzinfo=None)
    assert changed.peers[0].fallback_endpoint == "203.0.113.7:443"


async def test_an_endpoint_and_when_to_repeat_it(wire: Wire) -> None:
    request = pb.ReportEndpointRequest(node_id=str(wire.node_id), endpoint="203.0.113.7:443", nat_type="unknown")
    request.reported_at.FromDatetime(NOW)
    with wire.as_node():
        answer = await wire.api.ReportEndpoint(request, NO_CONTEXT)
    assert answer.accepted_at == request.reported_at
    assert answer.stale_after.seconds - answer.accepted_at.seconds == 300


async def test_a_rotation_from_the_operator_to_the_receipt(wire: Wire) -> None:
    node_id = str(wire.node_id)
    with wire.as_operator():
        asked = await wire.admin.RequestKeyRotation(pb.RequestKeyRotationRequest(node_id=node_id), NO_CONTEXT)
        again = await wire.admin.RequestKeyRotation(pb.RequestKeyRotationRequest(node_id=node_id), NO_CONTEXT)
        preview = await wire.admin.PreviewKeyRotation(pb.PreviewKeyRotationRequest(node_id=node_id), NO_CONTEXT)
    assert (asked.already_pending, again.already_pending) == (False, True)
    assert asked.rotation_id == again.rotation_id
    assert [(peer.node_id, peer.kid, peer.wrap_key_version) for peer in preview.peers] == [
        (str(wire.peer_id), f"nsk_{wire.peer_id.hex}", 1)
    ]
    assert preview.already_pending
    assert preview.estimated_duration.seconds == 30
    with wire.as_node():
        request = pb.CompleteKeyRotationRequest(new_public_key=fresh_key())
        receipt = await wire.api.CompleteKeyRotation(request, NO_CONTEXT)
        assert await wire.api.CompleteKeyRotation(request, NO_CONTEXT) == receipt
    assert (receipt.rotation_id, receipt.kid, receipt.wrap_key_version) == (
        asked.rotation_id, f"nsk_{wire.node_id.hex}", 1,
    )  # fmt: skip


async def test_every_state_of_a_node_has_its_value(wire: Wire) -> None:
    request, seen = pb.GetReachabilityRequest(node_id=str(wire.node_id)), []
    with wire.as_operator():
        for seconds in (0, 90, 210):
            wire.world.clock.advance(seconds)
            seen.append((await wire.admin.GetReachability(request, NO_CONTEXT)).reachability.state)
    assert seen == [
        pb.REACHABILITY_STATE_HEALTHY, pb.REACHABILITY_STATE_STALE, pb.REACHABILITY_STATE_UNREACHABLE,
    ]  # fmt: skip
