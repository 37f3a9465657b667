"""Whether the provider still knows a person who is signed in: refresh tokens, asked about while a session lives.

OpenID Connect Core 1.0, 12. What comes back never makes a login fresher: its time stays that of the sign-in.
"""

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from libs.clock import Clock
from libs.custody import Secret
from libs.decision import Record
from libs.errors import PlexError
from libs.telemetry import REFUSALS
from services.identity.ports import Recorder
from services.identity.sign_in_model import Held, digest
from services.identity.sign_in_ports import ClientSecrets, ExchangeRefused, Provider, RefreshStore, RefreshVault
from services.identity.signed import JSON, TokenRefused, header_of, verified

ASK_EVERY = datetime.timedelta(minutes=5)
# A provider that cannot be asked for this long is no longer believed about whom it let in.
BELIEVED_FOR = datetime.timedelta(minutes=30)
LOOK_EVERY_S = 5.0
MOST_AT_ONCE = 16

log = structlog.get_logger()


def _audiences(claims: JSON) -> list[object]:
    audience = claims.get("aud")
    return audience if isinstance(audience, list) else [audience]


def _before(claims: JSON, name: str, moment: float) -> bool:
    value = claims.get(name)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value <= moment


# OpenID Connect Core 1.0, 12.2, in this order; the first that fails is the reason. The last argument is Unix seconds.
CHECKS: tuple[tuple[str, Callable[[JSON, Held, float], bool]], ...] = (
    ("iss", lambda claims, held, _: claims.get("iss") == held.binding.issuer),
    ("sub", lambda claims, held, _: claims.get("sub") == held.subject),
    ("aud", lambda claims, held, _: _audiences(claims) == [held.binding.client_id]),
    ("azp", lambda claims, held, _: claims.get("azp", held.binding.client_id) == held.binding.client_id),
    ("exp", lambda claims, held, now: "exp" in claims and not _before(claims, "exp", now - held.binding.leeway_s)),
    ("iat", lambda claims, held, now: _before(claims, "iat", now + held.binding.leeway_s)),
    ("auth_time", lambda claims, held, _: claims.get("auth_time") in {None, held.auth_time}),
    ("nonce", lambda claims, held, _: "nonce" not in claims or digest(str(claims["nonce"])) == held.nonce_digest),
)


@dataclass(frozen=True)
class Refresh:
    """Asks providers about sessions, and ends those that they no longer stand by."""

    store: RefreshStore
    provider: Provider
    secrets: ClientSecrets
    vault: RefreshVault
    audit: Recorder
    clock: Clock

    async def run(self) -> None:
        """Ask for ever; what cannot be asked now is asked again, and believed until then only for a while."""
        while True:
            try:
                await self.round()
            except PlexError as error:
                log.warning("refresh.postponed", code=error.code)
            await asyncio.sleep(LOOK_EVERY_S)

    async def round(self) -> None:
        """Ask about the sessions whose time it is."""
        now = self.clock.now()
        held = await self.store.due(now, now + ASK_EVERY, MOST_AT_ONCE)
        for failed in await asyncio.gather(*map(self.ask, held), return_exceptions=True):
            if isinstance(failed, PlexError):
                log.warning("refresh.postponed", code=failed.code)
            elif isinstance(failed, BaseException):
                raise failed

    async def ask(self, held: Held) -> None:
        """Ask the provider about one session; raises PlexError when it cannot be asked."""
        try:
            answer = await self._answer(held)
            await self._require_same(held, answer)
        except TokenRefused as refused:
            return await self._end(held, refused.reason)
        except ExchangeRefused as refused:
            # Any other refusal is about this client, and says nothing of the person.
            if refused.reason != "code_refused":
                raise
            return await self._end(held, "invalid_grant")
        fresh = answer.get("refresh_token")
        wrapped = held.refresh_token
        if isinstance(fresh, str) and fresh:
            # A provider that rotates takes the old one only once.
            with Secret(fresh.encode()) as token:
                wrapped = await self.vault.wrap_refresh(held.domain_id, held.session_id, token)
        await self.store.confirm(held.session_id, wrapped, self.clock.now() + BELIEVED_FOR)
        return None

    async def _answer(self, held: Held) -> JSON:
        with (
            await self.vault.unwrap_refresh(held.domain_id, held.session_id, held.refresh_token) as token,
            await self.secrets.client_secret(held.binding.client_secret_ref) as secret,
        ):
            form = {"grant_type": "refresh_token", "refresh_token": token.reveal().decode()}
            return await self.provider.exchange(held.binding, secret, form)

    async def _require_same(self, held: Held, answer: JSON) -> None:
        token = answer.get("id_token")
        if token is None:
            return
        if not isinstance(token, str):
            raise TokenRefused("id_token_form")
        keys = await self.provider.keys(held.binding, str(header_of(token).get("kid", "")))
        claims, _ = verified(token, keys, held.binding.algorithms)
        for reason, check in CHECKS:
            if not check(claims, held, self.clock.now().timestamp()):
                raise TokenRefused(reason)

    async def _end(self, held: Held, reason: str) -> None:
        REFUSALS.labels("refresh", reason).inc()
        log.info("session.not_confirmed", session=str(held.session_id), reason=reason)
        await self.audit.record(
            Record(
                domain_id=str(held.domain_id or ""),
                action="session.end",
                relation="sign_in",
                object_type="session",
                object_id=str(held.session_id),
                reason="caveat_violation",
                subject_id=str(held.person_id),
                subject_kind="user",
                context={"refresh": [reason]},
            )
        )
        await self.store.end(held.session_id)
