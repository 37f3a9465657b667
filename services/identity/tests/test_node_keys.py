"""Node keys: a node renews its own with a grace for the old one, an operator ends them all; one row before each."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.errors import AuditUnavailable, Forbidden, NodeUnauthorized, NotFound, NskRevoked, OpenbaoUnavailable, TooMany
from libs.ids import uuid7
from libs.principal import Principal
from libs.rpc import context
from plexsphere.identity.v1 import enrolment_pb2 as pb
from services.identity.grpc_nodes import NodeAdminApi, NodeApi
from services.identity.node_keys import GRACE, MOST_AT_ONCE, NodeKeys, Renewed
from services.identity.tests.fakes import NOW, World, node_principal
from services.identity.tests.node_fakes import FakeNodeKeys

pytestmark = pytest.mark.unit

FIRST = "nsk_first"
UNUSED: Any = None


class Scene:
    """A node with one key, and an operator who may operate it."""

    def __init__(self) -> None:
        self.world, self.store = World(), FakeNodeKeys()
        self.store.trace = self.world.trace
        self.node_id = uuid7()
        self.store.domains[self.node_id] = self.world.domain.id
        self.store.add(self.node_id, FIRST, NOW - timedelta(days=1))
        this = f"node:{self.node_id}"
        self.world.authority.granted |= {
            (this, "node-agent", this), (self.world.owner.reference, "node-operate", this),
        }  # fmt: skip
        self.keys = NodeKeys(self.store, self.world.identity.gate, self.world.wrapper, self.world.clock)

    def caller(self, kid: str) -> Principal:
        return replace(node_principal(self.node_id, self.world.domain.id), nsk_kid=kid)

    async def rotate(self, kid: str) -> Renewed:
        return await self.keys.rotate(self.caller(kid), str(self.node_id))

    def live(self) -> list[str]:
        return list(self.store.live[self.node_id])


async def test_a_fresh_key_stands_beside_the_old_one_for_ten_minutes() -> None:
    scene = Scene()
    renewed = await scene.rotate(FIRST)
    assert scene.world.trace == ["relation", "wrap", "audit", "rotate"]
    assert scene.live() == [FIRST, renewed.kid]
    assert renewed.previous_valid_until == NOW + timedelta(minutes=10)
    (row,) = scene.world.audit.rows
    assert (row.action, row.reason, row.context) == ("secret_key.rotate", "granted", {"kid": [renewed.kid]})
    assert len(renewed.key) == 32


async def test_with_the_old_key_again_the_lost_one_dies_and_the_grace_does_not_grow() -> None:
    scene = Scene()
    lost = await scene.rotate(FIRST)
    scene.world.clock.advance(300)
    again = await scene.rotate(FIRST)
    assert again.previous_valid_until == lost.previous_valid_until
    assert scene.live() == [FIRST, again.kid]
    scene.world.clock.advance(300)
    with pytest.raises(NskRevoked):
        await scene.rotate(FIRST)


async def test_with_the_new_key_the_old_one_dies() -> None:
    scene = Scene()
    second = await scene.rotate(FIRST)
    third = await scene.rotate(second.kid)
    assert scene.live() == [second.kid, third.kid]
    with pytest.raises(NskRevoked):
        await scene.rotate(FIRST)


async def test_a_node_that_asks_for_ever_is_told_to_wait_with_one_row() -> None:
    scene = Scene()
    kid = FIRST
    for _ in range(MOST_AT_ONCE):
        kid = (await scene.rotate(kid)).kid
    scene.world.audit.rows.clear()
    for _ in range(2):
        with pytest.raises(TooMany) as refused:
            await scene.rotate(kid)
        assert refused.value.extra["retry_after_s"] == 600
    assert {row.action for row in scene.world.audit.rows} == {"node.secret_key_limited"}
    assert len({row.idempotency_key for row in scene.world.audit.rows}) == 1
    scene.world.clock.advance(GRACE.total_seconds())
    assert (await scene.rotate(kid)).kid


async def test_nobody_else_and_nothing_without_audit_or_vault() -> None:
    scene = Scene()
    with pytest.raises(NodeUnauthorized):
        await scene.keys.rotate(Principal(scene.world.owner.subject, "user", "session"), str(scene.node_id))
    with pytest.raises(Forbidden):
        await scene.keys.rotate(scene.caller(FIRST), str(uuid7()))
    scene.world.authority.granted.clear()
    with pytest.raises(Forbidden):
        await scene.rotate(FIRST)
    # A node that is no more must register again: a denial would stop its agent for good.
    scene.world.store.gone.add(scene.node_id)
    scene.world.audit.rows.clear()
    with pytest.raises(NskRevoked):
        await scene.rotate(FIRST)
    assert [row.reason for row in scene.world.audit.rows] == ["out_of_scope"]
    for target, error in (("audit", AuditUnavailable()), ("wrapper", OpenbaoUnavailable())):
        scene = Scene()
        getattr(scene.world, target).refusal = error
        with pytest.raises(type(error)):
            await scene.rotate(FIRST)
        assert scene.live() == [FIRST]


async def test_an_operator_ends_all_keys_after_a_row() -> None:
    scene = Scene()
    await scene.rotate(FIRST)
    scene.world.trace.clear()
    scene.world.audit.rows.clear()
    await scene.keys.revoke(scene.world.owner, scene.node_id)
    assert scene.world.trace == ["relation", "audit", "revoke"]
    assert [(row.action, row.domain_id) for row in scene.world.audit.rows] == [
        ("secret_key.revoke", str(scene.world.domain.id))
    ]
    assert scene.live() == []
    with pytest.raises(Forbidden):
        await scene.keys.revoke(scene.world.stranger, scene.node_id)
    gone = uuid7()
    scene.world.authority.granted.add((scene.world.owner.reference, "node-operate", f"node:{gone}"))
    with pytest.raises(NotFound):
        await scene.keys.revoke(scene.world.owner, gone)


async def test_what_the_wire_gets() -> None:
    scene = Scene()
    node = NodeApi(UNUSED, UNUSED, UNUSED, UNUSED, scene.keys)
    admin = NodeAdminApi(UNUSED, UNUSED, scene.keys)
    this = str(scene.node_id)
    with context.bind(context.Call(principal=scene.caller(FIRST))):
        answer = await node.RotateSecretKey(pb.RotateSecretKeyRequest(node_id=this), UNUSED)
    assert (len(answer.nsk), answer.kid) == (32, scene.live()[-1])
    assert UUID(answer.kid.removeprefix("nsk_")).version == 7
    assert answer.previous_valid_until.ToDatetime() == (NOW + GRACE).replace(tzinfo=None)
    fresh = Principal(scene.world.owner.subject, "user", "session", auth_time=int(time.time()))
    with context.bind(context.Call(principal=fresh)):
        await admin.RevokeSecretKey(pb.RevokeSecretKeyRequest(node_id=this), UNUSED)
    assert scene.live() == []
