"""The keys that sign a Domain's session tokens: made at first use, rotated with an overlap, revoked at once."""

import datetime
import hmac
from dataclasses import dataclass, field, replace
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.clock import Clock
from libs.decision import ANONYMOUS, CAVEAT_VIOLATION, GRANTED, Record, at_home
from libs.errors import NotFound, SigningKeyNotFound, SigningKeyRevoked, SigningUnavailable, Stale
from libs.principal import Principal
from libs.step_up import IN_PERSON, challenge, lacking, login_of
from services.access.model import Doubt, PublicHalf, SessionKey
from services.access.ports import Audit, Authority, KeyStore, Vault
from services.access.token import assembled, signing_input

log = structlog.get_logger()


@dataclass(frozen=True)
class SessionKeys:
    """Session keys, one current a Domain."""

    vault: Vault
    store: KeyStore
    audit: Audit
    authority: Authority
    clock: Clock
    doubt: Doubt
    _halves: dict[tuple[UUID, int], PublicHalf] = field(default_factory=dict)

    async def current(self, domain_id: UUID) -> SessionKey:
        """Return the key that signs, made when the Domain has none."""
        key = current_of(await self.store.keys(domain_id))
        if key is None:
            halves = await self.vault.halves(domain_id)
            if not halves:
                await self.audit.record(_record(domain_id, "session_key.create"))
                halves = [await self.vault.create(domain_id)]
            await self.store.remember(domain_id, halves[-1], self.clock.now())
            key = current_of(await self.store.keys(domain_id))
        if key is None or not await self._genuine(key):
            raise SigningUnavailable("the recorded public half is not the key's")
        return key

    async def allowed(self, domain_id: UUID, kid: str) -> SessionKey:
        """Return a key that may sign once more what it signed before; raises SigningUnavailable when it may not."""
        key = by_id(await self.store.keys(domain_id), kid)
        if key is None or not key.verifies(self.clock.now()) or not await self._genuine(key):
            raise SigningUnavailable("the key that signed the session does not count any more")
        return key

    async def token(self, key: SessionKey, claims: str) -> str:
        """Return claims as a token, once its signature was seen to verify."""
        message = signing_input(claims, key.kid)
        signature = await self.vault.sign(key.domain_id, key.version, message)
        try:
            Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, message)
        except InvalidSignature:
            raise SigningUnavailable("what was signed does not verify") from None
        return assembled(message, signature)

    async def published(self, domain_id: UUID) -> list[SessionKey]:
        """Return the keys that verify now, newest first; raises NotFound when the Domain has had none."""
        keys, now = await self.store.keys(domain_id), self.clock.now()
        if not keys:
            raise NotFound
        return [key for key in reversed(keys) if key.verifies(now) and await self._genuine(key)]

    async def list_all(self, caller: Principal, domain_id: UUID) -> list[SessionKey]:
        """Return all keys that a Domain ever had, newest first."""
        (await self.authority.check(caller.reference, "read", f"domain:{domain_id}")).require()
        return (await self.store.keys(domain_id))[::-1]

    async def rotate(self, caller: Principal, domain_id: UUID, transition: datetime.timedelta) -> SessionKey:
        """Give a Domain a new session key; what the one before signed verifies until the transition ends."""
        keys = await self._allowed(caller, domain_id, "session_key.rotate")
        if not keys:
            raise NotFound
        now = self.clock.now()
        await self.store.succeed(domain_id, await self._successor(keys), now, now + transition)
        return await self.current(domain_id)

    async def revoke(self, caller: Principal, domain_id: UUID, kid: str) -> tuple[SessionKey, SessionKey]:
        """Revoke a key at once; returns it and the one that signs now."""
        keys = await self._allowed(caller, domain_id, "session_key.revoke", kid)
        key, now = by_id(keys, kid), self.clock.now()
        if key is None:
            raise SigningKeyNotFound
        if not key.verifies(now):
            raise SigningKeyRevoked
        await self.store.revoke(key, await self._successor(keys) if key.current else None, now)
        # Its sessions ended with it; who hosts them is told by the look that this calls for.
        self.doubt.rouse()
        revoked = by_id(await self.store.keys(domain_id), kid)
        if revoked is None:
            raise Stale
        return revoked, await self.current(domain_id)

    async def _genuine(self, key: SessionKey) -> bool:
        # The row is one that a hostile DBA could change; only what OpenBao confirms is published or signs.
        at = (key.domain_id, key.version)
        if at not in self._halves:
            for found in await self.vault.halves(key.domain_id):
                self._halves[key.domain_id, found.version] = found
        half = self._halves.get(at)
        if half is None or half.kid != key.kid or not hmac.compare_digest(half.public_key, key.public_key):
            log.error("session_key.not_the_vaults", kid=key.kid, domain=str(key.domain_id))
            return False
        return True

    async def _successor(self, keys: list[SessionKey]) -> PublicHalf:
        """Return a version that no row has: one that a crash left unused, or a new one."""
        domain_id, used = keys[0].domain_id, {key.version for key in keys}
        halves = await self.vault.halves(domain_id)
        if halves and halves[-1].version not in used:
            return halves[-1]
        return await self.vault.rotate(domain_id)

    async def _allowed(self, caller: Principal, domain_id: UUID, action: str, kid: str = "") -> list[SessionKey]:
        decision = await self.authority.check(caller.reference, "manage", f"domain:{domain_id}")
        keys = await self.store.keys(domain_id)
        if decision.granted and (lacks := lacking(IN_PERSON, login_of(caller), self.clock.now().timestamp())):
            row = _record(domain_id, action, caller, CAVEAT_VIOLATION, domain_id, kid)
            await self.audit.record(replace(row, context=row.context | {"step_up": list(lacks.missing)}))
            raise challenge(lacks)
        # A made-up Domain must not get a chain: whoever is refused could fill the audit service with them.
        chain = domain_id if decision.granted or keys else None
        row = _record(chain, action, caller, decision.reason, domain_id, kid)
        await self.audit.record(at_home(row, caller.domain_id))
        decision.require()
        return keys


def current_of(keys: list[SessionKey]) -> SessionKey | None:
    """Return the key that signs."""
    return next((key for key in keys if key.current), None)


def by_id(keys: list[SessionKey], kid: str) -> SessionKey | None:
    """Return the key of an id."""
    return next((key for key in keys if key.kid == kid), None)


def _record(
    chain: UUID | None,
    action: str,
    caller: Principal | None = None,
    reason: str = GRANTED,
    domain_id: UUID | None = None,
    kid: str = "",
) -> Record:
    return Record(
        domain_id=str(chain or ""),
        action=action,
        relation="manage",
        object_type="domain",
        object_id=str(domain_id or chain),
        reason=reason,
        subject_id=caller.subject if caller else "",
        subject_kind=caller.kind if caller else ANONYMOUS,
        context={"key": [kid]} if kid else {},
    )
