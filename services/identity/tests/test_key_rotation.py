"""Rotation of mesh keys: who may ask, which key counts, and one row before anything changes."""

import functools
from dataclasses import replace
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.errors import (
    AuditUnavailable,
    AuthzUnavailable,
    Forbidden,
    KeysRotateKeyInvalid,
    KeysRotateKeyUnchanged,
    KeysRotateNoPending,
    KeysRotatePeerNotFound,
    NodeUnauthorized,
    NotFound,
    PlexError,
)
from libs.ids import uuid7
from services.identity.key_rotation import KeyRotation
from services.identity.node_model import Receipt
from services.identity.tests.fakes import NOW, World, node_principal
from services.identity.tests.node_fakes import FakeNodes
from services.identity.tests.test_enrolment import BAD_KEYS

pytestmark = pytest.mark.unit


def fresh_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


class Scene:
    """Two nodes, and an operator who may operate the first."""

    def __init__(self) -> None:
        self.world = World()
        self.nodes = FakeNodes(self.world.trace)
        self.key = fresh_key()
        self.node_id = self.nodes.add(self.world.domain.id, NOW, self.key)
        self.other_id = self.nodes.add(self.world.domain.id, NOW, fresh_key())
        this = f"node:{self.node_id}"
        self.world.authority.granted |= {
            (this, "node-agent", this), (self.world.owner.reference, "node-operate", this),
        }  # fmt: skip
        self.rotation = KeyRotation(self.nodes, self.world.identity.gate, self.world.clock)
        self.principal = node_principal(self.node_id, self.world.domain.id)

    async def request(self) -> tuple[UUID, bool]:
        asked = await self.rotation.request(self.world.owner, self.node_id)
        self.world.trace.clear()
        self.world.audit.rows.clear()
        return asked

    async def complete(self, key: bytes) -> Receipt:
        return await self.rotation.complete(self.principal, key)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.nodes.events]


async def test_an_operator_asks_once_and_asking_again_changes_nothing() -> None:
    scene = Scene()
    rotation_id, pending = await scene.rotation.request(scene.world.owner, scene.node_id)
    assert not pending
    assert scene.world.trace == ["relation", "audit", "request"]
    (row,) = scene.world.audit.rows
    assert (row.action, row.object_type, row.object_id, row.domain_id, row.relation) == (
        "key_rotation.request", "node", str(scene.node_id), str(scene.world.domain.id), "node-operate",
    )  # fmt: skip
    assert await scene.rotation.request(scene.world.owner, scene.node_id) == (rotation_id, True)
    assert scene.nodes.events == [("rotate_keys", f"node:{scene.node_id}", {"rotation_id": str(rotation_id)})]
    # Each request was handled, so each has its row.
    assert len(scene.world.audit.rows) == 2


async def test_who_may_not_operate_the_node_asks_for_nothing() -> None:
    scene = Scene()
    for caller, node_id in ((scene.world.stranger, scene.node_id), (scene.world.owner, uuid7())):
        with pytest.raises(Forbidden):
            await scene.rotation.request(caller, node_id)
        with pytest.raises(Forbidden):
            await scene.rotation.preview(caller, node_id)
    assert [row.reason for row in scene.world.audit.rows] == ["out_of_scope"] * 2
    assert scene.nodes.events == []


async def test_without_audit_or_relations_nothing_is_asked_for_or_completed() -> None:
    for failing, refusal in (("audit", AuditUnavailable()), ("authority", AuthzUnavailable())):
        scene = Scene()
        await scene.request()
        getattr(scene.world, failing).refusal = refusal
        for attempt in (scene.rotation.request(scene.world.owner, scene.node_id), scene.complete(fresh_key())):
            with pytest.raises(type(refusal)):
                await attempt
        assert not {"request", "complete"} & set(scene.world.trace)
        assert scene.nodes.nodes[scene.node_id].peer.public_key == scene.key


async def test_a_node_that_is_gone_is_not_found_after_the_relation() -> None:
    scene = Scene()
    scene.nodes.remove(scene.node_id)
    for attempt in (
        scene.rotation.request(scene.world.owner, scene.node_id),
        scene.rotation.preview(scene.world.owner, scene.node_id),
    ):
        with pytest.raises(NotFound):
            await attempt
    with pytest.raises(KeysRotatePeerNotFound):
        await scene.complete(fresh_key())


async def test_a_preview_names_the_peers_and_leaves_no_row() -> None:
    scene = Scene()
    before = await scene.rotation.preview(scene.world.owner, scene.node_id)
    assert [peer.node_id for peer in before.peers] == [scene.other_id]
    assert not before.already_pending
    await scene.request()
    assert (await scene.rotation.preview(scene.world.owner, scene.node_id)).already_pending
    assert scene.world.audit.rows == []


async def test_a_new_key_is_in_force_after_its_row_and_the_same_key_gets_the_same_receipt() -> None:
    scene = Scene()
    rotation_id, _ = await scene.request()
    key = fresh_key()
    receipt = await scene.complete(key)
    assert receipt.rotation_id == rotation_id
    assert scene.world.trace == ["relation", "audit", "complete"]
    (row,) = scene.world.audit.rows
    assert (row.action, row.reason, row.context) == (
        "key_rotation.complete", "granted", {"rotation": [str(rotation_id)]},
    )  # fmt: skip
    assert scene.kinds == ["rotate_keys", "peer_key_rotated"]
    # The key of the bearer may change in between: what was given stays what it was.
    scene.nodes.nodes[scene.node_id].kid = "nsk_other"
    assert await scene.complete(key) == receipt
    assert (len(scene.world.audit.rows), scene.kinds) == (1, ["rotate_keys", "peer_key_rotated"])


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
async def test_a_key_that_is_none_is_refused_before_anything_is_asked(key: bytes) -> None:
    scene = Scene()
    await scene.request()
    with pytest.raises(KeysRotateKeyInvalid):
        await scene.complete(key)
    assert scene.world.trace == []


async def test_keys_that_do_not_count_are_refused_without_a_row() -> None:
    scene = Scene()
    refusals: list[tuple[bytes, type[PlexError]]] = [
        (scene.key, KeysRotateKeyUnchanged), (fresh_key(), KeysRotateNoPending),
    ]  # fmt: skip
    for key, refusal in refusals:
        with pytest.raises(refusal):
            await scene.complete(key)
    await scene.request()
    with pytest.raises(KeysRotateKeyUnchanged):
        await scene.complete(scene.key)
    new = fresh_key()
    await scene.complete(new)
    with pytest.raises(KeysRotateNoPending):
        await scene.complete(scene.key)
    # Under the next rotation the key of the last one is the old one.
    await scene.request()
    with pytest.raises(KeysRotateKeyUnchanged):
        await scene.complete(new)
    assert scene.world.audit.rows == []


async def test_another_nodes_key_is_refused() -> None:
    scene = Scene()
    await scene.request()
    with pytest.raises(KeysRotateKeyInvalid):
        await scene.complete(scene.nodes.nodes[scene.other_id].peer.public_key)
    assert scene.nodes.nodes[scene.node_id].pending


async def test_only_a_node_that_is_its_own_agent_brings_a_key() -> None:
    scene = Scene()
    await scene.request()
    scene.world.authority.granted.clear()
    with pytest.raises(Forbidden):
        await scene.complete(fresh_key())
    assert [(row.action, row.reason) for row in scene.world.audit.rows] == [("key_rotation.complete", "out_of_scope")]
    with pytest.raises(NodeUnauthorized):
        await scene.rotation.complete(replace(scene.principal, node_id="", kind="user"), fresh_key())


async def test_who_loses_the_race_gets_the_receipt_for_the_same_key_and_a_refusal_for_another() -> None:
    for same in (True, False):
        scene = Scene()
        rotation_id, _ = await scene.request()
        key = fresh_key()
        first = functools.partial(scene.nodes.complete, scene.node_id, rotation_id, key if same else fresh_key(), NOW)
        scene.nodes.meanwhile = [first]
        if same:
            assert (await scene.complete(key)).rotation_id == rotation_id
        else:
            with pytest.raises(KeysRotateNoPending):
                await scene.complete(key)
        assert scene.kinds == ["rotate_keys", "peer_key_rotated"]
