"""Segments of a chain as the archive keeps them: a header, then the canonical bytes of each entry, compressed.

The header is one line of canonical JSON (RFC 8785), each entry one line more, as canonical JSON holds no line break.
They hold no personal data. The header's checkpoint covers every entry, so that a reader needs nothing but the archive
and a key.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import rfc8785
import zstandard

from libs.chain import entry_hash

VERSION = 1
LARGEST = 64 * 1024 * 1024
LEVEL = 9
HEX = re.compile(r"[0-9a-f]{64}")
NAMES = {"chain", "checkpoint", "first", "last", "prev_hash", "v"}


class NotASegment(Exception):
    """Bytes that are not what the archive was given; the message says why and holds nothing of them."""


@dataclass(frozen=True)
class Segment:
    """Consecutive entries, the hash before the first of them, and the note of a checkpoint that covers all."""

    chain: str
    first: int
    prev_hash: bytes
    entries: tuple[bytes, ...]
    checkpoint: str

    @property
    def last(self) -> int:
        """Sequence of the last entry."""
        return self.first + len(self.entries) - 1

    def hashes(self) -> list[bytes]:
        """Return the entry hash of each entry, from the hash before the first."""
        found, before = list[bytes](), self.prev_hash
        for content in self.entries:
            before = entry_hash(before, hashlib.sha256(content).digest())
            found.append(before)
        return found


def name_of(chain: str, first: int, epoch: int = 0) -> str:
    """Return the object that holds a segment; names sort as sequences do, each epoch after the first is a folder."""
    return f"{chain}/{epoch}/{first:016d}.zst" if epoch else f"{chain}/{first:016d}.zst"


def newest(names: Iterable[str], chain: str) -> list[str]:
    """Return the objects of a chain's newest epoch, in order; those before were of a history that is over."""
    epochs: dict[int, list[str]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        epoch = path.parent.name if path.parent.name != chain else "0"
        if path.stem.isdecimal() and epoch.isdecimal() and name == name_of(chain, int(path.stem), int(epoch)):
            epochs[int(epoch)].append(name)
    return sorted(epochs[max(epochs)]) if epochs else []


def pack(segment: Segment) -> bytes:
    """Return a segment as it is stored; the same one is always the same bytes."""
    header: dict[str, str | int] = {
        "chain": segment.chain,
        "checkpoint": segment.checkpoint,
        "first": segment.first,
        "last": segment.last,
        "prev_hash": segment.prev_hash.hex(),
        "v": VERSION,
    }
    lines = b"".join(line + b"\n" for line in (rfc8785.dumps(header), *segment.entries))
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(lines)


def unpack(raw: bytes) -> Segment:
    """Return what `pack` stored; raises NotASegment for anything else."""
    header, *entries = _lines(raw)
    try:
        found = json.loads(header)
    except ValueError:
        raise NotASegment("the header is no JSON") from None
    if not isinstance(found, dict) or set(found) != NAMES or found["v"] != VERSION:
        raise NotASegment("the header is another one")
    first, last, prev_hash = found["first"], found["last"], found["prev_hash"]
    if not (type(first) is type(last) is int and first >= 1 and last - first + 1 == len(entries) >= 1):
        raise NotASegment("the header counts other entries")
    if not all(isinstance(found[name], str) for name in ("chain", "checkpoint", "prev_hash")):
        raise NotASegment("the header is another one")
    if not HEX.fullmatch(prev_hash):
        raise NotASegment("the header has no hash")
    return Segment(found["chain"], first, bytes.fromhex(prev_hash), tuple(entries), found["checkpoint"])


def _lines(raw: bytes) -> list[bytes]:
    try:
        if not 0 < zstandard.get_frame_parameters(raw).content_size <= LARGEST:
            raise NotASegment("the content is too large, or there is none")
        content = zstandard.ZstdDecompressor().decompress(raw, max_output_size=LARGEST, allow_extra_data=False)
    except zstandard.ZstdError:
        raise NotASegment("the content cannot be read") from None
    if not content.endswith(b"\n"):
        raise NotASegment("the last line has no end")
    return content[:-1].split(b"\n")
