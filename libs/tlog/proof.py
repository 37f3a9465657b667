"""Proofs in a file (c2sp.org/tlog-proof): an index, the proof that the entry stands there, and the checkpoint."""

import base64
from collections.abc import Collection
from dataclasses import dataclass

from libs.tlog.checkpoint import Checkpoint, decimal, open_checkpoint
from libs.tlog.note import LARGEST, VerifierKey, from_base64
from libs.tlog.tree import HASH_BYTES, leaf_hash
from libs.tlog.verify import NotProven, verify_inclusion

HEADER, EXTRA, INDEX = "c2sp.org/tlog-proof@v1", "extra ", "index "


@dataclass(frozen=True)
class Proof:
    """That an entry stands at an index, counted from 0, of the log of a checkpoint; `extra` is nobody's word."""

    index: int
    hashes: tuple[bytes, ...]
    note: str
    extra: bytes = b""

    def __str__(self) -> str:
        extra = [EXTRA + base64.b64encode(self.extra).decode()] if self.extra else []
        path = [base64.b64encode(value).decode() for value in self.hashes]
        return "\n".join([HEADER, *extra, f"{INDEX}{self.index}", *path, "", self.note])

    def verify(self, entry: bytes, origin: str, keys: Collection[VerifierKey]) -> Checkpoint:
        """Return the checkpoint whose log holds the entry; raises NotProven otherwise."""
        checkpoint = open_checkpoint(self.note, origin, keys)
        verify_inclusion(leaf_hash(entry), self.index, checkpoint.size, self.hashes, checkpoint.root)
        return checkpoint


def parse_proof(text: str) -> Proof:
    """Read a proof; raises NotProven for anything else. The checkpoint in it is not believed yet."""
    if len(text) > LARGEST:
        raise NotProven("the proof is too large")
    head, gap, note = text.partition("\n\n")
    header, *lines = head.split("\n")
    if header != HEADER or not gap:
        raise NotProven("this is no proof")
    extra = b""
    if lines and lines[0].startswith(EXTRA):
        extra = from_base64(lines.pop(0).removeprefix(EXTRA))
    if not lines or not lines[0].startswith(INDEX):
        raise NotProven("the proof has no index")
    index = decimal(lines[0].removeprefix(INDEX))
    hashes = tuple(from_base64(line) for line in lines[1:])
    if any(len(value) != HASH_BYTES for value in hashes):
        raise NotProven("a hash of the proof has the wrong length")
    return Proof(index, hashes, note, extra)
