"""What the audit service knows: decisions, rows, personal records, divergences."""

import datetime
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

PLATFORM = "platform"
NIL = str(UUID(int=0))


def chain_of(domain_id: str) -> str:
    """Return the name of a chain: the Domain's id, or "platform"."""
    return domain_id or PLATFORM


def resource_of(chain: str) -> str:
    """Return the object whose relations decide who may read a chain."""
    return "platform:main" if chain == PLATFORM else f"domain:{chain}"


@dataclass(frozen=True)
class Decision:
    """One decision as its owner sent it; what is personal in it is in no repr."""

    chain: str
    idempotency_key: UUID
    occurred_at: datetime.datetime
    action: str
    subject_id: str = field(repr=False)
    subject_kind: str
    relation: str
    object_type: str
    object_id: str
    reason: str
    context: dict[str, list[str]]
    correlation_id: str
    client_ip: str = field(default="", repr=False)
    user_agent: str = field(default="", repr=False)


@dataclass(frozen=True)
class Draft:
    """A decision with all that does not depend on its place in the chain, its canonical bytes but for the sequence."""

    decision: Decision
    pseudonym: str
    salt: bytes = field(repr=False)
    context: str
    before_seq: bytes
    after_seq: bytes


@dataclass(frozen=True)
class Row:
    """A row ready to be written."""

    draft: Draft
    seq: int
    prev_hash: bytes
    entry_hash: bytes
    canonical: bytes


@dataclass(frozen=True)
class Head:
    """Where a chain ends: its last sequence and hash."""

    seq: int
    entry_hash: bytes


@dataclass(frozen=True)
class Stored:
    """A row as it stands in the database; personal data is empty once it was erased."""

    chain: str
    seq: int
    prev_hash: bytes
    entry_hash: bytes
    canonical: bytes
    occurred_at: datetime.datetime
    pseudonym: str
    relation: str
    object_type: str
    object_id: str
    reason: str
    correlation_id: str
    context: dict[str, list[str]]
    salt: bytes | None = field(default=None, repr=False)
    subject_id: str = field(default="", repr=False)
    subject_kind: str = ""
    client_ip: str = field(default="", repr=False)
    user_agent: str = field(default="", repr=False)
    erased: bool = False
    archive_etag: str = ""
    archived_at: datetime.datetime | None = None


class Piece(NamedTuple):
    """Rows that follow each other as they stand in the database, column by column; a context is its text."""

    chain: Sequence[str]
    seq: Sequence[int]
    prev_hash: Sequence[bytes]
    entry_hash: Sequence[bytes]
    canonical: Sequence[bytes]
    occurred_at: Sequence[datetime.datetime]
    pseudonym: Sequence[str]
    relation: Sequence[str]
    object_type: Sequence[str]
    object_id: Sequence[str]
    reason: Sequence[str]
    correlation_id: Sequence[str]
    context: Sequence[str]
    salt: Sequence[bytes | None]
    subject_id: Sequence[str]
    subject_kind: Sequence[str]
    client_ip: Sequence[str]
    user_agent: Sequence[str]
    erased: Sequence[bool]

    @classmethod
    def of(cls, rows: Iterable[Stored]) -> "Piece":
        """Return rows in columns."""
        listed = [
            tuple(json.dumps(row.context) if name == "context" else getattr(row, name) for name in cls._fields)
            for row in rows
        ]
        return cls._make(zip(*listed, strict=True) if listed else [()] * len(cls._fields))

    def row(self, index: int) -> "Piece":
        """Return one row."""
        return Piece._make(column[index : index + 1] for column in self)


@dataclass(frozen=True)
class Filter:
    """Which entries to list; empty fields do not restrict."""

    subject: str = ""
    relation: str = ""
    object_type: str = ""
    object_id: str = ""
    reason: str = ""
    correlation_id: str = ""
    after: datetime.datetime | None = None
    before: datetime.datetime | None = None


@dataclass(frozen=True)
class Verdict:
    """What recomputing a segment came to; `divergent_seq` is 0 when every row is as it was written."""

    segment_from: int
    segment_to: int
    divergent_seq: int = 0
    expected_hash: str = ""
    observed_hash: str = ""


@dataclass(frozen=True)
class Progress:
    """How many entries of a segment were looked at."""

    looked_at: int
    entries: int


@dataclass(frozen=True)
class Page:
    """A page of entries and the cursor of the next one."""

    rows: list[Stored] = field(default_factory=list)
    next_cursor: str = ""


@dataclass(frozen=True)
class Signed:
    """A checkpoint as it is kept: what its note says, and the note."""

    size: int
    root: bytes
    note: str
    created_at: datetime.datetime


@dataclass(frozen=True)
class Storage:
    """Where a database is: `server` is another one after a restart, `name` only after a restore or a swap."""

    server: str
    name: str


@dataclass(frozen=True)
class Anchor:
    """The newest note of a chain, kept where no DBA reaches; `version` counts how often it moved.

    `epoch` counts how often a restored database was acknowledged that does not go on from it.
    """

    note: str
    version: int
    epoch: int = 0


@dataclass(frozen=True)
class Shown:
    """A checkpoint that verifies, and the key that it verifies with."""

    signed: Signed
    key: str


@dataclass(frozen=True)
class Export:
    """Entries `first` to `last` as they stood when it began, piece by piece, and the newest checkpoint of that time."""

    first: int
    last: int
    checkpoint: Shown | None
    pieces: AsyncIterator[list[Stored]]


@dataclass(frozen=True)
class Inclusion:
    """That an entry is in the log of a checkpoint; `file` says the same as a `.tlog-proof`."""

    seq: int
    entry_hash: bytes
    hashes: list[bytes]
    checkpoint: Shown
    file: str


@dataclass(frozen=True)
class Consistency:
    """That the log of a checkpoint goes on from that of an older one."""

    hashes: list[bytes]
    older: Shown
    newer: Shown


@dataclass(frozen=True)
class Doubt:
    """Where entries are not what was anchored: the first that is known, and hashes of the tree that differ."""

    seq: int
    expected_hash: bytes
    observed_hash: bytes


@dataclass(frozen=True)
class Note:
    """A segment that is planned: its entries, and the size of the checkpoint that covers them."""

    first: int
    last: int
    size: int


@dataclass(frozen=True)
class Comparison:
    """What holding archive and database against each other came to.

    `difference` is the first entry that is not the same in both, 0 for none; each side is ok when all of it is what the
    checkpoint of `size` entries signs for.
    """

    entries: int
    difference: int
    size: int
    database_ok: bool
    archive_ok: bool
