"""The rules of the archive: what is uploaded, what a crash leaves, and which side a comparison believes."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from libs.archive import NotASegment, Segment, name_of, newest, pack, unpack
from libs.errors import AuditDiverged, DatastoreUnavailable
from services.audit import archive as rules
from services.audit.archive import Archive
from services.audit.model import Comparison, Note
from services.audit.tests.fakes import FakeObjects, FakeSegments
from services.audit.tests.test_checkpoints import Scene
from services.audit.tests.test_service import CHAIN

pytestmark = pytest.mark.unit


@dataclass
class Mirror(Scene):
    """A chain with its checkpoints, and its archive."""

    segments: FakeSegments = field(default_factory=FakeSegments)
    objects: FakeObjects = field(default_factory=FakeObjects)

    @property
    def archive(self) -> Archive:
        return Archive(self.chains, self.trees, self.anchors, self.segments, self.objects, self.clock)

    async def grow(self, *counts: int) -> None:
        """Append, checkpoint and archive, as often."""
        for count in counts:
            await self.append(count)
            await self.checkpoints.turn(CHAIN)
            await self.archive.turn(CHAIN)

    async def compared(self) -> Comparison:
        return await self.archive.compare(CHAIN, await self.checkpoints.keys(CHAIN))

    def alter(self, first: int, change: Callable[[Segment], Segment]) -> None:
        name = name_of(CHAIN, first)
        self.objects.content[name] = pack(change(unpack(self.objects.content[name])))

    def rewrite(self, seq: int, content: bytes) -> None:
        rows = self.chains.rows[CHAIN]
        rows[seq - 1] = replace(rows[seq - 1], canonical=content)


@pytest.fixture
def mirror() -> Mirror:
    return Mirror()


async def test_what_is_checkpointed_is_archived_once_and_whole(mirror: Mirror) -> None:
    await mirror.grow(3, 0, 4)
    await mirror.append(2)
    await mirror.archive.turn(CHAIN)
    first, second = (unpack(raw) for raw in mirror.objects.content.values())
    assert (first.first, first.last, second.first, second.last) == (1, 3, 4, 7)
    rows = mirror.chains.rows[CHAIN]
    assert [*first.entries, *second.entries] == [row.canonical for row in rows[:7]]
    assert second.prev_hash == first.hashes()[-1] == rows[2].entry_hash
    assert await mirror.compared() == Comparison(7, 0, 7, database_ok=True, archive_ok=True)


async def test_a_long_chain_is_archived_by_pieces(mirror: Mirror) -> None:
    await mirror.grow(rules.MOST + 5)
    assert [(note.first, note.last) for note in mirror.segments.planned[CHAIN, 0]] == [
        (1, rules.MOST), (rules.MOST + 1, rules.MOST + 5),
    ]  # fmt: skip
    assert (await mirror.compared()).archive_ok


async def test_after_a_crash_the_same_segment_is_made_and_found(mirror: Mirror) -> None:
    mirror.segments.refusal = DatastoreUnavailable()
    with pytest.raises(DatastoreUnavailable):
        await mirror.grow(3)
    mirror.segments.refusal = None
    await mirror.grow(2)
    assert [note.last for note in mirror.segments.planned[CHAIN, 0]] == [3, 5]
    assert (await mirror.compared()).archive_ok


async def test_something_else_in_its_place_is_neither_overwritten_nor_believed(mirror: Mirror) -> None:
    await mirror.objects.create(name_of(CHAIN, 1), b"something else")
    with pytest.raises(AuditDiverged):
        await mirror.grow(3)
    assert mirror.objects.content[name_of(CHAIN, 1)] == b"something else"
    assert not mirror.segments.etags


async def test_what_was_altered_after_its_checkpoint_is_not_archived(mirror: Mirror) -> None:
    await mirror.append(3)
    await mirror.checkpoints.turn(CHAIN)
    mirror.rewrite(2, b"{}")
    with pytest.raises(AuditDiverged):
        await mirror.archive.turn(CHAIN)
    assert not mirror.objects.content


ALTERED = {
    "an entry": lambda segment: replace(segment, entries=(segment.entries[0], b"{}", *segment.entries[2:])),
    "order": lambda segment: replace(segment, entries=segment.entries[::-1]),
    "the end": lambda segment: replace(segment, entries=segment.entries[:-1]),
    "the start": lambda segment: replace(segment, first=segment.first + 1),
    "the hash before": lambda segment: replace(segment, prev_hash=bytes(32)),
    "the checkpoint": lambda segment: replace(segment, checkpoint="a note"),
    "the chain": lambda segment: replace(segment, chain="another"),
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED.keys())
async def test_an_altered_object_is_found_and_the_database_believed(
    mirror: Mirror, change: Callable[[Segment], Segment]
) -> None:
    await mirror.grow(3, 4, 3)
    mirror.alter(4, change)
    found = await mirror.compared()
    assert 4 <= found.difference <= 5
    assert found == Comparison(10, found.difference, 10, database_ok=True, archive_ok=False)


@pytest.mark.parametrize("first", [1, 4, 8])
@pytest.mark.parametrize("content", [None, b"", b"not a segment", "older"])
async def test_an_object_that_is_gone_or_another_is_found(
    mirror: Mirror, first: int, content: bytes | str | None
) -> None:
    await mirror.grow(3, 4, 3)
    name, objects = name_of(CHAIN, first), mirror.objects.content
    raw = objects.pop(name)
    if content == "older":
        # Another segment under its name.
        objects[name] = next(other for other in objects.values() if other != raw)
    elif isinstance(content, bytes):
        objects[name] = content
    assert await mirror.compared() == Comparison(10, first, 10, database_ok=True, archive_ok=False)


@pytest.mark.parametrize("seq", [1, 5, 10])
async def test_a_database_that_was_altered_behind_an_intact_archive_is_found(mirror: Mirror, seq: int) -> None:
    await mirror.grow(3, 4, 3)
    mirror.rewrite(seq, b"{}")
    assert await mirror.compared() == Comparison(10, seq, 10, database_ok=False, archive_ok=True)


async def test_a_tail_that_was_cut_with_its_notes_and_checkpoints_is_in_the_archive(mirror: Mirror) -> None:
    await mirror.grow(3, 4, 3)
    del mirror.chains.rows[CHAIN][7:]
    del mirror.trees.kept[CHAIN][10]
    assert mirror.segments.planned[CHAIN, 0].pop() == Note(8, 10, 10)
    assert await mirror.compared() == Comparison(10, 8, 10, database_ok=False, archive_ok=True)


async def test_a_chain_that_was_rewritten_whole_is_not_what_was_signed(mirror: Mirror) -> None:
    await mirror.grow(3, 4)
    forged = Mirror(signer=mirror.signer, numbers=100)
    await forged.append(7)
    mirror.chains.rows[CHAIN] = forged.chains.rows[CHAIN]
    assert await mirror.compared() == Comparison(7, 1, 7, database_ok=False, archive_ok=True)


async def test_both_altered_alike_are_the_same_and_neither_is_what_was_signed(mirror: Mirror) -> None:
    await mirror.grow(3, 4)
    mirror.rewrite(5, b"{}")
    mirror.alter(4, lambda segment: replace(segment, entries=(segment.entries[0], b"{}", *segment.entries[2:])))
    assert await mirror.compared() == Comparison(7, 0, 7, database_ok=False, archive_ok=False)


async def test_what_nobody_signed_is_believed_of_neither(mirror: Mirror) -> None:
    await mirror.grow(3)
    other = Mirror()
    found = await mirror.archive.compare(CHAIN, await other.checkpoints.keys(CHAIN))
    assert found == Comparison(3, 1, 0, database_ok=False, archive_ok=False)


async def test_what_no_checkpoint_ends_in_yet_is_compared_and_not_doubted(mirror: Mirror) -> None:
    assert await mirror.compared() == Comparison(0, 0, 0, database_ok=True, archive_ok=True)
    await mirror.grow(rules.MOST + 5)
    mirror.segments.planned[CHAIN, 0].pop()
    mirror.objects.content.popitem()
    assert await mirror.compared() == Comparison(rules.MOST, 0, 0, database_ok=True, archive_ok=True)


async def test_a_comparison_says_what_is_as_it_was_signed(mirror: Mirror) -> None:
    await mirror.grow(3, 4)
    keys = await mirror.checkpoints.keys(CHAIN)
    assert await mirror.archive.chains() == [CHAIN]
    await mirror.archive.require_same(CHAIN, keys)
    mirror.rewrite(5, b"{}")
    with pytest.raises(AuditDiverged, match="entry 5 differs; the database is not as it was signed"):
        await mirror.archive.require_same(CHAIN, keys)


def test_a_segment_is_the_same_bytes_each_time_and_nothing_else_is_one() -> None:
    segment = Segment("chain", 5, bytes(32), (b'{"a":1}', b"{}"), "note\n\n\u2014 x y\n")
    raw = pack(segment)
    assert raw == pack(segment)
    assert unpack(raw) == segment
    for at in itertools.chain(range(0, len(raw), 7), [len(raw) - 1]):
        with pytest.raises(NotASegment):
            unpack(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    for other in (raw[:-1], raw + b"x", raw + raw, b""):
        with pytest.raises(NotASegment):
            unpack(other)


async def test_after_an_acknowledged_restore_a_chain_is_archived_anew_beside_what_was(mirror: Mirror) -> None:
    await mirror.grow(3, 4)
    before = dict(mirror.objects.content)
    mirror.chains.rows[CHAIN] = mirror.chains.rows[CHAIN][:3]
    tree = mirror.trees.nodes[CHAIN]
    mirror.trees.nodes[CHAIN] = {node: tree[node] for node in tree if (node.position + 1) << node.level <= 3}
    mirror.trees.kept[CHAIN].pop(7)
    mirror.numbers += 100
    await mirror.append(2)
    anchor = mirror.anchors.anchors[CHAIN]
    assert await mirror.checkpoints.accept(CHAIN, anchor)
    await mirror.grow(2)
    assert mirror.objects.content.items() >= before.items()
    fresh = [unpack(mirror.objects.content[name]) for name in sorted(mirror.objects.content.keys() - before.keys())]
    assert [(one.first, one.last) for one in fresh] == [(1, 7)]
    assert sorted(mirror.objects.content.keys() - before.keys()) == [name_of(CHAIN, 1, 1)]
    assert await mirror.compared() == Comparison(7, 0, 7, database_ok=True, archive_ok=True)
    # Who reads the archive alone reads the history that goes on.
    assert newest(mirror.objects.content, CHAIN) == [name_of(CHAIN, 1, 1)]
    assert newest(before, CHAIN) == [name_of(CHAIN, 1), name_of(CHAIN, 4)]
    assert newest([f"{CHAIN}/x/1.zst", f"{CHAIN}/1.zst", "another"], CHAIN) == []
