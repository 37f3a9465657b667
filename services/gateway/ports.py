"""The five ports behind the gate, and what they speak of. A deployment may not provide some of them."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Protocol
from uuid import UUID

from libs.envelope import Trust


@dataclass(frozen=True)
class Message:
    """A message as it came from the stream; nothing of it is believed yet."""

    sequence: int
    subject: str
    data: bytes


@dataclass(frozen=True)
class Delivery:
    """Messages in the order of the stream, and whether more is known to wait behind them."""

    messages: tuple[Message, ...]
    more: bool


@dataclass(frozen=True)
class Published:
    """An event from the log that the stream did not deliver; it is verified like any other."""

    sequence: int
    domain_id: UUID
    data: bytes


class Verdict(Enum):
    """What the nonce store says of an envelope."""

    PUBLISHED = "published"
    PENDING = "nonce_pending"
    REPLAYED = "nonce_replayed"
    ALTERED = "nonce_altered"
    UNKNOWN = "nonce_unknown"


@dataclass(frozen=True)
class Seen:
    """An envelope that asks to be believed: its nonce, where it stands, and the SHA-256 of its bytes."""

    sequence: int
    id: UUID
    digest: bytes


@dataclass(frozen=True)
class Place:
    """Where a node stands."""

    domain_id: UUID
    project_id: UUID


class EventStream(Protocol):
    """The events of all Domains. Raises Unavailable."""

    def follow(self, after: int | None, back_s: int) -> AsyncGenerator[Delivery, None]:
        """Yield what comes after a sequence, or from some seconds ago on; nothing of it is believed.

        The first delivery has no messages when none waits. It ends or raises when something could be missed.
        """

    @property
    def floor(self) -> int:
        """What mesh's log had noted up to those seconds ago, when the stream was opened there."""


class NonceStore(Protocol):
    """What mesh published: an id is good once, at one sequence, with its bytes. Raises Unavailable."""

    async def check(
        self, seen: Sequence[Seen], gaps: Sequence[tuple[int, int]]
    ) -> tuple[list[Verdict], list[Published]]:
        """Say of each what mesh's log says, and return what was published in the gaps; authoritative, never kept."""

    async def highest(self) -> int:
        """Return the highest sequence that is noted."""


class SignatureVerifier(Protocol):
    """The Domains' event keys. Raises Unavailable."""

    async def trust(self, domain_ids: Collection[UUID]) -> Mapping[UUID, Mapping[str, Trust]]:
        """Return the keys that verify now by Domain and key id; never kept, so that a revocation counts at once."""


class RelationChecker(Protocol):
    """Who may receive. Raises Unavailable, never a denial in its stead."""

    async def agent(self, node_id: UUID) -> bool:
        """Whether a node holds `node-agent` on itself; as fresh as the assertion that it came with."""

    async def agents(self, node_ids: Collection[UUID]) -> Mapping[UUID, frozenset[str]]:
        """Return those that hold `node-agent` on themselves, and the KIDs of the keys of each that count now.

        Fully consistent, never kept.
        """


class NodeRepo(Protocol):
    """The nodes that exist. Raises Unavailable."""

    async def place(self, node_id: UUID) -> Place | None:
        """Return where a node stands; None when there is no such node."""


@dataclass(frozen=True)
class Ports:
    """What this deployment provides of the five."""

    event_stream: EventStream | None = None
    nonce_store: NonceStore | None = None
    signature_verifier: SignatureVerifier | None = None
    relation_checker: RelationChecker | None = None
    node_repo: NodeRepo | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the ports that are not provided."""
        return tuple(port.name for port in fields(self) if getattr(self, port.name) is None)
