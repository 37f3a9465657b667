"""The Merkle tree over a log's entries (RFC 6962 2.1), from stored hashes of complete subtrees.

Nothing is read here: a question first says which subtrees it needs, O(log n) of them, and then works on their hashes.
A leaf is SHA-256(0x00 ‖ entry), a node SHA-256(0x01 ‖ left ‖ right), the empty tree SHA-256 of nothing.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

HASH_BYTES = 32
EMPTY = hashlib.sha256().digest()


class Node(NamedTuple):
    """A complete subtree: leaves position * 2^level up to, not including, (position + 1) * 2^level."""

    level: int
    position: int


class Span(NamedTuple):
    """Leaves `begin` up to, not including, `end`, counted from 0."""

    begin: int
    end: int


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """Return the hash of neighbouring subtrees, the larger ones to the left, as RFC 6962 splits a tree."""
    if not hashes:
        return EMPTY
    *left, folded = hashes
    for value in reversed(left):
        folded = node_hash(value, folded)
    return folded


def cover(span: Span) -> Iterator[Node]:
    """Yield the fewest complete subtrees that hold a span, from left to right."""
    begin, end = span
    while begin < end:
        level = (end - begin).bit_length() - 1
        if begin:
            # No subtree begins where it is not aligned.
            level = min(level, (begin & -begin).bit_length() - 1)
        yield Node(level, begin >> level)
        begin += 1 << level


class Run:
    """Consecutive leaves as the fewest complete subtrees; O(log n) hashes, however many leaves."""

    def __init__(self, begin: int = 0) -> None:
        self.begin = self.end = begin
        self.parts: list[tuple[Node, bytes]] = []

    def add(self, node: Node, value: bytes) -> list[tuple[Node, bytes]]:
        """Add the subtree that follows; returns it and each larger one that it completes."""
        if node.position << node.level != self.end:
            raise ValueError(f"{node} does not follow leaf {self.end}")
        self.end += 1 << node.level
        made = [(node, value)]
        while node.position % 2 and self.parts and self.parts[-1][0] == Node(node.level, node.position - 1):
            value = node_hash(self.parts.pop()[1], value)
            node = Node(node.level + 1, node.position >> 1)
            made.append((node, value))
        self.parts.append((node, value))
        return made

    def extend(self, span: Span, hashes: Mapping[Node, bytes]) -> None:
        """Add the subtrees that hold a span, by their stored hashes."""
        for node in cover(span):
            self.add(node, hashes[node])

    def push(self, entry: bytes) -> list[tuple[Node, bytes]]:
        """Add the entry that follows; returns the hashes that are new, fewer than two an entry over all."""
        return self.add(Node(0, self.end), leaf_hash(entry))

    def push_all(self, entries: Sequence[bytes]) -> None:
        """Add the entries that follow, without saying which hashes are new."""
        begin = self.end
        for node in cover(Span(begin, begin + len(entries))):
            first = (node.position << node.level) - begin
            level = [leaf_hash(entry) for entry in entries[first : first + (1 << node.level)]]
            while len(level) > 1:
                level = [node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=True)]
            self.add(node, level[0])

    def root(self) -> bytes:
        """Return the root of the tree that ends here; only for a run from the first leaf on."""
        if self.begin:
            raise ValueError("a run from within has no root")
        return fold([value for _, value in self.parts])


def inclusion(index: int, size: int) -> list[Span]:
    """Return what the proof that a leaf is in a tree is made of: PATH of RFC 6962 2.1.1, from the leaf upwards."""
    if not 0 <= index < size:
        raise ValueError("there is no such leaf")
    path, begin, end = [], 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(begin, middle))
            begin = middle
    return path[::-1]


def consistency(old: int, new: int) -> list[Span]:
    """Return what the proof that a tree goes on from an older one is made of: PROOF of RFC 6962 2.1.2."""
    if not 0 < old <= new:
        raise ValueError("there are no such trees")
    path, begin, end = [], 0, new
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(begin, middle))
            begin = middle
    # The old root itself needs no saying.
    return ([Span(begin, end)] if begin else []) + path[::-1]


def prove(spans: Sequence[Span], hashes: Mapping[Node, bytes]) -> list[bytes]:
    """Return the hashes of a proof from the stored ones."""
    return [fold([hashes[node] for node in cover(span)]) for span in spans]


def _split(count: int) -> int:
    """Return the largest power of two below a count."""
    return 1 << (count - 1).bit_length() - 1
