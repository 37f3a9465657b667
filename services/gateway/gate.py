"""The five-port gate in front of a node's events and state: all five, or 501; never half on.

A port is absent when the deployment does not provide it. One that is provided but cannot be reached is not absent: its
methods raise Unavailable, which is 503, because published agents stop for good or slow down on anything else.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from typing import Protocol
from uuid import UUID

from libs.errors import BusNotProvisioned


@dataclass(frozen=True)
class Envelope:
    """A signed event as it came from the stream: its sequence, the Domain of its subject, and its bytes."""

    sequence: int
    domain_id: UUID
    raw: bytes


class EventStream(Protocol):
    """The Domain's events in the order of their sequence."""

    def follow(self, domain_id: UUID, after: int | None) -> AsyncIterator[Envelope]:
        """Yield envelopes above `after`, from now on without it; raises EventStreamUnavailable, never skips a gap."""


class NonceStore(Protocol):
    """What mesh published, by the envelope's id."""

    async def published(self, event_id: UUID, sequence: int, digest: bytes) -> bool:
        """Say whether exactly these bytes were published at this sequence; authoritative, never cached beyond that."""


class SignatureVerifier(Protocol):
    """The Domain's event keys."""

    async def verifies(self, domain_id: UUID, key_id: str, signed: bytes, signature: bytes) -> bool:
        """Say whether the signature is by the Domain's current or still valid previous key."""


class RelationChecker(Protocol):
    """Who may receive what."""

    async def is_agent(self, node_id: UUID) -> bool:
        """Say whether the node holds `node-agent` on itself; fully consistent."""


class NodeRepo(Protocol):
    """The nodes that exist."""

    async def scopes(self, node_id: UUID) -> frozenset[str] | None:
        """Return the scopes that the node receives, or nothing when there is no such node."""


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


@dataclass(frozen=True)
class Gate:
    """All five ports."""

    event_stream: EventStream
    nonce_store: NonceStore
    signature_verifier: SignatureVerifier
    relation_checker: RelationChecker
    node_repo: NodeRepo


def open_gate(ports: Ports) -> Gate:
    """Return the gate when all five ports are provided; raises BusNotProvisioned for each of the other 31 cases."""
    stream, nonces, verifier = ports.event_stream, ports.nonce_store, ports.signature_verifier
    relations, nodes = ports.relation_checker, ports.node_repo
    if stream is None or nonces is None or verifier is None or relations is None or nodes is None:
        raise BusNotProvisioned
    return Gate(stream, nonces, verifier, relations, nodes)
