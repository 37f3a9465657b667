"""Checkpoints (c2sp.org/tlog-checkpoint): the log's origin, its size and its root, as a signed note."""

import base64
import re
from collections.abc import Collection
from dataclasses import dataclass

from libs.tlog.note import VerifierKey, from_base64, open_note
from libs.tlog.tree import HASH_BYTES
from libs.tlog.verify import NotProven

DECIMAL = re.compile(r"(0|[1-9][0-9]{0,18})")
LINES = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a log was at one moment."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def open_checkpoint(note: str, origin: str, keys: Collection[VerifierKey]) -> Checkpoint:
    """Return the checkpoint of a log that one of the keys signed; raises NotProven otherwise.

    Extension lines are refused: our logs write none, and nothing of them could be audited.
    """
    lines = open_note(note, keys).removesuffix("\n").split("\n")
    if len(lines) != LINES:
        raise NotProven("the note is no checkpoint")
    if lines[0] != origin:
        raise NotProven("the checkpoint is another log's")
    root = from_base64(lines[2])
    if len(root) != HASH_BYTES:
        raise NotProven("the root has the wrong length")
    return Checkpoint(origin, decimal(lines[1]), root)


def decimal(text: str) -> int:
    """Read a number without sign and leading zeroes that fits 63 bits; raises NotProven otherwise."""
    if not DECIMAL.fullmatch(text) or int(text) >= 1 << 63:
        raise NotProven("a number is not right")
    return int(text)
