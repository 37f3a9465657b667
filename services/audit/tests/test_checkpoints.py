"""The rules of checkpoints: what is signed, in which order, and what is never signed."""

import asyncio
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import REGISTRY

from libs.clock import FixedClock
from libs.custody import Secret
from libs.errors import AuditDiverged, DatastoreUnavailable, OpenbaoUnavailable, SigningUnavailable
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.tree import Node, Run
from services.audit import checkpoints as rules
from services.audit.checkpoints import Checkpoints
from services.audit.entry import draft, link
from services.audit.model import Anchor, Head, Stored
from services.audit.rounds import Rounds
from services.audit.tests.fakes import FakeAnchors, FakeChains, FakeSigner, FakeTrees
from services.audit.tests.test_service import CHAIN, NOW, decision

pytestmark = pytest.mark.unit

NAME = "plexsphere.example/audit"
PEPPER = Secret(b"p" * 32)


@dataclass
class Scene:
    """A chain, its tree, the anchor and the key."""

    chains: FakeChains = field(default_factory=FakeChains)
    anchors: FakeAnchors = field(default_factory=FakeAnchors)
    signer: FakeSigner = field(default_factory=FakeSigner)
    clock: FixedClock = field(default_factory=lambda: FixedClock(NOW))
    numbers: int = 0

    def __post_init__(self) -> None:
        self.trees = FakeTrees(self.chains)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(NAME, self.chains, self.trees, self.anchors, self.signer, self.clock)

    async def append(self, count: int) -> None:
        for _ in range(count):
            self.numbers += 1
            await self.chains.append(draft(decision(self.numbers), PEPPER))

    async def sizes(self) -> list[int]:
        """The sizes that are kept; each note is signed, and for the chain as it is."""
        for size, signed in self.trees.kept[CHAIN].items():
            opened = open_checkpoint(signed.note, f"{NAME}/{CHAIN}", await self.checkpoints.keys(CHAIN))
            assert (opened.size, opened.root) == (size, signed.root) == (size, self.root(size))
        return sorted(self.trees.kept[CHAIN])

    def root(self, size: int) -> bytes:
        run = Run()
        for row in self.chains.rows[CHAIN][:size]:
            run.push(row.entry_hash)
        return run.root()

    @property
    def rounds(self) -> Rounds:
        minute = datetime.timedelta(seconds=60)
        return Rounds("checkpoint", self.checkpoints.turn, self.trees.due, self.clock, minute, 10)

    async def anchored(self) -> int:
        checkpoint = await self.checkpoints.anchored(CHAIN)
        return checkpoint.size if checkpoint else 0


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_each_checkpoint_is_signed_anchored_and_kept(scene: Scene) -> None:
    await scene.checkpoints.turn(CHAIN)
    assert (await scene.sizes(), await scene.anchored()) == ([], 0)
    for count, sizes in ((1, [1]), (0, [1]), (6, [1, 7]), (4, [1, 7, 11])):
        await scene.append(count)
        await scene.checkpoints.turn(CHAIN)
        assert (await scene.sizes(), await scene.anchored()) == (sizes, sizes[-1])


async def test_a_long_chain_is_taken_in_by_pieces(scene: Scene) -> None:
    await scene.append(rules.LEAVES + 3)
    await scene.checkpoints.turn(CHAIN)
    assert await scene.sizes() == [rules.LEAVES + 3]


async def test_the_key_may_be_rotated_between_two(scene: Scene) -> None:
    await scene.append(2)
    await scene.checkpoints.turn(CHAIN)
    scene.signer.pairs.append(Ed25519PrivateKey.generate())
    await scene.append(2)
    await scene.checkpoints.turn(CHAIN)
    assert await scene.sizes() == [2, 4]


async def test_what_another_key_signed_is_neither_anchored_nor_kept(scene: Scene) -> None:
    scene.signer.signs = Ed25519PrivateKey.generate()
    await scene.append(2)
    with pytest.raises(SigningUnavailable):
        await scene.checkpoints.turn(CHAIN)
    assert (await scene.sizes(), await scene.anchored()) == ([], 0)


async def test_without_the_anchor_nothing_is_signed(scene: Scene) -> None:
    scene.anchors.refusal = OpenbaoUnavailable()
    await scene.append(2)
    with pytest.raises(OpenbaoUnavailable):
        await scene.checkpoints.turn(CHAIN)
    assert await scene.sizes() == []


async def test_after_a_crash_between_anchor_and_database_the_anchored_one_is_kept(scene: Scene) -> None:
    await scene.append(3)
    scene.trees.refusal = DatastoreUnavailable()
    with pytest.raises(DatastoreUnavailable):
        await scene.checkpoints.turn(CHAIN)
    assert (await scene.sizes(), await scene.anchored()) == ([], 3)
    scene.trees.refusal = None
    await scene.append(2)
    await scene.checkpoints.turn(CHAIN)
    assert (await scene.sizes(), await scene.anchored()) == ([3, 5], 5)


async def test_after_a_crash_between_tree_and_signature_the_tree_goes_on(scene: Scene) -> None:
    await scene.append(3)
    scene.signer.signs = Ed25519PrivateKey.generate()
    with pytest.raises(SigningUnavailable):
        await scene.checkpoints.turn(CHAIN)
    assert await scene.trees.size(CHAIN) == 3
    scene.signer.signs = None
    await scene.append(2)
    await scene.checkpoints.turn(CHAIN)
    assert await scene.sizes() == [5]


async def test_of_two_replicas_one_wins_and_there_is_no_fork(scene: Scene) -> None:
    @dataclass
    class Slow(FakeSigner):
        """Lets everybody come as far as the signature before anybody anchors."""

        async def sign(self, text: bytes) -> bytes:
            signature = await super().sign(text)
            for _ in range(10):
                await asyncio.sleep(0)
            return signature

    scene.signer = Slow()
    await scene.append(3)
    await scene.checkpoints.turn(CHAIN)
    await scene.append(4)
    # Both have the tree already, and both sign.
    scene.signer.signs = Ed25519PrivateKey.generate()
    with pytest.raises(SigningUnavailable):
        await scene.checkpoints.turn(CHAIN)
    scene.signer.signs = None
    await asyncio.gather(*(scene.checkpoints.turn(CHAIN) for _ in range(5)))
    assert await scene.sizes() == [3, 7]
    assert scene.anchors.anchors[CHAIN].version == 2


async def test_who_is_overtaken_on_the_way_to_the_anchor_keeps_nothing(scene: Scene) -> None:
    @dataclass
    class Overtaken(FakeSigner):
        """While the first signs, another replica checkpoints a longer chain."""

        once: bool = True

        async def sign(self, text: bytes) -> bytes:
            if self.once:
                self.once = False
                await scene.append(2)
                await scene.checkpoints.turn(CHAIN)
            return await super().sign(text)

    scene.signer = Overtaken()
    await scene.append(3)
    await scene.checkpoints.turn(CHAIN)
    assert (await scene.sizes(), await scene.anchored()) == ([5], 5)


async def test_who_is_overtaken_between_two_looks_raises_no_alarm(scene: Scene) -> None:
    @dataclass
    class Late(FakeAnchors):
        """The first to read hears of its anchor when another replica has already moved it."""

        once: bool = True

        async def read(self, chain: str) -> Anchor | None:
            found = await super().read(chain)
            if self.once and found is not None:
                self.once = False
                await scene.append(2)
                await scene.checkpoints.turn(CHAIN)
            return found

    scene.anchors = Late()
    for _ in range(2):
        await scene.append(3)
        await scene.checkpoints.turn(CHAIN)
    assert (await scene.sizes(), await scene.anchored()) == ([3, 8], 8)


async def test_who_is_overtaken_at_the_tree_signs_nothing(scene: Scene) -> None:
    @dataclass
    class Taken(FakeTrees):
        async def grow(self, chain: str, nodes: Sequence[tuple[Node, bytes]]) -> bool:
            return False

    scene.trees = Taken(scene.chains)
    await scene.append(3)
    await scene.checkpoints.turn(CHAIN)
    assert (await scene.sizes(), await scene.anchored()) == ([], 0)


def rewritten(scene: Scene, first: int, last: int) -> list[Stored]:
    """Return the chain with other entries from `first` on, and every hash after it made to fit."""
    rows = scene.chains.rows[CHAIN][: first - 1]
    head = Head(rows[-1].seq, rows[-1].entry_hash) if rows else Head(0, bytes(32))
    decisions = [replace(decision(1000 + seq), object_id=f"framed-{seq}") for seq in range(first, last + 1)]
    made = FakeChains({CHAIN: rows})
    for one in link([draft(each, PEPPER) for each in decisions], head):
        made.add(one)
    return made.rows[CHAIN]


def rewrite(scene: Scene) -> None:
    scene.chains.rows[CHAIN] = rewritten(scene, 3, 7)


def rewrite_with_tree(scene: Scene) -> None:
    rewrite(scene)
    rewrite_tree(scene)


def truncate(scene: Scene) -> None:
    del scene.chains.rows[CHAIN][5:]


def truncate_with_tree(scene: Scene) -> None:
    truncate(scene)
    rewrite_tree(scene)
    scene.trees.kept[CHAIN].clear()


def rewrite_tree(scene: Scene) -> None:
    run, nodes = Run(), dict[Node, bytes]()
    for row in scene.chains.rows[CHAIN]:
        nodes |= dict(run.push(row.entry_hash))
    scene.trees.nodes[CHAIN] = nodes


def take_back_the_anchor(scene: Scene) -> None:
    scene.anchors.anchors.clear()


def forge_the_anchor(scene: Scene) -> None:
    scene.anchors.anchors[CHAIN] = Anchor(scene.anchors.anchors[CHAIN].note.replace("\n7\n", "\n6\n"), 2)


def alter_the_last(scene: Scene) -> None:
    scene.chains.rows[CHAIN][6] = replace(scene.chains.rows[CHAIN][6], entry_hash=bytes(32))


def drop_a_node(scene: Scene) -> None:
    del scene.trees.nodes[CHAIN][Node(2, 0)]


def alter_a_node(scene: Scene) -> None:
    scene.trees.nodes[CHAIN][Node(2, 0)] = bytes(32)


def rewind_the_head(scene: Scene) -> None:
    @dataclass
    class Rewound(FakeChains):
        async def head(self, chain: str) -> Head:
            return Head(5, self.rows[chain][4].entry_hash)

    scene.chains = Rewound(scene.chains.rows)


TAMPERED: dict[str, tuple[Callable[[Scene], None], str]] = {
    "the chain from an entry on": (rewrite, "entry 7"),
    "the chain and its tree": (rewrite_with_tree, "not what was anchored"),
    "the tail cut off": (truncate, "shorter than its tree"),
    "the tail cut off with tree and checkpoints": (truncate_with_tree, "shorter than its anchor"),
    "the head rewound": (rewind_the_head, "shorter than its tree"),
    "the anchor taken away": (take_back_the_anchor, "older than a stored"),
    "the anchor forged": (forge_the_anchor, "not one of ours"),
    "the last entry": (alter_the_last, "entry 7"),
    "a hash of the tree dropped": (drop_a_node, "not whole"),
    "a hash of the tree altered": (alter_a_node, "not what was anchored"),
}


@pytest.mark.parametrize("name", TAMPERED)
async def test_nothing_is_signed_after(scene: Scene, name: str) -> None:
    await scene.append(7)
    await scene.checkpoints.turn(CHAIN)
    tamper, reason = TAMPERED[name]
    tamper(scene)
    before = dict(scene.anchors.anchors)
    with pytest.raises(AuditDiverged, match=reason):
        await scene.checkpoints.turn(CHAIN)
    await scene.append(1)
    with pytest.raises(AuditDiverged):
        await scene.checkpoints.turn(CHAIN)
    assert scene.anchors.anchors == before
    assert max(scene.trees.kept[CHAIN], default=7) == 7


@pytest.mark.parametrize("column", ["canonical", "entry_hash", "prev_hash"])
async def test_an_entry_that_was_altered_before_its_checkpoint_is_not_signed_for(scene: Scene, column: str) -> None:
    await scene.append(5)
    changed: dict[str, Any] = {column: bytes(32)}
    scene.chains.rows[CHAIN][3] = replace(scene.chains.rows[CHAIN][3], **changed)
    with pytest.raises(AuditDiverged, match="entry 4"):
        await scene.checkpoints.turn(CHAIN)
    assert (await scene.anchored(), scene.trees.nodes[CHAIN]) == (0, {})


async def test_a_head_beyond_its_entries_is_not_signed_for(scene: Scene) -> None:
    await scene.append(5)

    @dataclass
    class Ahead(FakeChains):
        async def head(self, chain: str) -> Head:
            return Head(6, bytes(32))

    scene.chains = Ahead(scene.chains.rows)
    with pytest.raises(AuditDiverged, match="missing"):
        await scene.checkpoints.turn(CHAIN)


async def test_a_checkpoint_is_due_after_a_while_or_after_many_entries(scene: Scene) -> None:
    rounds = scene.rounds
    await scene.append(1)
    await rounds.look()
    await scene.append(9)
    await rounds.look()
    assert await scene.sizes() == [1]
    await scene.append(1)
    await rounds.look()
    assert await scene.sizes() == [1, 11]
    await scene.append(1)
    scene.clock.advance(59)
    await rounds.look()
    assert await scene.sizes() == [1, 11]
    scene.clock.advance(1)
    await rounds.look()
    assert await scene.sizes() == [1, 11, 12]
    scene.clock.advance(600)
    await rounds.look()
    assert await scene.sizes() == [1, 11, 12]


def alarms() -> float:
    labels = {"control": "checkpoint", "reason": "diverged"}
    return REGISTRY.get_sample_value("plexsphere_refusals_total", labels) or 0.0


async def test_a_chain_that_diverged_holds_up_no_other_and_is_looked_at_again(scene: Scene) -> None:
    other = CHAIN[:-1] + "2"
    rounds = scene.rounds
    await scene.append(5)
    whole = list(scene.chains.rows[CHAIN])
    scene.chains.rows[CHAIN][3] = replace(whole[3], entry_hash=bytes(32))
    await scene.chains.append(draft(decision(500, chain=other), PEPPER))
    before = alarms()
    await rounds.look()
    assert (await scene.sizes(), list(scene.trees.kept[other]), alarms()) == ([], [1], before + 1)
    scene.chains.rows[CHAIN] = whole
    await rounds.look()
    assert await scene.sizes() == []
    scene.clock.advance(60)
    await rounds.look()
    assert await scene.sizes() == [5]


async def test_a_checkpoint_of_another_chain_is_no_anchor_of_this_one(scene: Scene) -> None:
    other = CHAIN[:-1] + "2"
    await scene.append(2)
    await scene.chains.append(draft(decision(500, chain=other), PEPPER))
    await scene.checkpoints.turn(CHAIN)
    await scene.checkpoints.turn(other)
    scene.anchors.anchors[other] = scene.anchors.anchors[CHAIN]
    with pytest.raises(AuditDiverged):
        await scene.checkpoints.anchored(other)
    assert Checkpoint(f"{NAME}/{CHAIN}", 2, scene.root(2)) == await scene.checkpoints.anchored(CHAIN)
