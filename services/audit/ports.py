"""What the audit rules need from outside; each docstring is the promise."""

import datetime
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

from libs.custody import Secret
from libs.decision import Decision as Verdict
from libs.tlog.tree import Node
from services.audit.model import Anchor, Draft, Filter, Head, Note, Piece, Signed, Storage, Stored


class Appender(Protocol):
    """Takes decisions into chains, from many callers at once."""

    async def append(self, entry: Draft) -> int:
        """Return the entry's sequence; durable once it returns. The same idempotency key returns the same one."""


class Resumer(Appender, Protocol):
    """Appends to a chain that is refused."""

    async def resume(self, entry: Draft, head: Head) -> None:
        """Append an entry if the chain ends at a head, or did so before it; raises AcknowledgementStale. Durable."""


class Store(Protocol):
    """Reads chains and removes personal data."""

    async def storage(self) -> Storage:
        """Return where the database is that answers now."""

    async def head(self, chain: str) -> Head:
        """Return where a chain ends now."""

    async def page(self, chain: str, wanted: Filter, below: int, limit: int) -> list[Stored]:
        """Return matching entries with a sequence below `below`, newest first."""

    async def get(self, chain: str, seq: int) -> Stored | None:
        """Return one entry."""

    def walk(self, chain: str, first: int, last: int) -> AsyncIterator[Stored]:
        """Yield entries in order, in constant memory, from one snapshot."""

    async def piece(self, chain: str, first: int, last: int) -> Piece:
        """Return the entries that there are of some, in order, from one snapshot."""

    async def erase(self, chain: str, pseudonyms: list[str], at: datetime.datetime) -> datetime.datetime:
        """Remove the personal data behind pseudonyms; returns when it was first removed."""

    async def erased_at(self, chain: str, pseudonym: str) -> datetime.datetime | None:
        """Return when personal data was removed, if it was."""


class Peppers(Protocol):
    """The per-Domain secrets behind pseudonyms."""

    async def pepper(self, chain: str) -> Secret:
        """Return the chain's pepper, made at its first use and the same for every replica ever after."""


class Relations(Protocol):
    """Asks who may do what; never answers from memory."""

    async def check(self, subject: str, permission: str, resource: str) -> Verdict:
        """Answer one check; raises AuthzUnavailable for anything but an answer."""


class Trees(Protocol):
    """Keeps the Merkle tree over a chain, and its checkpoints; nothing of either is ever changed."""

    async def size(self, chain: str) -> int:
        """Return how many leaves the tree of a chain has."""

    async def hashes(self, chain: str, nodes: Iterable[Node]) -> dict[Node, bytes]:
        """Return the stored hashes of subtrees; those that are not stored are left out."""

    async def grow(self, chain: str, nodes: Sequence[tuple[Node, bytes]]) -> bool:
        """Store the hashes that new leaves make, the first leaf first, or none when another replica was there.

        Returns whether they were stored.
        """

    async def newest(self, chain: str) -> Signed | None:
        """Return the newest checkpoint of a chain."""

    async def at(self, chain: str, size: int) -> Signed | None:
        """Return the checkpoint of a chain that has a size."""

    async def keep(self, chain: str, signed: Signed) -> None:
        """Store a checkpoint; one that is there already stays."""

    async def due(self, entries: int, before: datetime.datetime) -> list[str]:
        """Return the chains with something new whose checkpoint is missing, old, or many entries behind."""


class Anchors(Protocol):
    """The newest checkpoint of each chain, where who holds the database cannot change it."""

    async def read(self, chain: str) -> Anchor | None:
        """Return the anchor as it is now, never from memory."""

    async def move(self, chain: str, note: str, before: Anchor | None, epoch: int = 0) -> bool:
        """Replace an anchor, None for none yet; returns whether it was still that one. Durable."""

    async def chains(self) -> list[str]:
        """Return the chains that may have an anchor."""

    async def storage(self, chain: str) -> str:
        """Return the name of the storage in which a chain was last found to be whole, empty for none."""

    async def found_whole(self, chain: str, storage: str) -> None:
        """Note that name. Durable."""


class Signer(Protocol):
    """Signs checkpoints with a key that nobody can take out."""

    async def keys(self) -> list[bytes]:
        """Return the public halves, the one that signs last."""

    async def sign(self, text: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032) of the exact bytes."""


class Segments(Protocol):
    """What is archived of each chain, by epoch; nothing of it is ever changed."""

    async def open(self, chain: str, epoch: int) -> Note | None:
        """Return the oldest segment that is planned and not archived."""

    async def end(self, chain: str, epoch: int) -> int:
        """Return the last entry that is planned, 0 for none."""

    async def plan(self, chain: str, epoch: int, note: Note) -> None:
        """Plan a segment; one that begins at the same entry stays."""

    async def archived(self, chain: str, epoch: int, first: int, etag: str, at: datetime.datetime) -> None:
        """Note that a segment is archived; the first note stays."""

    def walk(self, chain: str, epoch: int) -> AsyncIterator[Note]:
        """Yield the segments that are archived, in order."""

    async def chains(self) -> list[str]:
        """Return the chains of which something is archived."""

    async def due(self, entries: int, before: datetime.datetime) -> list[str]:
        """Return the chains with checkpointed entries of which none was archived since then, or with so many."""


class Objects(Protocol):
    """The object store. Raises ArchiveUnavailable."""

    async def create(self, name: str, content: bytes) -> str | None:
        """Store an object durably and return its etag, or None when there is one of this name, which stays."""

    async def read(self, name: str) -> tuple[str, bytes] | None:
        """Return the etag and the content of an object; None when there is none."""

    async def chains(self) -> list[str]:
        """Return the chains of which something is there."""

    def firsts(self, chain: str, epoch: int) -> AsyncIterator[int]:
        """Yield the first entry of each segment of an epoch that is there, in no order."""
