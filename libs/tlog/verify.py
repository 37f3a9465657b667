"""What a reader checks with nothing but hashes: proofs of inclusion and consistency (RFC 9162 2.1.3.2 and 2.1.4.2)."""

from collections.abc import Iterator, Sequence

from libs.tlog.tree import HASH_BYTES, node_hash


class NotProven(Exception):
    """A proof, note or checkpoint that shows nothing; the message says why and holds nothing of it."""


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if the leaf hash stands at the index of the tree; raises NotProven otherwise."""
    if not 0 <= index < size:
        raise NotProven("there is no such leaf in the tree")
    found = leaf
    for value, is_left in _way_up(index, size - 1, _hashes(proof)):
        found = node_hash(value, found) if is_left else node_hash(found, value)
    if found != root:
        raise NotProven("the proof leads to another root")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Return if the newer tree begins with all leaves of the older one; raises NotProven otherwise."""
    if not 0 < old <= new:
        raise NotProven("there are no such trees")
    if old == new:
        if proof or old_root != new_root:
            raise NotProven("two trees of one size differ")
        return
    # A complete tree is a subtree of every later one: the proof begins with what the reader has.
    path = [old_root, *_hashes(proof)] if old & (old - 1) == 0 else [*_hashes(proof)]
    if not path:
        raise NotProven("the proof is too short")
    position, last = old - 1, new - 1
    while position % 2:
        position, last = position >> 1, last >> 1
    before = after = path[0]
    for value, is_left in _way_up(position, last, path[1:]):
        before = node_hash(value, before) if is_left else before
        after = node_hash(value, after) if is_left else node_hash(after, value)
    if before != old_root or after != new_root:
        raise NotProven("the proof leads to other roots")


def _way_up(position: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each hash and whether it stands to the left, from a position on a level that ends at `last`."""
    for value in proof:
        if last == 0:
            raise NotProven("the proof is too long")
        is_left = bool(position % 2) or position == last
        yield value, is_left
        # Levels on which the right edge has no neighbour add nothing to the proof.
        while is_left and position and not position % 2:
            position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    if last:
        raise NotProven("the proof is too short")


def _hashes(proof: Sequence[bytes]) -> Sequence[bytes]:
    # Two that are too long and too short by as much would be hashed as two that are right.
    if any(len(value) != HASH_BYTES for value in proof):
        raise NotProven("a hash of the proof has the wrong length")
    return proof
