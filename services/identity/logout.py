"""A provider's word that somebody signed out there (OpenID Connect Back-Channel Logout 1.0, 2.6).

A logout token is believed by each binding for itself: with that binding's keys, and for its own people only.
"""

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import structlog

from libs.clock import Clock
from libs.counted import Counted
from libs.decision import ANONYMOUS, Record
from libs.errors import LogoutRefused, PlexError
from services.identity.sign_in_model import MOST_LEEWAY_S, Binding, digest
from services.identity.sign_in_ports import LogoutStore, Provider, ProviderDoubted
from services.identity.signed import JSON, TokenRefused, header_of, unverified, verified

EVENT = "http://schemas.openid.net/event/backchannel-logout"
KINDS = frozenset({"jwt", "logout+jwt"})
LONGEST_NAME = 255
# How much longer than its end a token is remembered: by then no clock within the leeway takes it.
REMEMBERED_S = 2 * MOST_LEEWAY_S
# 9999-12-31: the last moment that the calendar has.
LAST_SECOND = 253_402_300_799
# The edge gives up after 15 s, and a refusal must have its row by then.
KEYS_WITHIN_S = 10.0
# One token must not ask for the keys of all Domains of a large provider at the same moment.
MOST_AT_ONCE = 16

log = structlog.get_logger()


def _name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _time(value: object) -> float:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LAST_SECOND
    return float(value) if numeric else -1.0  # type: ignore[arg-type]  # a number, as just seen


def _audiences(claims: JSON) -> list[object]:
    audience = claims.get("aud")
    return audience if isinstance(audience, list) else [audience]


def _event(claims: JSON) -> bool:
    events = claims.get("events")
    return isinstance(events, dict) and isinstance(events.get(EVENT), dict)


def _whom(claims: JSON) -> bool:
    named = [claims[name] for name in ("sub", "sid") if name in claims]
    return bool(named) and all(map(_name, named))


# In this order; the first that fails is the reason.
CHECKS: tuple[tuple[str, Callable[[JSON, Binding, float], bool]], ...] = (
    ("iss", lambda claims, binding, _: claims.get("iss") == binding.issuer),
    ("aud", lambda claims, binding, _: binding.client_id in _audiences(claims)),
    ("iat", lambda claims, binding, now: 0 <= _time(claims.get("iat")) <= now + binding.leeway_s),
    ("exp", lambda claims, binding, now: _time(claims.get("exp")) > now - binding.leeway_s),
    ("jti", lambda claims, _, __: _name(claims.get("jti"))),
    ("events", lambda claims, _, __: _event(claims)),
    # What has a nonce is an id_token, whoever signed it.
    ("nonce", lambda claims, _, __: "nonce" not in claims),
    ("sub_sid", lambda claims, _, __: _whom(claims)),
)


@dataclass(frozen=True)
class Logout:
    """Ends what a provider's session gave."""

    store: LogoutStore
    provider: Provider
    audit: Counted
    clock: Clock
    keys_within_s: float = KEYS_WITHIN_S

    async def accept(self, token: str) -> None:
        """End what a logout token names at each binding that believes it; raises LogoutRefused when none does."""
        refusal: BaseException = LogoutRefused()
        reason = "iss_unknown"
        try:
            claims = unverified(token, KINDS)
            issuer = str(claims.get("iss", ""))
            # A lone surrogate is valid JSON, and no text for a database.
            bindings = await self.store.believing(issuer) if issuer.isprintable() else []
            bindings = [one for one in bindings if one.client_id in _audiences(claims)] or bindings[-1:]
        except TokenRefused as refused:
            bindings, reason = [], refused.reason
        # At once: whoever binds an issuer and answers slowly keeps no other Domain's people signed in.
        turn = asyncio.Semaphore(MOST_AT_ONCE)
        ends = [self._end(binding, token, turn) for binding in bindings]
        outcomes = await asyncio.gather(*ends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, TokenRefused):
                reason = outcome.reason
            elif isinstance(outcome, BaseException):
                # A bug of one binding refuses too, and no refusal is without its row.
                reason, refusal = outcome.code if isinstance(outcome, PlexError) else "internal", outcome
        if None not in outcomes:
            await self.audit.count(_record(bindings[-1] if bindings else None, reason))
            raise refusal

    async def _end(self, binding: Binding, token: str, turn: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self.keys_within_s), turn:
                kid = str(header_of(token, KINDS).get("kid", ""))
                keys = await self.provider.keys(binding, kid, "logout")
        except TimeoutError:
            raise ProviderDoubted("keys_late") from None
        claims, _ = verified(token, keys, binding.algorithms, KINDS)
        now = self.clock.now()
        for reason, check in CHECKS:
            if not check(claims, binding, now.timestamp()):
                raise TokenRefused(reason)
        jti = digest(claims["jti"])
        if await self.store.known(binding.id, jti):
            raise TokenRefused("jti_replayed")
        subject, sid = claims.get("sub", ""), claims.get("sid", "")
        await self.audit.record(_record(binding, person_id=await self.store.whose(binding.id, subject, sid)))
        until = datetime.datetime.fromtimestamp(min(_time(claims["exp"]) + REMEMBERED_S, LAST_SECOND), datetime.UTC)
        if not await self.store.log_out(binding.id, subject, sid, jti, now, until):
            raise TokenRefused("jti_replayed")
        log.info("session.logged_out", binding=str(binding.id))


def _record(binding: Binding | None, reason: str = "", person_id: UUID | None = None) -> Record:
    return Record(
        domain_id=str(binding.domain_id or "") if binding else "",
        action="session.log_out",
        relation="sign_out",
        object_type="idp_binding" if binding else "platform",
        object_id=str(binding.id) if binding else "main",
        reason="caveat_violation" if reason else "granted",
        subject_id=str(person_id or ""),
        subject_kind="user" if person_id else ANONYMOUS,
        context={"logout_token": [reason]} if reason else {},
    )
