"""Whether the provider still knows a person who is signed in: refresh tokens, asked about while a session lives.

OpenID Connect Core 1.0, 12. What comes back never makes a login fresher: its time stays that of the sign-in.
"""

import asyncio
import datetime
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from libs.clock import Clock
from libs.custody import Secret
from libs.decision import Record, Recorder
from libs.errors import PlexError
from libs.telemetry import REFUSALS
from services.identity.id_token import credential, formed
from services.identity.sign_in_model import Held, digest
from services.identity.sign_in_ports import (
    ClientSecrets,
    ExchangeRefused,
    Provider,
    ProviderDoubted,
    RefreshStore,
    RefreshVault,
)
from services.identity.signed import JSON, TokenRefused, header_of, verified

ASK_EVERY = datetime.timedelta(minutes=5)
# A provider that cannot be asked for this long is no longer believed about whom it let in.
BELIEVED_FOR = datetime.timedelta(minutes=30)
LOOK_EVERY_S = 5.0
# Of all, and of one binding: a provider that takes its time holds up its own people only.
MOST_AT_ONCE, MOST_OF_ONE = 64, 4
REQUIRED = ("iss", "sub", "aud", "exp", "iat")

log = structlog.get_logger()


def _audiences(claims: JSON) -> list[object]:
    audience = claims["aud"]
    return audience if isinstance(audience, list) else [audience]


# OpenID Connect Core 1.0, 12.2, in this order; the first that fails is the reason. Each may count on the form of the
# claims. The last argument is Unix seconds.
CHECKS: tuple[tuple[str, Callable[[JSON, Held, float], bool]], ...] = (
    ("iss", lambda claims, held, _: claims["iss"] == held.binding.issuer),
    ("sub", lambda claims, held, _: claims["sub"] == held.subject),
    ("aud", lambda claims, held, _: _audiences(claims) == [held.binding.client_id]),
    ("azp", lambda claims, held, _: claims.get("azp", held.binding.client_id) == held.binding.client_id),
    ("exp", lambda claims, held, now: claims["exp"] > now - held.binding.leeway_s),
    ("iat", lambda claims, held, now: claims["iat"] <= now + held.binding.leeway_s),
    ("auth_time", lambda claims, held, _: claims.get("auth_time") in {None, held.auth_time}),
    ("nonce", lambda claims, held, _: "nonce" not in claims or digest(claims["nonce"]) == held.nonce_digest),
)


async def _alone(step: Coroutine[None, None, None]) -> None:
    try:
        await step
    except PlexError as error:
        log.warning("refresh.postponed", code=error.code)
    except Exception:
        # One answer must not end everybody's.
        log.exception("refresh.bug")


@dataclass(frozen=True)
class Refresh:
    """Asks providers about sessions, and ends those that they no longer stand by."""

    store: RefreshStore
    provider: Provider
    secrets: ClientSecrets
    vault: RefreshVault
    audit: Recorder
    clock: Clock
    under_way: dict[asyncio.Task[None], UUID] = field(default_factory=dict)

    async def run(self) -> None:
        """Ask for ever; what cannot be asked now is asked again, and believed until then only for a while."""
        try:
            while True:
                await _alone(self.look())
                if self.under_way:
                    # Whoever is done makes room for the next.
                    first = asyncio.FIRST_COMPLETED
                    await asyncio.wait(self.under_way, timeout=LOOK_EVERY_S, return_when=first)
                else:
                    await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for task in self.under_way:
                task.cancel()

    async def look(self) -> None:
        """Begin to ask about the sessions whose time it is; nobody waits for another's provider."""
        now, busy = self.clock.now(), list(self.under_way.values())
        for held in await self.store.due(now, now + ASK_EVERY, MOST_AT_ONCE - len(busy), MOST_OF_ONE, busy):
            task = asyncio.create_task(_alone(self.ask(held)))
            self.under_way[task] = held.binding.id
            task.add_done_callback(self.under_way.pop)

    async def ask(self, held: Held) -> None:
        """Ask the provider about one session; raises PlexError when it cannot be asked."""
        try:
            answer = await self._answer(held)
            await self._keep(held, credential(answer, "refresh_token"))
            await self._require_same(held, answer)
        except TokenRefused as refused:
            return await self._end(held, refused.reason)
        except ExchangeRefused as refused:
            # Any other refusal is about this client, and says nothing of the person.
            if refused.reason != "code_refused":
                raise
            return await self._end(held, "invalid_grant")
        await self.store.confirm(held.session_id, self.clock.now() + BELIEVED_FOR)
        return None

    async def _keep(self, held: Held, fresh: str) -> None:
        # A provider that rotates takes the old one only once, whatever comes of the rest of its answer.
        if fresh:
            with Secret(fresh.encode()) as token:
                wrapped = await self.vault.wrap_refresh(held.domain_id, held.session_id, token)
            await self.store.keep(held.session_id, wrapped)

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
        keys = await self.provider.keys(held.binding, str(header_of(token).get("kid", "")), "refresh")
        try:
            claims, _ = verified(token, keys, held.binding.algorithms)
        except TokenRefused as refused:
            if refused.reason == "kid_unknown":
                # The keys may be newer than what was fetched of them, which says nothing of the person.
                raise ProviderDoubted("kid_unknown") from None
            raise
        claims = formed(claims, REQUIRED)
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
