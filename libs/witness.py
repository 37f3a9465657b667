"""What a reader of a chain checks by himself, entry by entry in constant memory, believing nobody but a key.

Every entry must follow the one before it, and the Merkle root over all of them must be the one that was signed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from libs.archive import NotASegment, Segment, unpack
from libs.chain import GENESIS, Divergence, entry_hash
from libs.export import Exported, NotAnExport, is_end, read_entry
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import VerifierKey
from libs.tlog.tree import Run, Span, cover, fold
from libs.tlog.verify import NotProven


@dataclass(frozen=True)
class Known:
    """How far a chain was followed: its last hash, and the roots of the complete subtrees over its entries."""

    size: int = 0
    entry_hash: bytes = GENESIS
    parts: tuple[bytes, ...] = ()

    @property
    def root(self) -> bytes:
        """The root over all of it."""
        return fold(self.parts)


class Witness:
    """Follows a chain from what is known of it; each step returns the first divergence, after which it has ended."""

    def __init__(self, chain: str, known: Known | None = None) -> None:
        self.chain = chain
        # The last one that came.
        self.entry: Exported | None = None
        # How far it agrees with what was signed.
        self.proven = known = known or Known()
        self.before, self.run = known.entry_hash, Run()
        for node, value in zip(cover(Span(0, known.size)), known.parts, strict=True):
            self.run.add(node, value)
        self._signed: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """Sequence of the last entry that fits."""
        return self.run.end

    def expect(self, checkpoint: Checkpoint) -> Divergence | None:
        """Hold the chain against a checkpoint once it has come as far; nothing before what is known can be."""
        root = self._signed.setdefault(checkpoint.size, checkpoint.root)
        if root != checkpoint.root:
            return Divergence(checkpoint.size, root.hex(), checkpoint.root.hex(), "fork")
        if checkpoint.size < self.size:
            return Divergence(checkpoint.size + 1, self.run.root().hex(), checkpoint.root.hex(), "older")
        return self._judge()

    def push(self, entry: Exported) -> Divergence | None:
        """Take the entry that follows, as it is stored."""
        self.entry = entry
        if entry.seq != self.size + 1:
            return self._wrong("gap", entry.prev_hash)
        if entry.prev_hash != self.before:
            return self._wrong("link", entry.prev_hash)
        own = self._hash(entry.canonical)
        if own != entry.entry_hash:
            return Divergence(entry.seq, own.hex(), entry.entry_hash.hex(), "hash")
        return self._take(entry.canonical, own)

    def add(self, canonical: bytes) -> Divergence | None:
        """Take the bytes of the entry that follows."""
        return self._take(canonical, self._hash(canonical))

    def end(self, last: int = 0) -> Divergence | None:
        """Say whether entries are missing up to `last`, or up to what was signed."""
        if self.size < last:
            return self._wrong("gap")
        if missing := [root for size, root in self._signed.items() if size > self.size]:
            return Divergence(self.size + 1, missing[-1].hex(), "", "truncated")
        return None

    def lines(self, lines: Iterator[bytes], last: int, looked: Callable[[int], object]) -> Divergence | None:
        """Follow the lines of an export behind its first; `looked` hears how far it is."""
        begin = self.size
        for line in lines:
            if is_end(line, self.size - begin):
                return self.end(last) if next(lines, None) is None else self._wrong("form")
            try:
                found = self.push(read_entry(line))
            except NotAnExport:
                found = self._wrong("form" if line.endswith(b"\n") else "incomplete")
            if found:
                return found
            looked(self.size)
        return self._wrong("incomplete")

    def segments(
        self, objects: Iterable[bytes], keys: Iterable[VerifierKey], looked: Callable[[int], object]
    ) -> Divergence | None:
        """Follow the objects of an archive, each of which has the note of a checkpoint that covers it."""
        trusted = list(keys)
        for raw in objects:
            found = self._segment(raw, trusted)
            if found:
                return found
            looked(self.size)
        return self.end()

    def _segment(self, raw: bytes, keys: list[VerifierKey]) -> Divergence | None:
        try:
            segment: Segment = unpack(raw)
        except NotASegment:
            return self._wrong("form")
        if segment.chain != self.chain or segment.first != self.size + 1:
            return self._wrong("gap")
        if segment.prev_hash != self.before:
            return self._wrong("link", segment.prev_hash)
        try:
            checkpoint = open_checkpoint(segment.checkpoint, keys[0].name, keys)
        except NotProven:
            return self._wrong("note")
        if checkpoint.size < segment.last:
            return self._wrong("note")
        found = self.expect(checkpoint)
        for canonical in segment.entries:
            found = found or self.add(canonical)
        return found

    def _hash(self, canonical: bytes) -> bytes:
        return entry_hash(self.before, hashlib.sha256(canonical).digest())

    def _take(self, canonical: bytes, own: bytes) -> Divergence | None:
        if not self._belongs(canonical):
            return self._wrong("content")
        self.before = own
        self.run.push(own)
        return self._judge()

    def _belongs(self, canonical: bytes) -> bool:
        """Say whether the bytes name this chain and place, without which an entry could be another chain's."""
        try:
            content = json.loads(canonical)
        except (ValueError, RecursionError):
            return False
        return isinstance(content, dict) and (content.get("chain"), content.get("seq")) == (self.chain, self.size + 1)

    def _judge(self) -> Divergence | None:
        root = self._signed.get(self.size)
        if root is None:
            return None
        own = self.run.root()
        if own != root:
            return Divergence(self.size, root.hex(), own.hex(), "root")
        self.proven = Known(self.size, self.before, tuple(value for _, value in self.run.parts))
        return None

    def _wrong(self, kind: str, observed: bytes = b"") -> Divergence:
        return Divergence(self.size + 1, self.before.hex(), observed.hex(), kind)
