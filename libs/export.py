"""An export of a chain, a line of JSON each: what it is of, the entries as they are stored, and that it is whole.

Each line has one form only, so that no byte of a file can be another one unnoticed.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from libs.tlog.note import from_base64
from libs.tlog.tree import HASH_BYTES
from libs.tlog.verify import NotProven

MEDIA = "application/x-ndjson"
VERSION = 1
# A header with its note; no entry is longer either.
LONGEST_LINE = 1024 * 1024
HEX = re.compile(r"([0-9a-f]{2})*")
HEAD, ENTRY = ["audit_export", "chain", "from", "to", "checkpoint"], ["seq", "prev_hash", "entry_hash", "canonical"]
SIGNED = ["note", "key"]

Read = TypeVar("Read")


class NotAnExport(Exception):
    """A line that is not of an export; the message says why and holds nothing of it."""


@dataclass(frozen=True)
class Head:
    """What an export is of; without a checkpoint nothing was signed yet, and both texts of it are empty."""

    chain: str
    first: int
    last: int
    note: str = ""
    key: str = ""


@dataclass(frozen=True)
class Exported:
    """An entry as it is stored."""

    seq: int
    prev_hash: bytes
    entry_hash: bytes
    canonical: bytes


def head_line(head: Head) -> bytes:
    """Return the first line."""
    signed = {"note": head.note, "key": head.key} if head.note else None
    return _line(
        {"audit_export": VERSION, "chain": head.chain, "from": head.first, "to": head.last, "checkpoint": signed}
    )


def entry_line(entry: Exported) -> bytes:
    """Return the line of an entry."""
    canonical = base64.b64encode(entry.canonical).decode()
    hashes = {"prev_hash": entry.prev_hash.hex(), "entry_hash": entry.entry_hash.hex()}
    return _line({"seq": entry.seq, **hashes, "canonical": canonical})


def end_line(entries: int) -> bytes:
    """Return the last line, without which an export is not whole."""
    return _line({"end": entries})


def read_head(line: bytes) -> Head:
    """Read the first line; raises NotAnExport for anything else."""
    found = _read(line, HEAD)
    if found["audit_export"] != VERSION:
        raise NotAnExport("the version is another one")
    signed = found["checkpoint"]
    if signed is not None and not (
        isinstance(signed, dict) and list(signed) == SIGNED and all(isinstance(one, str) for one in signed.values())
    ):
        raise NotAnExport("the checkpoint is none")
    if not isinstance(found["chain"], str) or type(found["from"]) is not int or type(found["to"]) is not int:
        raise NotAnExport("the first line is another one")
    return _same(line, Head(found["chain"], found["from"], found["to"], **(signed or {})), head_line)


def read_entry(line: bytes) -> Exported:
    """Read the line of an entry; raises NotAnExport for anything else."""
    found = _read(line, ENTRY)
    prev_hash, own, canonical = (found[name] for name in ENTRY[1:])
    if type(found["seq"]) is not int or not all(isinstance(one, str) for one in (prev_hash, own, canonical)):
        raise NotAnExport("a member is of another kind")
    if not all(HEX.fullmatch(one) and len(one) == 2 * HASH_BYTES for one in (prev_hash, own)):
        raise NotAnExport("a hash is none")
    try:
        content = from_base64(canonical)
    except NotProven as error:
        raise NotAnExport(str(error)) from None
    return _same(line, Exported(found["seq"], bytes.fromhex(prev_hash), bytes.fromhex(own), content), entry_line)


def is_end(line: bytes, entries: int) -> bool:
    """Say whether a line is the last one of an export of so many entries."""
    return line == end_line(entries)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _read(line: bytes, names: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise NotAnExport("the line is no JSON") from None
    if not isinstance(found, dict) or list(found) != names:
        raise NotAnExport("the line has other members")
    return found


def _same(line: bytes, read: Read, write: Callable[[Read], bytes]) -> Read:
    if write(read) != line:
        raise NotAnExport("the line is written in another form")
    return read
