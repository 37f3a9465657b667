"""The audit chain's arithmetic: entry_hash = SHA-256(prev_hash ‖ SHA-256(canonical bytes)), genesis 32 zero bytes."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

GENESIS = bytes(32)


@dataclass(frozen=True)
class Link:
    """A row as the chain sees it; hashes are lower-case hex, compared as they are written."""

    seq: int
    prev_hash: str
    entry_hash: str
    content_hash: bytes


@dataclass(frozen=True)
class Divergence:
    """The first row that is not as it was written, and the hash that it should have had."""

    seq: int
    expected_hash: str
    observed_hash: str
    kind: str


def entry_hash(prev_hash: bytes, content_hash: bytes) -> bytes:
    """Return the hash of an entry from the hash before it and the SHA-256 of its canonical bytes."""
    return hashlib.sha256(prev_hash + content_hash).digest()


def verify(links: Iterable[Link], first: int, last: int, prev_hash: bytes = GENESIS) -> Divergence | None:
    """Recompute rows `first` to `last`, given the hash before `first`; returns the first divergence."""
    before, expected_seq = prev_hash, first
    for link in links:
        if link.seq > expected_seq == first:
            return Divergence(first, before.hex(), "", "gap")
        # A row that was deleted shows in the row after it, whose link then has both hashes to compare.
        if link.prev_hash != before.hex():
            return Divergence(link.seq, before.hex(), link.prev_hash, "link")
        if link.seq != expected_seq:
            return Divergence(link.seq, before.hex(), link.prev_hash, "gap")
        own = entry_hash(before, link.content_hash)
        if link.entry_hash != own.hex():
            return Divergence(link.seq, own.hex(), link.entry_hash, "hash")
        before, expected_seq = own, expected_seq + 1
    if expected_seq <= last:
        return Divergence(expected_seq, before.hex(), "", "truncated")
    return None
