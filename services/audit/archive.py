"""The rules of the archive mirror: what is checkpointed is copied away, and held against the database.

A segment is planned before it is uploaded, so that after a crash the same one is made again; what is there already must
be the same segment. Neither plan nor object is ever changed: a chain that goes on from a restored database is archived
anew, in an epoch of its own.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from libs.archive import NotASegment, Segment, name_of, pack, unpack
from libs.chain import GENESIS, entry_hash
from libs.clock import Clock
from libs.errors import AuditDiverged
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import VerifierKey
from libs.tlog.tree import Node, Run, leaf_hash
from libs.tlog.verify import NotProven
from services.audit.model import Comparison, Note
from services.audit.ports import Anchors, Objects, Segments, Store, Trees

# Entries an object: few enough that no append waits for one to be packed or compared, which is done between appends.
MOST = 1000

log = structlog.get_logger()


@dataclass(frozen=True)
class Archive:
    """Mirrors chains into an object store."""

    store: Store
    trees: Trees
    anchors: Anchors
    segments: Segments
    objects: Objects
    clock: Clock

    async def turn(self, chain: str) -> None:
        """Upload what was checkpointed and is not archived; raises AuditDiverged when something else is there."""
        newest, epoch = await self.trees.newest(chain), await self._epoch(chain)
        while newest is not None:
            note = await self.segments.open(chain, epoch)
            if note is None:
                done = await self.segments.end(chain, epoch)
                if done >= newest.size:
                    return
                planned = Note(done + 1, min(done + MOST, newest.size), newest.size)
                # Of two replicas one plans; both go on with what was planned.
                await self.segments.plan(chain, epoch, planned)
                continue
            await self._upload(chain, epoch, note)

    async def _epoch(self, chain: str) -> int:
        anchor = await self.anchors.read(chain)
        return anchor.epoch if anchor else 0

    async def _upload(self, chain: str, epoch: int, note: Note) -> None:
        segment, name = await self._made(chain, note), name_of(chain, note.first, epoch)
        etag = await self.objects.create(name, pack(segment))
        if etag is None:
            # Another replica was first, or this one before a crash.
            etag, there = await self.objects.read(name) or ("", b"")
            if _unpacked(there) != segment:
                raise AuditDiverged(f"the archive holds something else from entry {note.first} on")
        await self.segments.archived(chain, epoch, note.first, etag, self.clock.now())
        log.info("archive.uploaded", chain=chain, epoch=epoch, first=note.first, last=note.last)

    async def _made(self, chain: str, note: Note) -> Segment:
        """Return a segment from the database; raises AuditDiverged when it is not what was checkpointed."""
        signed = await self.trees.at(chain, note.size)
        rows = [row async for row in self.store.walk(chain, note.first, note.last)]
        if signed is None or len(rows) != note.last - note.first + 1:
            raise AuditDiverged("what was checkpointed is gone")
        entries = tuple(row.canonical for row in rows)
        segment = Segment(chain, note.first, rows[0].prev_hash, entries, signed.note)
        leaves = [Node(0, seq - 1) for seq in range(note.first, note.last + 1)]
        stored = await self.trees.hashes(chain, leaves)
        for leaf, own in zip(leaves, segment.hashes(), strict=True):
            if stored.get(leaf) != leaf_hash(own):
                raise AuditDiverged(f"entry {leaf.position + 1} is not what was checkpointed")
        return segment

    async def compare(self, chain: str, keys: Sequence[VerifierKey]) -> Comparison:
        """Hold all of a chain's archive against the database, and each of them against the newest signed checkpoint.

        Memory is constant but for 32 bytes and two roots a segment.
        """
        epoch = await self._epoch(chain)
        noted = {note.first: note async for note in self.segments.walk(chain, epoch)}
        # What the archive has beyond the notes was archived once, whatever the database says today.
        firsts = sorted(noted.keys() | {first async for first in self.objects.firsts(chain, epoch)})
        database, archive, signed = Side(), Side(), list[Checkpoint]()
        roots, difference = dict[int, tuple[bytes, bytes]](), 0
        for first in firsts:
            note, found = noted.get(first), await self._read(chain, epoch, first, archive, keys)
            segment, checkpoint = found or (None, None)
            if segment and note and segment.last != note.last:
                segment = None
            last = note.last if note else segment.last if segment else 0
            if first != database.end + 1 or last == 0:
                difference = difference or min(first, database.end + 1)
                archive.whole = False
                break
            rows = [row.canonical async for row in self.store.walk(chain, first, last)]
            difference = difference or _first_difference(first, last, rows, segment)
            archive.whole = archive.whole and segment is not None
            database.push(rows, last)
            archive.push(segment.entries if segment else rows, last)
            roots[last] = (database.run.root(), archive.run.root())
            signed += [checkpoint] if checkpoint else []
        if (newest := await self.trees.newest(chain)) is not None:
            kept = _opened(newest.note, keys)
            database.whole = database.whole and kept is not None
            signed += [kept] if kept else []
        covered = max((one for one in signed if one.size in roots), key=lambda one: one.size, default=None)
        of_database, of_archive = (root == covered.root for root in roots[covered.size]) if covered else (True, True)
        return Comparison(
            database.end,
            difference,
            covered.size if covered else 0,
            database_ok=database.whole and of_database,
            archive_ok=archive.whole and of_archive,
        )

    async def chains(self) -> list[str]:
        """Return the chains of which the database or the archive says that they are archived."""
        return sorted({*await self.segments.chains(), *await self.objects.chains()})

    async def require_same(self, chain: str, keys: Sequence[VerifierKey]) -> None:
        """Compare a chain; raises AuditDiverged with what is not as it was."""
        found = await self.compare(chain, keys)
        if found.difference or not (found.database_ok and found.archive_ok):
            right = {True: "as it was signed", False: "not as it was signed"}
            where = f"entry {found.difference} differs" if found.difference else f"{found.entries} entries are alike"
            database, archive = right[found.database_ok], right[found.archive_ok]
            raise AuditDiverged(f"{where}; the database is {database}, the archive is {archive}")

    async def _read(
        self, chain: str, epoch: int, first: int, archive: "Side", keys: Sequence[VerifierKey]
    ) -> tuple[Segment, Checkpoint] | None:
        found = await self.objects.read(name_of(chain, first, epoch))
        segment = _unpacked(found[1]) if found else None
        if segment is None or (segment.chain, segment.first, segment.prev_hash) != (chain, first, archive.before):
            return None
        checkpoint = _opened(segment.checkpoint, keys)
        return (segment, checkpoint) if checkpoint and checkpoint.size >= segment.last else None


@dataclass
class Side:
    """Entries as the database or the archive has them, so far."""

    before: bytes = GENESIS
    run: Run = field(default_factory=Run)
    whole: bool = True

    @property
    def end(self) -> int:
        """Sequence of the last entry."""
        return self.run.end

    def push(self, contents: Sequence[bytes], last: int) -> None:
        """Add entries; those that are missing up to the last leave a hole for good."""
        for content in contents:
            self.before = entry_hash(self.before, hashlib.sha256(content).digest())
            self.run.push(self.before)
        while self.run.end < last:
            self.whole = False
            self.run.push(GENESIS)


def _unpacked(raw: bytes) -> Segment | None:
    try:
        return unpack(raw)
    except NotASegment:
        return None


def _first_difference(first: int, last: int, rows: Sequence[bytes], segment: Segment | None) -> int:
    """Return the first entry that is not the same on both sides, 0 for none."""
    if segment is None:
        return first
    for seq, (ours, theirs) in enumerate(itertools.zip_longest(rows, segment.entries), first):
        if ours != theirs and seq <= last:
            return seq
    return 0


def _opened(note: str, keys: Sequence[VerifierKey]) -> Checkpoint | None:
    try:
        return open_checkpoint(note, keys[-1].name, keys)
    except NotProven:
        return None
