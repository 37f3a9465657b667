"""One fake a port, in memory; test_ports.py holds those of vault and stores to the real ones' promises."""

import asyncio
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from nacl.signing import SigningKey as Ed25519

from libs.access_policy import AccessPolicy, Strength
from libs.clock import FixedClock
from libs.cursor import Cursors
from libs.custody import Secret
from libs.decision import Decision, Record
from libs.errors import AuditUnavailable, PlexError, RotationUnderWay, Stale
from libs.ids import uuid7
from libs.principal import Principal
from services.access.activity import Activity
from services.access.keys import SessionKeys
from services.access.model import (
    POLICY_VIOLATION,
    Budget,
    Doubt,
    PublicHalf,
    Reserved,
    Session,
    SessionKey,
    Terms,
    Wish,
)
from services.access.service import Access
from services.access.standing import Standing
from services.access.store import HELD_FOR, REPEATS_FOR
from services.access.token import Seals

NOW = datetime.datetime(2026, 5, 1, 12, 0, 0, 250_000, datetime.UTC)
MFA, PHR = "urn:acr:mfa", "urn:acr:phr"
MINUTE = datetime.timedelta(minutes=1)
ISSUER = "https://edge.test"


@dataclass
class FakeVault:
    """Key pairs by Domain; `tamper` changes what it signs."""

    trace: list[str] = field(default_factory=list)
    pairs: dict[UUID, list[Ed25519]] = field(default_factory=dict)
    refusal: PlexError | None = None
    tamper: bytes = b""
    before: Callable[[], None] = lambda: None

    def _check(self) -> None:
        if self.refusal:
            raise self.refusal

    async def halves(self, domain_id: UUID) -> list[PublicHalf]:
        self._check()
        return [PublicHalf(bytes(pair.verify_key), turn) for turn, pair in enumerate(self.pairs.get(domain_id, []), 1)]

    async def create(self, domain_id: UUID) -> PublicHalf:
        self._check()
        self.pairs.setdefault(domain_id, [Ed25519.generate()])
        return (await self.halves(domain_id))[-1]

    async def rotate(self, domain_id: UUID) -> PublicHalf:
        self._check()
        self.pairs[domain_id].append(Ed25519.generate())
        return (await self.halves(domain_id))[-1]

    async def sign(self, domain_id: UUID, version: int, message: bytes) -> bytes:
        self.trace.append("sign")
        self.before()
        self._check()
        return self.pairs[domain_id][version - 1].sign(message + self.tamper).signature


@dataclass
class FakeKeyStore:
    """Rows by Domain."""

    rows: dict[UUID, list[SessionKey]] = field(default_factory=dict)

    async def keys(self, domain_id: UUID) -> list[SessionKey]:
        return list(self.rows.get(domain_id, []))

    async def remember(self, domain_id: UUID, half: PublicHalf, at: datetime.datetime) -> None:
        self.rows.setdefault(domain_id, [SessionKey(half.kid, domain_id, half.public_key, half.version, at)])

    def _add(self, domain_id: UUID, half: PublicHalf, at: datetime.datetime) -> None:
        self.rows[domain_id].append(SessionKey(half.kid, domain_id, half.public_key, half.version, at))

    async def succeed(self, domain_id: UUID, half: PublicHalf, at: datetime.datetime, until: datetime.datetime) -> None:
        if half.version in {row.version for row in self.rows[domain_id]}:
            raise RotationUnderWay
        self.rows[domain_id] = [replace(row, expires_at=until) if row.current else row for row in self.rows[domain_id]]
        self._add(domain_id, half, at)

    async def revoke(self, key: SessionKey, successor: PublicHalf | None, at: datetime.datetime) -> None:
        now = next(row for row in self.rows[key.domain_id] if row.kid == key.kid)
        if now.revoked_at is not None or now.current is (successor is None):
            raise Stale
        if successor and successor.version in {row.version for row in self.rows[key.domain_id]}:
            raise RotationUnderWay
        self.rows[key.domain_id] = [
            replace(row, revoked_at=at) if row.kid == key.kid else row for row in self.rows[key.domain_id]
        ]
        if successor:
            self._add(key.domain_id, successor, at)


@dataclass
class FakeStore:
    """Sessions, places, requests, and the events that were announced; `keys` signed the sessions."""

    trace: list[str] = field(default_factory=list)
    keys: FakeKeyStore = field(default_factory=FakeKeyStore)
    repeats: list[tuple[UUID, datetime.datetime]] = field(default_factory=list)
    reports: list[tuple[UUID, datetime.datetime, Mapping[str, Any]]] = field(default_factory=list)
    sessions: dict[UUID, Session] = field(default_factory=dict)
    places: dict[UUID, tuple[UUID, UUID, datetime.datetime]] = field(default_factory=dict)
    requests: dict[tuple[UUID, bytes], tuple[bytes, UUID, datetime.datetime]] = field(default_factory=dict)
    denied: set[UUID] = field(default_factory=set)
    events: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    refusals: dict[str, PlexError] = field(default_factory=dict)

    def _note(self, name: str) -> None:
        self.trace.append(name)
        if name in self.refusals:
            raise self.refusals[name]

    async def reserve(
        self, session_id: UUID, identity_id: UUID, node_id: UUID, wish: Wish, budget: Budget, at: datetime.datetime
    ) -> Reserved:
        self._note("reserve")
        live = {one: place for one, place in self.places.items() if place[2] > at}
        self.places = live
        if wish.request_digest and (before := self.requests.get((identity_id, wish.request_digest))):
            body, earlier, asked_at = before
            known = earlier in live or earlier in self.sessions
            if known and asked_at > at - REPEATS_FOR:
                return self._repeated(identity_id, earlier, budget, at, same=body == wish.body_digest)
        active = [one for one in self.sessions.values() if one.status(at) == "active"]
        held = sum(place[0] == identity_id for place in live.values())
        if held + sum(one.identity_id == identity_id for one in active) >= budget.per_identity:
            return Reserved(refused="identity")
        if self._recent(identity_id, at) >= budget.per_minute:
            return Reserved(refused="issue_rate")
        at_node = sum(place[1] == node_id for place in live.values()) + sum(one.node_id == node_id for one in active)
        if at_node >= budget.per_node:
            return Reserved(refused="node")
        self.places[session_id] = (identity_id, node_id, at + HELD_FOR)
        if wish.request_digest:
            self.requests[identity_id, wish.request_digest] = (wish.body_digest, session_id, at)
        return Reserved()

    def _repeated(
        self, identity_id: UUID, earlier: UUID, budget: Budget, at: datetime.datetime, *, same: bool
    ) -> Reserved:
        if not same:
            return Reserved(refused="other_body")
        if earlier in self.places:
            return Reserved(refused="in_flight")
        if self._recent(identity_id, at) >= budget.per_minute:
            return Reserved(refused="issue_rate")
        self.repeats.append((identity_id, at))
        return Reserved(earlier)

    def _recent(self, identity_id: UUID, at: datetime.datetime) -> int:
        asked = [place[0] for place in self.places.values()]
        asked += [who for who, when in self.repeats if when > at - MINUTE]
        asked += [one.identity_id for one in self.sessions.values() if one.issued_at > at - MINUTE]
        return asked.count(identity_id)

    def _stands(self, session: Session) -> Session:
        rows = (row for rows in self.keys.rows.values() for row in rows if row.kid == session.kid)
        at = next((row.revoked_at for row in rows), None)
        if session.revoked_at is not None or at is None or at >= session.expires_at:
            return session
        return replace(session, revoked_at=at, revoke_reason=POLICY_VIOLATION)

    async def release(self, session_id: UUID) -> None:
        self._note("release")
        if self.places.pop(session_id, None):
            self.requests = {key: value for key, value in self.requests.items() if value[1] != session_id}

    async def open(self, session: Session, payload: Mapping[str, Any], at: datetime.datetime) -> None:
        self._note("open")
        place = self.places.pop(session.id, None)
        if place is None or place[2] <= at or self._stands(session).revoked_at is not None:
            raise Stale
        self.sessions[session.id] = session
        self.events.append(("session_setup", f"node:{session.node_id}", payload))

    async def find(self, session_id: UUID) -> Session | None:
        found = self.sessions.get(session_id)
        return self._stands(found) if found else None

    async def page(
        self, project_id: UUID, status: str, kind: str, identity_id: UUID | None, before: UUID | None, count: int,
        at: datetime.datetime,
    ) -> list[Session]:  # fmt: skip
        rows = [
            one
            for one in sorted(map(self._stands, self.sessions.values()), key=lambda one: one.id, reverse=True)
            if one.project_id == project_id
            and status in {"", one.status(at)}
            and kind in {"", one.kind}
            and identity_id in {None, one.identity_id}
            and (before is None or one.id < before)
        ]
        return rows[:count]

    async def unrevoked(self, after: UUID, count: int, at: datetime.datetime) -> list[Session]:
        rows = [one for one in self.sessions.values() if one.id > after and one.status(at) == "active"]
        return sorted(map(self._stands, rows), key=lambda one: one.id)[:count]

    async def join(self, session_id: UUID, sign_in_id: UUID, at: datetime.datetime) -> bool:
        self._note("join")
        found = self.sessions[session_id]
        if found.status(at) != "active" or session_id in self.denied:
            return False
        others = tuple(one for one in found.sign_in_ids if one != sign_in_id)
        self.sessions[session_id] = replace(found, sign_in_ids=(*others, sign_in_id))
        return True

    async def revoke(self, session: Session, reason: str, payload: Mapping[str, Any], at: datetime.datetime) -> bool:
        self._note("revoke")
        if self.sessions[session.id].status(at) != "active":
            return False
        self.sessions[session.id] = replace(self.sessions[session.id], revoked_at=at, revoke_reason=reason)
        self.denied.add(session.id)
        self.events.append(("session_revoked", f"node:{session.node_id}", payload))
        return True

    async def touch(
        self, session_id: UUID, node_id: UUID, kind: str, report: Mapping[str, Any], at: datetime.datetime
    ) -> bool:
        found = self.sessions.get(session_id)
        if found is None or (found.node_id, found.kind, self._stands(found).status(at)) != (node_id, kind, "active"):
            return False
        if session_id in self.denied:
            return False
        self.sessions[session_id] = replace(found, last_active_at=max(at, found.last_active_at))
        self.reports.append((session_id, at, report))
        return True


@dataclass
class FakeDirectory:
    """Terms of resources, Domains of projects, and who signed out."""

    authority: "FakeAuthority"
    resources: dict[UUID, Terms] = field(default_factory=dict)
    gone: set[UUID] = field(default_factory=set)
    refusal: PlexError | None = None

    async def terms(self, caller: Principal, resource_id: UUID) -> tuple[Decision, Terms | None]:
        if self.refusal:
            raise self.refusal
        decision = await self.authority.check(caller.reference, "act", f"resource:{resource_id}")
        return decision, self.resources.get(resource_id)

    async def domain_of(self, project_id: UUID) -> UUID | None:
        return next((one.domain_id for one in self.resources.values() if one.project_id == project_id), None)

    async def ended(self, sign_in_ids: Sequence[UUID]) -> set[UUID]:
        return self.gone.intersection(sign_in_ids)


@dataclass
class FakeAuthority:
    """Who is granted what; anything else has a reason."""

    trace: list[str]
    granted: set[tuple[str, str, str]] = field(default_factory=set)
    reason: str = "out_of_scope"
    conditional: bool = False
    refusal: PlexError | None = None

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        self.trace.append("relation")
        if self.refusal:
            raise self.refusal
        if (subject, permission, resource) in self.granted:
            return Decision("granted")
        return Decision(self.reason, self.conditional)

    async def check_all(self, questions: Sequence[tuple[str, str, str]]) -> list[Decision]:
        return [await self.check(*question) for question in questions]


@dataclass
class FakeAudit:
    """The rows; a key that was used before makes none, and `refuses` names what there can be no row about."""

    trace: list[str]
    rows: list[Record] = field(default_factory=list)
    refusal: PlexError | None = None
    refuses: str = ""

    async def record(self, record: Record) -> int:
        self.trace.append("audit")
        await asyncio.sleep(0)
        if self.refusal:
            raise self.refusal
        if self.refuses and record.object_id == self.refuses:
            raise AuditUnavailable
        if record.idempotency_key not in {row.idempotency_key for row in self.rows}:
            self.rows.append(record)
        return len(self.rows)


class World:
    """A resource with its node, a policy that asks for a fresh strong login, and somebody who has one."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.domain, self.project, self.resource, self.node = (uuid7() for _ in range(4))
        self.policy = AccessPolicy(Strength((PHR, MFA), ("otp",), 300), max_active_per_identity=3)
        self.clock = FixedClock(NOW)
        self.operator = self.person()
        self.authority = FakeAuthority(self.trace)
        self.directory = FakeDirectory(self.authority, {self.resource: self.terms()})
        self.admit(self.operator)
        self.authority.granted.add((f"node:{self.node}", "node-agent", f"node:{self.node}"))
        self.audit, self.key_store, self.vault = FakeAudit(self.trace), FakeKeyStore(), FakeVault(self.trace)
        self.store, self.doubt, own_key = FakeStore(self.trace, self.key_store), Doubt(), Secret(b"k" * 32)
        self.keys = SessionKeys(self.vault, self.key_store, self.audit, self.authority, self.clock, self.doubt)
        self.access = Access(
            self.store,
            self.keys,
            self.directory,
            self.authority,
            self.audit,
            Cursors(own_key),
            self.clock,
            ISSUER,
            Seals(own_key),
            self.doubt,
        )
        self.activity = Activity(self.store, self.authority, self.audit, self.clock)
        self.standing = Standing(self.store, self.directory, self.authority, self.audit, self.clock, self.doubt)

    def terms(self, **more: Any) -> Terms:
        return replace(Terms(self.project, self.domain, self.node, self.policy), **more)

    def person(self, **more: Any) -> Principal:
        """Somebody of the Domain who has just signed in strongly."""
        login: dict[str, Any] = {"acr": MFA, "amr": ("pwd", "otp"), "auth_time": int(NOW.timestamp()) - 10}
        known: dict[str, Any] = {"domain_id": str(self.domain), "session_id": str(uuid7())}
        return Principal(str(uuid7()), "user", "session", **(known | login | more))

    def admit(self, who: Principal) -> None:
        """Let somebody act on the resource."""
        self.authority.granted.add((who.reference, "act", f"resource:{self.resource}"))

    def agent(self) -> Principal:
        """The node, by its bearer."""
        node = str(self.node)
        return Principal(node, "node", "node_key", domain_id=str(self.domain), node_id=node)

    def wish(self, request: bytes | None = None, **more: Any) -> Wish:
        """A shell as root."""
        plain = Wish(self.project, self.resource, "ssh", {"ssh": {"user": "root"}}, 0, request, b"b" * 32)
        return replace(plain, **more)
