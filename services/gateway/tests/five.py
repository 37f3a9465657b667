"""Fakes of the five ports, and a publisher that makes what a real one makes."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from nacl.signing import SigningKey

from devstack.process import until
from libs import envelope
from libs.clock import SystemClock, rfc3339
from libs.decision import Record
from libs.envelope import Trust
from libs.errors import AuditUnavailable, EventStreamUnavailable
from libs.ids import uuid7
from services.gateway.gate import Gate, open_gate
from services.gateway.hub import Hub
from services.gateway.ports import Delivery, Message, Place, Ports, Published, Seen, Verdict
from services.gateway.refusals import RefusedEnvelopes

KID = "nsk_1"


@dataclass
class FakeMesh:
    """Event stream, nonce store and signature verifier, with one Domain's key."""

    domain: UUID = field(default_factory=uuid7)
    key: SigningKey = field(default_factory=SigningKey.generate)
    messages: list[Message] = field(default_factory=list)
    log: dict[int, tuple[UUID, bytes]] = field(default_factory=dict)
    pending: int = 0
    # Places that are not noted.
    hidden: set[int] = field(default_factory=set)
    position: int = 0
    floor: int = 0
    down: set[str] = field(default_factory=set)
    trusts: dict[UUID, dict[str, Trust]] = field(default_factory=dict)
    untold: set[UUID] = field(default_factory=set)
    bug: Exception | None = None
    checks: int = 0
    gaps: list[int] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def kid(self) -> str:
        return f"evk_{hashlib.sha256(bytes(self.key.verify_key)).hexdigest()[:32]}"

    def __post_init__(self) -> None:
        self.trusts[self.domain] = {self.kid: Trust(self.kid, bytes(self.key.verify_key))}

    def sign(self, **changes: Any) -> bytes:
        """Return an envelope of the Domain; `changes` replace what is signed."""
        wanted: dict[str, Any] = {
            "identifier": str(uuid7()),
            "kind": "action_request",
            "scope": f"domain:{self.domain}",
            "key_id": self.kid,
            "issued_at": rfc3339(SystemClock().now()),
            "payload": b"{}",
        }
        key = changes.pop("key", self.key)
        signed = envelope.canonical(**(wanted | changes))
        signature = base64.b64encode(key.sign(signed).signature)
        return signed[:-1] + b',"signature":"' + signature + b'"}'

    def put(self, data: bytes, subject: str = "", *, logged: bool = True, lost: bool = False) -> int:
        """Put bytes at the next sequence, as mesh does (`logged`) or as somebody else does; returns the sequence."""
        self.position += 1
        parsed = None
        if not subject or logged:
            parsed = envelope.parse(data)
            subject = subject or f"events.{self.domain}.{parsed.scope.replace(':', '.')}.{parsed.type}"
        if logged and parsed is not None:
            self.log[self.position] = (UUID(parsed.id), data)
        if not lost:
            self.messages.append(Message(self.position, subject, data))
        self._arrived.set()
        return self.position

    async def follow(self, after: int | None, back_s: int) -> AsyncGenerator[Delivery, None]:
        self._check("stream")
        at = 0 if after is None else after
        if not any(message.sequence > at for message in self.messages):
            yield Delivery((), more=False)
        while True:
            self._arrived.clear()
            fresh = tuple(message for message in self.messages if message.sequence > at)
            if fresh:
                at = fresh[-1].sequence
                yield Delivery(fresh, more=False)
            await self._arrived.wait()
            self._check("stream")

    @property
    def noted(self) -> dict[int, tuple[UUID, bytes]]:
        """What counts as published."""
        return {at: row for at, row in self.log.items() if at not in self.hidden}

    def break_stream(self) -> None:
        self.down.add("stream")
        self._arrived.set()

    async def check(
        self, seen: Sequence[Seen], gaps: Sequence[tuple[int, int]]
    ) -> tuple[list[Verdict], list[Published]]:
        self._check("nonces")
        self.checks += 1
        self.gaps.append(len(gaps))
        if self.bug:
            raise self.bug
        missing = [
            Published(at, self.domain, data)
            for at, (_, data) in sorted(self.noted.items())
            if any(first <= at <= last for first, last in gaps)
        ]
        return [self._verdict(one) for one in seen], missing

    def _verdict(self, one: Seen) -> Verdict:
        known = dict(self.log.values())
        if one.id not in known:
            return Verdict.UNKNOWN
        if hashlib.sha256(known[one.id]).digest() != one.digest:
            return Verdict.ALTERED
        if self.noted.get(one.sequence, (None, b""))[0] == one.id:
            if self.pending:
                self.pending -= 1
                return Verdict.PENDING
            return Verdict.PUBLISHED
        return Verdict.REPLAYED if one.id in dict(self.noted.values()) else Verdict.PENDING

    async def highest(self) -> int:
        self._check("nonces")
        return max(self.noted, default=0)

    async def trust(self, domain_ids: Collection[UUID]) -> Mapping[UUID, Mapping[str, Trust]]:
        self._check("keys")
        return {domain_id: self.trusts.get(domain_id, {}) for domain_id in domain_ids if domain_id not in self.untold}

    def _check(self, name: str) -> None:
        if name in self.down:
            raise EventStreamUnavailable(name)


@dataclass
class FakeFleet:
    """Relation checker and node repository."""

    places: dict[UUID, Place] = field(default_factory=dict)
    refused: set[UUID] = field(default_factory=set)
    kids: dict[UUID, str] = field(default_factory=dict)
    down: bool = False

    async def agent(self, node_id: UUID) -> bool:
        return bool(await self.agents([node_id]))

    async def agents(self, node_ids: Collection[UUID]) -> Mapping[UUID, frozenset[str]]:
        if self.down:
            raise EventStreamUnavailable
        return {
            node_id: frozenset({self.kids.get(node_id, KID)}) for node_id in node_ids if node_id not in self.refused
        }

    async def place(self, node_id: UUID) -> Place | None:
        if self.down:
            raise EventStreamUnavailable
        return self.places.get(node_id)


@dataclass
class FakeAudit:
    """Rows of the chain, once a key."""

    rows: dict[UUID, Record] = field(default_factory=dict)
    down: bool = False

    async def record(self, record: Record) -> int:
        if self.down:
            raise AuditUnavailable
        self.rows.setdefault(record.idempotency_key, record)
        return len(self.rows)


@dataclass
class Bench:
    """All five, and a hub behind them."""

    mesh: FakeMesh = field(default_factory=FakeMesh)
    fleet: FakeFleet = field(default_factory=FakeFleet)
    audit: FakeAudit = field(default_factory=FakeAudit)
    asked: list[UUID] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ports = Ports(self.mesh, self.mesh, self.mesh, self.fleet, self.fleet)
        self.gate: Gate = open_gate(self.ports)
        self.refusals = RefusedEnvelopes(cast("Any", self.audit), self.mesh, SystemClock())
        self.hub = Hub(self.gate, self.refusals, self.reconcile)

    async def reconcile(self, domain_id: UUID, node_id: UUID) -> None:
        """Tell a Domain's nodes to fetch their state, as mesh does."""
        self.asked.append(node_id)
        self.mesh.put(self.mesh.sign(kind="node_state_updated"))

    async def read(self) -> None:
        """Wait until everything that was put is read: forgeries move nothing, so one more event does."""
        last = self.mesh.put(self.mesh.sign())
        await until(lambda: self.hub.ring.position == last, 5)
