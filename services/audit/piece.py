"""How rows are held against what was written, many at once.

Nearly always all of them are as they were written, and that is said of them together; who says no looks row by row.
"""

import hashlib

from libs.chain import GENESIS, entry_hash
from services.audit.entry import agree
from services.audit.model import Piece


def follows(piece: Piece, expected: int, before: bytes) -> bool:
    """Say whether rows are those that follow from a sequence on, each as it was written."""
    sha256, hashes, last = hashlib.sha256, [before], before
    for content in piece.canonical:
        last = sha256(last + sha256(content).digest()).digest()
        hashes.append(last)
    return (
        list(piece.seq) == list(range(expected, expected + len(piece.seq)))
        and list(piece.entry_hash) == hashes[1:]
        and list(piece.prev_hash) == hashes[:-1]
        and agree(piece)
    )


def divergence(piece: Piece, expected: int, before: bytes) -> tuple[int, bytes, bytes] | None:
    """Return the first sequence at which rows are not what follows, with the hash expected and the one found."""
    if follows(piece, expected, before):
        return None
    for index, (seq, prev_hash, observed) in enumerate(zip(*piece[1:4], strict=True)):
        own = entry_hash(before, hashlib.sha256(piece.canonical[index]).digest())
        if seq != expected or prev_hash != before:
            return expected, before, prev_hash
        if observed != own:
            return expected, own, observed
        if not agree(piece.row(index)):
            # Zeros where the hash is right and only the columns are altered.
            return expected, own, GENESIS
        before, expected = own, expected + 1
    return None
