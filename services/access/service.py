"""Privileged sessions: issued only to whoever may act there and has just signed in strongly, and taken back at once."""

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn
from uuid import UUID

from libs.clock import Clock
from libs.decision import CAVEAT_VIOLATION, GRANTED, Decision, Record, at_home
from libs.errors import (
    AttachNotProvisioned,
    Forbidden,
    IdempotencyConflict,
    IdempotentReplay,
    NotFound,
    PlexError,
    ResourceNotFound,
    SessionLimitExceeded,
    SessionNotActive,
    SessionNotSsh,
    SigningUnavailable,
    Unauthenticated,
)
from libs.ids import uuid7
from libs.principal import Principal
from libs.step_up import Login, StepUp, challenge, login_of, step_up
from services.access import target, token
from services.access.events import revoked_payload, setup_payload
from services.access.keys import SessionKeys
from services.access.model import Budget, Doubt, Issued, Page, Session, Terms, Wish
from services.access.ports import Audit, Authority, Cursors, Directory, Store

REFUSALS: Mapping[str, type[PlexError]] = {"in_flight": IdempotentReplay, "other_body": IdempotencyConflict}


@dataclass(frozen=True)
class Access:
    """Sessions, for operators."""

    store: Store
    keys: SessionKeys
    directory: Directory
    authority: Authority
    audit: Audit
    cursors: Cursors
    clock: Clock
    issuer: str
    seals: token.Seals
    doubt: Doubt

    async def issue(self, caller: Principal, wish: Wish) -> Issued:
        """Issue a session, or give the one again that the same request got before: every gate is passed anew."""
        wish = replace(wish, target=target.checked(wish.kind, wish.target))
        before = self.doubt.count
        decision, terms = await self.directory.terms(caller, wish.resource_id)
        chain = str(terms.domain_id) if terms else ""
        row = Record(
            chain, "session.issue", "act", "resource", str(wish.resource_id), decision.reason, caller.subject,
            caller.kind, {"session": [wish.kind]},
        )  # fmt: skip
        if not decision.granted:
            await self.audit.record(at_home(row, caller.domain_id))
            decision.require()
        if terms is None or terms.node_id is None or terms.project_id != wish.project_id:
            await self._refuse(row, "target", ["no_node"], ResourceNotFound("no node of the project is behind it"))
        if terms.sign_in_ended:
            await self._refuse(row, "sign_in", ["ended"], Unauthenticated("the sign-in was ended"))
        now = self.clock.now()
        if lacks := self._lacks(caller, terms, wish.kind, now):
            await self._refuse(row, "step_up", list(lacks.missing), challenge(lacks))
        issued = await self._within_budget(caller, wish, terms, terms.node_id, row, now)
        if self.doubt.count != before:
            # Something was revoked since it was asked for, and the look that this called for has not seen the session.
            self.doubt.rouse()
        return issued

    def _lacks(self, caller: Principal, terms: Terms, kind: str, now: datetime.datetime) -> StepUp | None:
        # Another Domain's provider vouches for its own people only. The platform's people are at home everywhere.
        if caller.domain_id not in {"", str(terms.domain_id)}:
            return StepUp(("foreign_provider",))
        return step_up(terms.policy.required(kind, terms.binding_acr), login_of(caller), now.timestamp())

    async def _within_budget(
        self, caller: Principal, wish: Wish, terms: Terms, node_id: UUID, row: Record, now: datetime.datetime
    ) -> Issued:
        policy, session_id, identity_id = terms.policy, uuid7(), UUID(caller.subject)
        budget = Budget(policy.max_active_per_identity, policy.max_active_per_node, policy.issue_rate_per_minute)
        reserved = await self.store.reserve(session_id, identity_id, node_id, wish, budget, now)
        if reserved.refused in REFUSALS:
            await self._refuse(row, "idempotency", [reserved.refused], REFUSALS[reserved.refused]())
        if reserved.refused:
            limit = SessionLimitExceeded(f"too many sessions: {reserved.refused}", dimension=reserved.refused)
            await self._refuse(row, "budget", [reserved.refused], limit)
        if reserved.repeats is not None:
            return await self._again(reserved.repeats, caller, wish, terms, row)
        # The token counts in whole seconds, and the row ends when it does.
        ends = now.replace(microsecond=0) + datetime.timedelta(seconds=policy.ttl_s(wish.ttl_s))
        session = Session(
            session_id, terms.domain_id, terms.project_id, wish.resource_id, node_id, identity_id,
            (UUID(caller.session_id),), wish.kind, wish.target, now, ends, now,
        )  # fmt: skip
        try:
            # Recorded before anything is signed: a row without a session may be, a session without a row may not.
            await self.audit.record(named(row, "session", str(session_id)))
            return await self._opened(session, caller)
        except BaseException:  # cancelled too: who hung up must not find its own retry in flight
            # When not even that can be done, the place is free again by itself.
            with contextlib.suppress(PlexError):
                await self.store.release(session_id)
            raise

    async def _opened(self, session: Session, caller: Principal) -> Issued:
        key = await self.keys.current(session.domain_id)
        claims = token.claims_of(session, self.issuer, caller.acr, caller.amr, caller.auth_time or 0)
        signed = await self.keys.token(key, claims)
        session = replace(session, kid=key.kid, claims=claims, seal=self.seals.of(claims, key.kid))
        await self.store.open(session, setup_payload(session, key), self.clock.now())
        return Issued(session, signed)

    async def _again(self, session_id: UUID, caller: Principal, wish: Wish, terms: Terms, row: Record) -> Issued:
        """Sign the stored claims once more: Ed25519 is deterministic, so they make the same token."""
        session, row, now = await self.store.find(session_id), named(row, "session", str(session_id)), self.clock.now()
        if session is None or session.status(now) != "active" or session.node_id != terms.node_id:
            await self._refuse(row, "idempotency", ["not_active"], SessionNotActive())
        login = token.login_in(session, self.issuer) if self.seals.fits(session) else None
        if login is None or not is_of(session, caller, wish, terms):
            # Somebody changed the row; what it says now is nothing that was granted.
            await self._refuse(row, "idempotency", ["altered"], SigningUnavailable("the row is not what was signed"))
        if session.expires_at - session.issued_at > datetime.timedelta(seconds=terms.policy.max_ttl_s):
            await self._refuse(row, "idempotency", ["lasts_too_long"], SessionNotActive())
        if step_up(terms.policy.required(wish.kind, terms.binding_acr), Login(True, *login), now.timestamp()):
            # A newer login opens the gate, and the token would tell of an older one that does not any more.
            await self._refuse(row, "idempotency", ["login"], SessionNotActive())
        await self.audit.record(named(row, "idempotency", "repeat"))
        # Whoever got the token under this sign-in loses it with this sign-in.
        if not await self.store.join(session.id, UUID(caller.session_id), now):
            raise SessionNotActive
        key = await self.keys.allowed(session.domain_id, session.kid)
        return Issued(session, await self.keys.token(key, session.claims))

    async def page(
        self, caller: Principal, project_id: UUID, status: str, kind: str, identity_id: UUID | None, cursor: str,
        limit: int,
    ) -> Page:  # fmt: skip
        """Return a page of a project's sessions, newest first, for who may read the project."""
        (await self.authority.check(caller.reference, "read", f"project:{project_id}")).require()
        of = f"sessions/{project_id}/{status}/{kind}/{identity_id or ''}"
        before = UUID(self.cursors.open(of, caller.reference, cursor)["before"]) if cursor else None
        rows = await self.store.page(project_id, status, kind, identity_id, before, limit + 1, self.clock.now())
        page = rows[:limit]
        more = self.cursors.seal(of, caller.reference, {"before": str(page[-1].id)}) if len(rows) > limit else ""
        return Page(tuple(page), more)

    async def get(self, caller: Principal, project_id: UUID, session_id: UUID) -> Session:
        """Return a session to its owner, and to who may read the project."""
        session = await self._of(project_id, session_id)
        if not owns(caller, session):
            (await self.authority.check(caller.reference, "read", f"project:{project_id}")).require()
        if session is None:
            raise NotFound
        return session

    async def revoke(self, caller: Principal, project_id: UUID, session_id: UUID, reason: str) -> None:
        """Revoke a session of one's own, or in a project where one may act; a repeat changes nothing."""
        session = await self._of(project_id, session_id)
        decision = Decision(GRANTED)
        if not owns(caller, session):
            decision = await self.authority.check(caller.reference, "act", f"project:{project_id}")
        if decision.granted and session is None:
            raise NotFound
        domain_id = session.domain_id if session else await self.directory.domain_of(project_id)
        row = Record(
            str(domain_id or ""), "session.revoke", "act", "session", str(session_id), decision.reason, caller.subject,
            caller.kind, {"revoked": [reason]},
        )  # fmt: skip
        await self.audit.record(at_home(row, caller.domain_id))
        decision.require()
        now = self.clock.now()
        if session is not None:
            await self.store.revoke(session, reason, revoked_payload(session, reason, now), now)

    async def attach(self, caller: Principal, project_id: UUID, session_id: UUID) -> NoReturn:
        """Refuse: there is no session listener yet. Whoever may not attach hears that first."""
        session = await self.get(caller, project_id, session_id)
        if not owns(caller, session):
            raise Forbidden("only its owner attaches to a session", reason="insufficient_relation", relation_path=[])
        if session.status(self.clock.now()) != "active":
            raise SessionNotActive
        if session.kind != "ssh":
            raise SessionNotSsh
        (await self.authority.check(caller.reference, "act", f"resource:{session.resource_id}")).require()
        raise AttachNotProvisioned

    async def _of(self, project_id: UUID, session_id: UUID) -> Session | None:
        session = await self.store.find(session_id)
        return session if session is not None and session.project_id == project_id else None

    async def _refuse(self, row: Record, control: str, names: list[str], error: PlexError) -> NoReturn:
        await self.audit.record(replace(row, reason=CAVEAT_VIOLATION, context=row.context | {control: names}))
        raise error


def named(row: Record, name: str, value: str) -> Record:
    """Return a row with one more name in its context."""
    return replace(row, context=row.context | {name: [*row.context.get(name, ()), value]})


def is_of(session: Session, caller: Principal, wish: Wish, terms: Terms) -> bool:
    """Whether a session is what would be granted now, to whom and where."""
    return (
        str(session.identity_id), session.domain_id, session.project_id, session.resource_id, session.kind,
        session.target,
    ) == (
        caller.subject, terms.domain_id, terms.project_id, wish.resource_id, wish.kind, wish.target,
    )  # fmt: skip


def owns(caller: Principal, session: Session | None) -> bool:
    """Whether a session is the caller's own; a token that is for something narrower has none."""
    mine = session is not None and caller.reference == f"user:{session.identity_id}"
    return mine and caller.scope is None
