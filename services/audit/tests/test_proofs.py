"""What is proved verifies elsewhere, what is not so is not shown, and a chain is held against its anchor."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.cursor import Cursors
from libs.custody import Secret
from libs.errors import AuditDiverged, CheckpointNotFound, Forbidden, NotFound, OpenbaoUnavailable
from libs.tlog.checkpoint import open_checkpoint
from libs.tlog.note import parse_key
from libs.tlog.proof import parse_proof
from libs.tlog.tree import Node, leaf_hash
from libs.tlog.verify import verify_consistency, verify_inclusion
from services.audit.model import PLATFORM, Filter
from services.audit.proofs import Proofs
from services.audit.service import Audit
from services.audit.tests import test_checkpoints as tampering
from services.audit.tests.fakes import FakePeppers, FakeRelations
from services.audit.tests.test_checkpoints import NAME, Scene
from services.audit.tests.test_service import AUDITOR, CHAIN, OTHER

pytestmark = pytest.mark.unit

ORIGIN = f"{NAME}/{CHAIN}"


@pytest.fixture
async def scene() -> Scene:
    """A chain of 11 with checkpoints at 1, 6 and 9."""
    made = Scene()
    for count in (1, 5, 3):
        await made.append(count)
        await made.checkpoints.turn(CHAIN)
    await made.append(2)
    return made


def audit(scene: Scene, *granted: str) -> Audit:
    relations = FakeRelations({(name, f"domain:{CHAIN}") for name in granted or ("audit",)})
    proofs, cursors = Proofs(scene.checkpoints), Cursors(Secret(b"k" * 32))
    return Audit(scene.chains, scene.chains, FakePeppers(), relations, proofs, cursors, scene.clock)


async def test_the_newest_checkpoint_is_shown_with_its_key(scene: Scene) -> None:
    shown = await audit(scene).checkpoint(AUDITOR, CHAIN)
    opened = open_checkpoint(shown.signed.note, ORIGIN, [parse_key(shown.key)])
    assert (opened.size, opened.root) == (shown.signed.size, shown.signed.root) == (9, scene.root(9))
    scene.signer.pairs.append(Ed25519PrivateKey.generate())
    assert await audit(scene).checkpoint(AUDITOR, CHAIN) == shown


@pytest.mark.parametrize("size", [1, 6, 9])
async def test_every_entry_of_a_checkpoint_is_proved(scene: Scene, size: int) -> None:
    for seq in range(1, size + 1):
        found = await audit(scene).prove(AUDITOR, CHAIN, seq, size)
        row = await scene.chains.get(CHAIN, seq)
        assert row is not None
        assert found.entry_hash == row.entry_hash
        verify_inclusion(leaf_hash(row.entry_hash), seq - 1, size, found.hashes, scene.root(size))
        key = parse_key(found.checkpoint.key)
        assert parse_proof(found.file).verify(row.entry_hash, ORIGIN, [key]).size == size


@pytest.mark.parametrize(("old", "new"), [(1, 6), (1, 9), (6, 9), (9, 9)])
async def test_checkpoints_are_proved_to_go_on_from_each_other(scene: Scene, old: int, new: int) -> None:
    found = await audit(scene).prove_consistency(AUDITOR, CHAIN, old, new)
    verify_consistency(old, scene.root(old), new, scene.root(new), found.hashes)
    assert (found.older.signed.size, found.newer.signed.size) == (old, new)


async def test_what_has_no_checkpoint_is_not_proved(scene: Scene) -> None:
    asked = audit(scene)
    for attempt in (
        asked.prove(AUDITOR, CHAIN, 1, 5),
        asked.prove(AUDITOR, CHAIN, 1, 11),
        asked.prove_consistency(AUDITOR, CHAIN, 1, 11),
        asked.prove_consistency(AUDITOR, CHAIN, 2, 9),
        asked.prove_consistency(AUDITOR, CHAIN, 9, 6),
        audit(Scene()).checkpoint(AUDITOR, CHAIN),
    ):
        with pytest.raises(CheckpointNotFound):
            await attempt
    with pytest.raises(NotFound):
        await asked.prove(AUDITOR, CHAIN, 7, 6)


async def test_what_is_not_shown_is_one_row_too(scene: Scene) -> None:
    scene.trees.kept[CHAIN][6] = replace(scene.trees.kept[CHAIN][6], root=bytes(32))
    asked = audit(scene)
    for attempt, refusal in (
        (asked.prove(AUDITOR, CHAIN, 1, 5), CheckpointNotFound),
        (asked.prove(AUDITOR, CHAIN, 10, 9), NotFound),
        (asked.prove(AUDITOR, CHAIN, 1, 6), AuditDiverged),
        (asked.prove_consistency(AUDITOR, CHAIN, 1, 5), CheckpointNotFound),
        (audit(scene).checkpoint(AUDITOR, CHAIN), None),
    ):
        before = (await scene.chains.head(CHAIN)).seq
        if refusal is None:
            await attempt
        else:
            with pytest.raises(refusal):
                await attempt
        assert (await scene.chains.head(CHAIN)).seq == before + 1


async def test_each_is_one_row_and_for_auditors_only(scene: Scene) -> None:
    operations: list[tuple[str, Callable[[Audit], object]]] = [
        ("audit.checkpoint", lambda one: one.checkpoint(OTHER, CHAIN)),
        ("audit.prove", lambda one: one.prove(OTHER, CHAIN, 3, 6)),
        ("audit.prove-consistency", lambda one: one.prove_consistency(OTHER, CHAIN, 1, 6)),
    ]
    for action, operation in operations:
        for granted, reason in (("audit", "granted"), ("read", "out_of_scope")):
            before = (await scene.chains.head(CHAIN)).seq
            if granted == "audit":
                await operation(audit(scene, granted))  # type: ignore[misc]
            else:
                with pytest.raises(Forbidden):
                    await operation(audit(scene, granted))  # type: ignore[misc]
            rows = await scene.chains.page(CHAIN, Filter(), 2**62, 10)
            assert rows[0].seq == before + 1
            assert (rows[0].context["action"], rows[0].reason) == ([action], reason)
    assert not scene.chains.rows[PLATFORM]


def alter_an_entry(scene: Scene) -> None:
    scene.chains.rows[CHAIN][2] = replace(scene.chains.rows[CHAIN][2], entry_hash=bytes(32))


def delete_an_entry(scene: Scene) -> None:
    del scene.chains.rows[CHAIN][2]


def alter_a_leaf(scene: Scene) -> None:
    scene.trees.nodes[CHAIN][Node(0, 3)] = bytes(32)


def drop_a_leaf(scene: Scene) -> None:
    del scene.trees.nodes[CHAIN][Node(0, 3)]


def alter_a_root(scene: Scene) -> None:
    scene.trees.kept[CHAIN][6] = replace(scene.trees.kept[CHAIN][6], root=bytes(32))


def put_another_note(scene: Scene) -> None:
    scene.trees.kept[CHAIN][6] = replace(scene.trees.kept[CHAIN][6], note=scene.trees.kept[CHAIN][9].note)


@pytest.mark.parametrize(
    "tamper", [alter_an_entry, delete_an_entry, alter_a_leaf, drop_a_leaf, alter_a_root, put_another_note]
)
async def test_what_does_not_verify_is_not_shown(scene: Scene, tamper: Callable[[Scene], None]) -> None:
    tamper(scene)
    with pytest.raises(AuditDiverged):
        await audit(scene).prove(AUDITOR, CHAIN, 3, 6)


async def test_two_checkpoints_of_different_logs_are_not_shown_as_one(scene: Scene) -> None:
    scene.trees.nodes[CHAIN][Node(0, 0)] = bytes(32)
    with pytest.raises(AuditDiverged):
        await audit(scene).prove(AUDITOR, CHAIN, 2, 6)
    scene.trees.nodes[CHAIN][Node(0, 8)] = bytes(32)
    with pytest.raises(AuditDiverged):
        await audit(scene).prove_consistency(AUDITOR, CHAIN, 6, 9)


# The chain against its anchor -----------------------------------------------------------------------------------------


async def divergence(scene: Scene, first: int = 0, last: int = 0) -> int:
    return (await audit(scene).verify(AUDITOR, CHAIN, first, last)).divergent_seq


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 4), (3, 3), (2, 9), (7, 11), (9, 9), (10, 11)])
async def test_an_untouched_segment_is_as_it_was_anchored(scene: Scene, first: int, last: int) -> None:
    assert await divergence(scene, first, last) == 0


def rewrite_all(scene: Scene, first: int, *, tree: bool) -> None:
    scene.chains.rows[CHAIN] = tampering.rewritten(scene, first, 11)
    if tree:
        tampering.rewrite_tree(scene)
        nodes = scene.trees.nodes[CHAIN]
        scene.trees.nodes[CHAIN] = {
            node: value for node, value in nodes.items() if (node.position + 1) << node.level <= 9
        }


@pytest.mark.parametrize("first", [1, 2, 5, 9])
async def test_a_rewritten_chain_is_found_at_its_first_entry_while_the_tree_tells(scene: Scene, first: int) -> None:
    rewrite_all(scene, first, tree=False)
    assert await divergence(scene) == first
    assert await divergence(scene, 9, 9) == first


@pytest.mark.parametrize("first", [1, 2, 5, 9])
async def test_a_rewritten_chain_with_its_tree_is_found_by_the_anchor(scene: Scene, first: int) -> None:
    rewrite_all(scene, first, tree=True)
    for segment in ((0, 0), (first, 9), (first, 11), (9, 11)):
        verdict = await audit(scene).verify(AUDITOR, CHAIN, *segment)
        assert verdict.divergent_seq == 9
        assert verdict.expected_hash == scene.trees.kept[CHAIN][9].root.hex() != verdict.observed_hash


async def test_a_segment_before_the_rewritten_part_is_not_said_to_be_whole(scene: Scene) -> None:
    rewrite_all(scene, 5, tree=True)
    assert await divergence(scene, 1, 3) == 9


async def test_what_comes_after_the_anchor_can_be_rewritten(scene: Scene) -> None:
    # The residual risk: until the next checkpoint nothing outside of the database knows of these.
    rewrite_all(scene, 10, tree=False)
    assert await divergence(scene) == 0


@pytest.mark.parametrize("left", [0, 1, 5, 8])
async def test_a_tail_cut_off_with_its_head_is_found(scene: Scene, left: int) -> None:
    del scene.chains.rows[CHAIN][left:]
    for segment in ((0, 0), (1, 1)):
        verdict = await audit(scene).verify(AUDITOR, CHAIN, *segment)
        assert (verdict.divergent_seq, verdict.observed_hash) == (left + 1, "0" * 64)
        # The verification has a row of its own.
        del scene.chains.rows[CHAIN][left:]


async def test_a_tree_that_is_gone_hides_nothing(scene: Scene) -> None:
    scene.trees.nodes[CHAIN].clear()
    assert await divergence(scene) == 0
    assert await divergence(scene, 3, 3) == 9


async def test_without_the_anchor_there_is_no_verdict(scene: Scene) -> None:
    scene.anchors.refusal = OpenbaoUnavailable()
    with pytest.raises(OpenbaoUnavailable):
        await divergence(scene)
