"""The keys that sign a Domain's events: made, rotated, revoked; and events that operators publish.

A rotation is announced under the old key before the new one signs anything. Whatever a crash leaves half-done is
finished by `keep_up`, and asking again changes nothing.
"""

import asyncio
import base64
import contextlib
import datetime
import hmac
import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid5

import structlog

from libs.clock import Clock, rfc3339
from libs.decision import ANONYMOUS, GRANTED, OUT_OF_SCOPE, Record, at_home
from libs.errors import (
    EventBusUnavailable,
    EventConflict,
    EventExpired,
    EventTypeReserved,
    EventTypeUnknown,
    NotFound,
    PlexError,
    RotationUnderWay,
    SigningKeyMissing,
    SigningKeyNotFound,
    SigningKeyRevoked,
    SigningUnavailable,
    Stale,
    TooMany,
    Unprocessable,
)
from libs.ids import uuid7
from libs.principal import Principal
from services.mesh.budget import Budget
from services.mesh.model import ROTATED, STATE_UPDATED, TYPES, Event, Keys, PublicHalf, SigningKey
from services.mesh.ports import Audit, Authority, Fleet, KeyStore, Publishing, Vault

# Sooner than an envelope goes stale, so that a node that comes back at any time hears of the rotation.
ANNOUNCE_EVERY = datetime.timedelta(minutes=4)
RECONCILE_EVERY = datetime.timedelta(seconds=10)
# Gateways wait three.
SAID_WITHIN_S = 1.5
# Until then whoever asked for a rotation is taken to be at it still.
LEFT_BEHIND = datetime.timedelta(seconds=3)

log = structlog.get_logger()


@dataclass(frozen=True)
class Halves:
    """Public halves as OpenBao has them; a version never changes, so each is asked for once."""

    vault: Vault
    _known: dict[tuple[UUID, int], PublicHalf] = field(default_factory=dict)

    async def of(self, key: SigningKey) -> PublicHalf | None:
        """Return the half of a key's version; None when OpenBao's is not the one that the row states.

        The row is one that a hostile DBA could change; nodes and gateways get only what OpenBao confirms.
        """
        at = (key.domain_id, key.version)
        if at not in self._known:
            for found in await self.vault.halves(key.domain_id):
                self._known[key.domain_id, found.version] = found
        half = self._known.get(at)
        if half is None or half.kid != key.kid or not hmac.compare_digest(half.public_key, key.public_key):
            log.error("signing_key.not_the_vaults", kid=key.kid, domain=str(key.domain_id))
            return None
        return half


@dataclass(frozen=True)
class SigningKeys:
    """Event keys, one current a Domain."""

    vault: Vault
    halves: Halves
    store: KeyStore
    audit: Audit
    authority: Authority
    publisher: Publishing
    clock: Clock

    async def ensure(self, domain_id: UUID) -> SigningKey:
        """Return a Domain's current event key, made when it has none."""
        current = (await self._keys(domain_id)).current
        if current is None:
            halves = await self.vault.halves(domain_id)
            if not halves:
                await self.audit.record(_record(domain_id, "signing_key.create"))
                halves = [await self.vault.create(domain_id)]
            current = await self.store.remember(domain_id, halves[-1])
        if current.domain_id != domain_id or not current.current or await self.halves.of(current) is None:
            raise SigningUnavailable("the recorded public half is not the key's")
        return current

    async def trust(self, domain_ids: Collection[UUID]) -> dict[UUID, tuple[SigningKey, ...]]:
        """Return the keys that verify now, by Domain; the database is asked each time: a revocation counts at once.

        Domains of which nothing can be said now are left out: they hold up no other.
        """
        found = await self.store.keys(domain_ids)
        said = await asyncio.gather(
            *(self._trusted(domain_id, found.get(domain_id, Keys())) for domain_id in domain_ids)
        )
        return {domain_id: keys for domain_id, keys in zip(domain_ids, said, strict=True) if keys is not None}

    async def _trusted(self, domain_id: UUID, keys: Keys) -> tuple[SigningKey, ...] | None:
        now = self.clock.now()
        try:
            async with asyncio.timeout(SAID_WITHIN_S):
                return tuple([key for key in keys.rows if key.verifies(now) and await self.halves.of(key) is not None])
        except (PlexError, TimeoutError) as error:
            log.error("signing_key.unknown", domain=str(domain_id), reason=str(error))  # noqa: TRY400 — expected
            return None

    async def list(self, caller: Principal, domain_id: UUID) -> tuple[SigningKey, ...]:
        """Return all keys that a Domain ever had, newest first."""
        decision = await self.authority.check(caller.reference, "read", f"domain:{domain_id}")
        decision.require()
        return tuple(reversed((await self._keys(domain_id)).rows))

    async def rotate(self, caller: Principal, domain_id: UUID, transition: datetime.timedelta) -> SigningKey:
        """Give a Domain a new event key; both verify until the transition ends."""
        await self._allowed(caller, domain_id, "signing_key.rotate")
        keys, now = await self._keys(domain_id), self.clock.now()
        if keys.current is None:
            raise NotFound if not keys.rows else SigningKeyMissing
        if keys.pending or keys.previous(now):
            raise RotationUnderWay
        half = await self._successor(keys)
        pending = await self.store.begin_rotation(domain_id, half, transition, now)
        await self._finish(pending)
        return await self.ensure(domain_id)

    async def revoke(self, caller: Principal, domain_id: UUID, kid: str) -> tuple[SigningKey, SigningKey]:
        """Revoke a key at once; returns it and the one that signs now. Nodes that know no other register again."""
        await self._allowed(caller, domain_id, "signing_key.revoke", kid)
        try:
            await self._revoke(domain_id, kid)
        except Stale:
            # It began to sign at this moment, and now needs a successor.
            await self._revoke(domain_id, kid)
        keys = await self._keys(domain_id)
        revoked = keys.by_id(kid)
        if revoked is None or keys.current is None:
            raise SigningKeyMissing
        return revoked, keys.current

    async def _revoke(self, domain_id: UUID, kid: str) -> None:
        keys, now = await self._keys(domain_id), self.clock.now()
        key = keys.by_id(kid)
        if key is None:
            raise SigningKeyNotFound
        if not key.verifies(now):
            raise SigningKeyRevoked
        await self.store.revoke(key, await self._successor(keys) if key.current else None, now)

    async def keep_up(self) -> None:
        """Finish rotations that a crash interrupted, and repeat the announcements of those in transition."""
        begun = self.clock.now() - LEFT_BEHIND
        for pending in await self.store.pending(begun):
            try:
                await self._finish(pending)
            except PlexError as error:
                # One Domain's key must not keep the others from theirs.
                log.warning("signing_key.postponed", kid=pending.kid, domain=str(pending.domain_id), code=error.code)
        now = self.clock.now()
        for key in await self.store.to_announce(now, now - ANNOUNCE_EVERY):
            if previous := (await self._keys(key.domain_id)).previous(now):
                await self.store.repeat(key, announcement(key, previous), now)

    async def reconcile(self, domain_id: UUID, node_id: UUID) -> bool:
        """Tell a Domain's nodes to fetch their state; False when they were told within the last seconds."""
        now, keys = self.clock.now(), await self._keys(domain_id)
        payload = {"node_id": str(node_id), "revision": str(uuid7()), "reason": "resume_not_possible"}
        events = [(STATE_UPDATED, payload)]
        if keys.current and (previous := keys.previous(now)):
            # A node that was away may know only the key before; without this it could not verify what follows.
            events.insert(0, (ROTATED, announcement(keys.current, previous)))
        return await self.store.ask_reconcile(domain_id, events, now, RECONCILE_EVERY)

    async def relay(self, event: Event) -> None:
        """Publish an event of mesh's own outbox; an announcement that nobody can verify any more is dropped."""
        try:
            await self.publisher.publish(event)
        except EventTypeReserved:
            # It waited until its key was revoked or ran out: nothing may wait behind it for ever.
            log.info("signing_key.announcement_dropped", id=str(event.id), domain=str(event.domain_id))

    async def _finish(self, pending: SigningKey) -> None:
        keys = await self._keys(pending.domain_id)
        if keys.current is not None:
            pending = await self._announce(pending, keys.current)
        await self.store.activate(pending, self.clock.now())

    async def _announce(self, pending: SigningKey, signer: SigningKey) -> SigningKey:
        """Publish the announcement of a key, and return the key as it was announced.

        A transition begins when its announcement can be sent: while the bus is away, the old key does not run out.
        """
        if not pending.time_to_hear(self.clock.now()):
            pending = await self.store.renew(pending, uuid7(), self.clock.now())
        payload = json.dumps(announcement(pending, signer))
        scope = f"domain:{pending.domain_id}"
        try:
            await self.publisher.publish(
                Event(pending.announcement_id or uuid7(), pending.domain_id, ROTATED, scope, payload)
            )
        except (EventExpired, EventConflict):
            # It was signed before, and went stale or names a key that was revoked since; an id is signed once.
            await self.store.renew(pending, uuid7(), self.clock.now())
            raise
        if not pending.time_to_hear(self.clock.now()):
            raise EventBusUnavailable("the announcement came out too late")
        return pending

    async def _successor(self, keys: Keys) -> PublicHalf:
        """Return a version that no row has: one that a crash left unused, or a new one."""
        domain_id, used = keys.rows[0].domain_id, {key.version for key in keys.rows}
        newest = (await self.vault.halves(domain_id))[-1]
        return newest if newest.version not in used else await self.vault.rotate(domain_id)

    async def _keys(self, domain_id: UUID) -> Keys:
        return (await self.store.keys([domain_id])).get(domain_id, Keys())

    async def _allowed(self, caller: Principal, domain_id: UUID, action: str, kid: str = "") -> None:
        decision = await self.authority.check(caller.reference, "manage", f"domain:{domain_id}")
        known = decision.granted or bool((await self._keys(domain_id)).rows)
        # A made-up Domain must not get a chain: whoever is refused could fill the audit service with them.
        chain = domain_id if known else None
        row = _record(chain, action, caller, decision.reason, domain_id, {"key": [kid]} if kid else {})
        await self.audit.record(at_home(row, caller.domain_id))
        decision.require()


@dataclass(frozen=True)
class OperatorEvents:
    """Events that an operator publishes."""

    store: KeyStore
    audit: Audit
    authority: Authority
    fleet: Fleet
    publisher: Publishing
    clock: Clock
    budget: Budget = field(default_factory=Budget)

    async def publish(
        self, caller: Principal, domain_id: UUID, kind: str, scope: str, payload: str
    ) -> tuple[UUID, int]:
        """Publish any type of event for a Domain's nodes; returns its id and sequence."""
        if kind not in TYPES:
            raise EventTypeUnknown
        of, _, identifier = scope.partition(":")
        if of == "domain" and identifier != str(domain_id):
            raise Unprocessable("the scope is another Domain")
        permission = "node-operate" if of == "node" else "manage"
        decision = await self.authority.check(caller.reference, permission, scope)
        keys = (await self.store.keys([domain_id])).get(domain_id, Keys())
        event = Event(uuid7(), domain_id, kind, scope, payload)
        here = of == "domain" or (decision.granted and await self.fleet.domain_of(scope) == domain_id)
        reason = decision.reason if not decision.granted or (here and keys.rows) else OUT_OF_SCOPE
        record = Record(
            domain_id=str(domain_id) if keys.rows else "",
            action="event.publish",
            relation=permission,
            object_type=of,
            object_id=identifier,
            reason=reason,
            subject_id=caller.subject,
            subject_kind=caller.kind,
            # Without the id of an event that will not be: refusals of the same are the same.
            context={"event": [kind, str(event.id)] if reason == GRANTED else [kind]},
        )
        # Nodes take the key that this type names: anybody's own key here would be the end of the Domain's trust root.
        genuine = self._genuine(keys, payload) if kind == ROTATED else payload
        reserved = reason == GRANTED and genuine is None
        if reserved:
            context = {**record.context, "mesh": [EventTypeReserved.code]}
            record = replace(record, reason="caveat_violation", context=context)
        elif reason == GRANTED:
            await self._spend(domain_id, payload)
        await self.audit.record(at_home(record, caller.domain_id))
        decision.require()
        if reason != GRANTED:
            raise NotFound("the scope is not one of this Domain")
        if genuine is None:
            raise EventTypeReserved
        return event.id, await self.publisher.publish(replace(event, payload=genuine))

    async def _spend(self, domain_id: UUID, payload: str) -> None:
        now = self.clock.now()
        try:
            self.budget.spend(domain_id, len(payload.encode(errors="surrogatepass")), now)
        except TooMany as refused:
            # One row a Domain and minute: whoever has spent the budget must not fill the chain instead.
            minute = now.strftime("%Y-%m-%dT%H:%MZ")
            row = _record(domain_id, "event.publish_limited", None, "caveat_violation", domain_id)
            context = {"mesh": [refused.code], "minute": [minute]}
            once = uuid5(domain_id, f"event.publish_limited/{minute}")
            await self.audit.record(replace(row, context=context, idempotency_key=once))
            raise

    def _genuine(self, keys: Keys, payload: str) -> str | None:
        """Return mesh's own announcement of the rotation under way when a payload says the same, else None."""
        previous = keys.previous(self.clock.now())
        if keys.current is not None and previous is not None:
            wanted = announcement(keys.current, previous)
            with contextlib.suppress(ValueError, RecursionError):
                # Its own text is what is signed: members that stand there twice are read in more ways than one.
                return json.dumps(wanted) if json.loads(payload) == wanted else None
        return None


def announcement(key: SigningKey, previous: SigningKey) -> dict[str, Any]:
    """Return the payload that tells nodes of a new key; its envelope is signed by the previous one."""
    return {
        "key_id": key.kid,
        "public_key": base64.b64encode(key.public_key).decode(),
        "previous_key_id": previous.kid,
        "transition_expires": rfc3339(key.transition_expires or key.created_at),
    }


def _record(
    chain: UUID | None,
    action: str,
    caller: Principal | None = None,
    reason: str = GRANTED,
    domain_id: UUID | None = None,
    context: dict[str, list[str]] | None = None,
) -> Record:
    return Record(
        domain_id=str(chain or ""),
        action=action,
        relation="manage",
        object_type="domain",
        object_id=str(domain_id or chain),
        reason=reason,
        context=context or {},
        subject_id=caller.subject if caller else "",
        subject_kind=caller.kind if caller else ANONYMOUS,
    )
