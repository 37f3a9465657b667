"""One fake a port, in memory; test_ports.py holds those of vault, stores and stream to the real ones' promises."""

import asyncio
import contextlib
import datetime
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from nacl.signing import SigningKey as Ed25519

from libs.clock import FixedClock
from libs.decision import Decision, Record
from libs.errors import EventBusUnavailable, PlexError, RotationUnderWay, SigningUnavailable, Stale
from libs.ids import uuid7
from services.mesh.model import STATE_UPDATED, Keys, Logged, Publication, PublicHalf, Seen, SigningKey, StreamState


@dataclass
class FakeVault:
    """Key pairs by Domain; nothing can be said of `unknown` Domains.

    `tamper` changes what it signs, in messages that hold `only`.
    """

    pairs: dict[UUID, list[Ed25519]] = field(default_factory=dict)
    unknown: set[UUID] = field(default_factory=set)
    refusal: PlexError | None = None
    tamper: bytes = b""
    only: bytes = b""
    calls: int = 0

    def _check(self) -> None:
        if self.refusal:
            raise self.refusal

    async def halves(self, domain_id: UUID) -> list[PublicHalf]:
        await asyncio.sleep(0)
        self._check()
        if domain_id in self.unknown:
            raise SigningUnavailable
        return [PublicHalf(bytes(pair.verify_key), turn) for turn, pair in enumerate(self.pairs.get(domain_id, []), 1)]

    async def create(self, domain_id: UUID) -> PublicHalf:
        self._check()
        self.pairs.setdefault(domain_id, [Ed25519.generate()])
        return (await self.halves(domain_id))[-1]

    async def rotate(self, domain_id: UUID) -> PublicHalf:
        self._check()
        self.pairs[domain_id].append(Ed25519.generate())
        return (await self.halves(domain_id))[-1]

    async def sign(self, domain_id: UUID, version: int, messages: Sequence[bytes]) -> list[bytes]:
        self._check()
        self.calls += 1
        await asyncio.sleep(0)
        pair = self.pairs[domain_id][version - 1]
        return [pair.sign(message + (self.tamper if self.only in message else b"")).signature for message in messages]


@dataclass
class FakeKeyStore:
    """Rows by Domain, and the outbox."""

    rows: dict[UUID, dict[int, SigningKey]] = field(default_factory=dict)
    announced_at: dict[str, datetime.datetime] = field(default_factory=dict)
    reconciled_at: dict[UUID, datetime.datetime] = field(default_factory=dict)
    outbox: list[tuple[UUID, str, dict[str, Any]]] = field(default_factory=list)
    refusal: PlexError | None = None

    async def remember(self, domain_id: UUID, half: PublicHalf) -> SigningKey:
        now = datetime.datetime.now(datetime.UTC)
        made = SigningKey(half.kid, domain_id, half.public_key, half.version, now, activated_at=now)
        return self.rows.setdefault(domain_id, {}).setdefault(half.version, made)

    async def keys(self, domain_ids: Collection[UUID]) -> dict[UUID, Keys]:
        await asyncio.sleep(0)
        if self.refusal:
            raise self.refusal
        return {one: self._keys(one) for one in domain_ids if one in self.rows}

    def _keys(self, domain_id: UUID) -> Keys:
        return Keys(tuple(key for _, key in sorted(self.rows.get(domain_id, {}).items())))

    def _put(self, key: SigningKey) -> None:
        self.rows[key.domain_id][key.version] = key

    async def begin_rotation(
        self, domain_id: UUID, half: PublicHalf, transition: datetime.timedelta, at: datetime.datetime
    ) -> SigningKey:
        keys = self._keys(domain_id)
        if keys.pending or keys.previous(at):
            raise RotationUnderWay
        made = SigningKey(half.kid, domain_id, half.public_key, half.version, at, transition=transition)
        key = replace(made, transition_expires=at + transition, announcement_id=uuid7())
        self._put(key)
        return key

    async def activate(self, key: SigningKey, at: datetime.datetime) -> None:
        keys = self._keys(key.domain_id)
        now = keys.by_id(key.kid)
        if now is None or not now.pending or now.announcement_id != key.announcement_id:
            return
        if keys.current:
            self._put(replace(keys.current, expires_at=now.transition_expires))
        self._put(replace(now, activated_at=at))
        self.announced_at[key.kid] = at

    async def revoke(self, key: SigningKey, successor: PublicHalf | None, at: datetime.datetime) -> None:
        now = self._keys(key.domain_id).current
        current = now is not None and now.kid == key.kid
        if current and successor is None:
            raise Stale
        self._put(replace(self.rows[key.domain_id][key.version], revoked_at=at))
        if current and successor:
            half = successor
            self._put(SigningKey(half.kid, key.domain_id, half.public_key, half.version, at, activated_at=at))
        self.outbox.append((key.domain_id, STATE_UPDATED, {"reason": "signing_key_revoked"}))

    async def pending(self, before: datetime.datetime) -> list[SigningKey]:
        keys = [key for rows in self.rows.values() for key in rows.values() if key.pending]
        return [key for key in keys if key.created_at <= before]

    async def to_announce(self, at: datetime.datetime, before: datetime.datetime) -> list[SigningKey]:
        return [
            key
            for rows in self.rows.values()
            for key in rows.values()
            if key.current and key.transition_expires and key.transition_expires > at
            if self.announced_at.get(key.kid, at) < before
        ]

    async def repeat(self, key: SigningKey, payload: dict[str, Any], at: datetime.datetime) -> None:
        if self.announced_at[key.kid] < at:
            self.announced_at[key.kid] = at
            self.outbox.append((key.domain_id, "signing_key_rotated", payload))

    async def renew(self, key: SigningKey, announcement_id: UUID, at: datetime.datetime) -> SigningKey:
        now = self.rows[key.domain_id][key.version]
        if not now.pending or now.announcement_id != key.announcement_id or now.transition is None:
            raise RotationUnderWay
        self._put(replace(now, announcement_id=announcement_id, transition_expires=at + now.transition))
        return self.rows[key.domain_id][key.version]

    async def ask_reconcile(
        self,
        domain_id: UUID,
        events: Sequence[tuple[str, dict[str, Any]]],
        at: datetime.datetime,
        quiet: datetime.timedelta,
    ) -> bool:
        if domain_id in self.reconciled_at and self.reconciled_at[domain_id] > at - quiet:
            return False
        self.reconciled_at[domain_id] = at
        self.outbox += [(domain_id, kind, payload) for kind, payload in events]
        return True


@dataclass
class FakeLog:
    """Events and places; `refusals` are raised by the method of their name."""

    rows: dict[UUID, Logged] = field(default_factory=dict)
    places: dict[int, UUID] = field(default_factory=dict)
    asked: list[tuple[int, int]] = field(default_factory=list)
    refusals: dict[str, PlexError] = field(default_factory=dict)

    def _check(self, name: str) -> None:
        if name in self.refusals:
            raise self.refusals[name]

    def _placed(self, row: Logged) -> Logged:
        places = [sequence for sequence, identifier in self.places.items() if identifier == row.id]
        return replace(row, sequence=max(places, default=None))

    async def find(self, ids: Collection[UUID]) -> dict[UUID, Logged]:
        self._check("find")
        return {one: self._placed(self.rows[one]) for one in ids if one in self.rows}

    async def append(self, rows: Sequence[Logged]) -> set[UUID]:
        await asyncio.sleep(0)
        self._check("append")
        added = {row.id for row in rows} - self.rows.keys()
        self.rows |= {row.id: row for row in rows if row.id in added}
        return added

    async def note(self, rows: Sequence[tuple[int, UUID]], within_s: float) -> None:
        assert within_s > 0
        self._check("note")
        if any(sequence in self.places for sequence, _ in rows):
            raise EventBusUnavailable
        self.places.update(rows)

    async def highest(self, at: datetime.datetime | None = None) -> int:
        noted = [place for place, one in self.places.items() if at is None or self.rows[one].issued_at <= at]
        return max(noted, default=0)

    async def fresh(self, since: datetime.datetime) -> list[Logged]:
        # By the first place of each.
        ids = dict.fromkeys(identifier for _, identifier in sorted(self.places.items()))
        return [self._placed(self.rows[one]) for one in ids if self.rows[one].issued_at > since]

    async def check(self, seen: Sequence[Seen]) -> list[Publication]:
        return [self._verdict(one) for one in seen]

    def _verdict(self, one: Seen) -> Publication:
        row = self.rows.get(one.id)
        if row is None:
            return Publication.UNKNOWN
        same = hashlib.sha256(row.envelope).digest() == one.digest
        if not same:
            return Publication.ALTERED
        if self.places.get(one.sequence) == one.id:
            return Publication.PUBLISHED
        elsewhere = one.id in self.places.values() or one.sequence in self.places
        return Publication.REPLAYED if elsewhere else Publication.PENDING

    async def between(self, first: int, last: int, since: datetime.datetime, most: int, size: int) -> list[Logged]:
        self.asked.append((first, last))
        rows: list[Logged] = []
        for at, one in sorted(self.places.items()):
            full = len(rows) == most or sum(len(row.envelope) for row in rows) >= size
            if first <= at <= last and self.rows[one].issued_at > since and not full:
                rows.append(replace(self.rows[one], sequence=at))
        return rows

    async def roll(self) -> None:
        return

    @contextlib.asynccontextmanager
    async def leading(self) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        async def leads() -> bool:
            self._check("leads")
            return True

        yield leads


@dataclass
class FakeStream:
    """Messages by sequence; `gone` when there is no stream, `broken` when nobody answers."""

    messages: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    last: int = 0
    gone: bool = False
    broken: bool = False

    async def publish(self, rows: Sequence[Logged]) -> list[int]:
        await asyncio.sleep(0)
        if self.gone or self.broken:
            raise EventBusUnavailable
        places: list[int] = []
        for row in rows:
            self.last += 1
            self.messages[self.last] = (row.subject, row.envelope)
            places.append(self.last)
        return places

    async def state(self) -> StreamState | None:
        if self.broken:
            raise EventBusUnavailable
        if self.gone:
            return None
        first = min(self.messages, default=self.last + 1)
        deleted = tuple(one for one in range(first, self.last) if one not in self.messages)
        return StreamState(first, self.last, deleted)

    async def create(self, first: int) -> None:
        if self.gone:
            self.gone, self.messages, self.last = False, {}, first - 1

    async def restart(self, first: int) -> None:
        self.messages, self.last = {}, first - 1

    async def read(self, first: int, count: int) -> list[tuple[int, bytes]]:
        return [(at, data) for at, (_, data) in sorted(self.messages.items()) if at >= first][:count]

    async def open_consumer(self, start: int, back: datetime.timedelta) -> tuple[str, int]:
        return f"from-{start}", sum(at >= start for at in self.messages)


@dataclass
class FakeAudit:
    """Rows of the chain."""

    rows: list[Record] = field(default_factory=list)
    refusal: PlexError | None = None

    async def record(self, record: Record) -> int:
        if self.refusal:
            raise self.refusal
        self.rows.append(record)
        return len(self.rows)


@dataclass
class FakeAuthority:
    """Grants what is in `granted`; everything when that is None."""

    granted: set[tuple[str, str]] | None = None
    reason: str = "out_of_scope"

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        allowed = self.granted is None or (permission, resource) in self.granted
        return Decision("granted" if allowed else self.reason)


@dataclass
class FakeFleet:
    """Domains by scope."""

    domains: dict[str, UUID] = field(default_factory=dict)

    async def domain_of(self, scope: str) -> UUID | None:
        return self.domains.get(scope)


def clock() -> FixedClock:
    """A clock that stands at now: ids are made by the machine's."""
    return FixedClock(datetime.datetime.now(datetime.UTC))
