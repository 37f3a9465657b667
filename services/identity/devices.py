"""The rules of the device authorization grant (RFC 8628) and of access tokens."""

import base64
import datetime
import os
from dataclasses import dataclass, replace
from uuid import UUID

from libs.clock import Clock
from libs.decision import GRANTED, Record, Recorder
from libs.errors import (
    AccessDenied,
    AuthorizationPending,
    DeviceCodeAlreadyApproved,
    DeviceCodeExpired,
    DeviceCodeNotFound,
    ExpiredToken,
    IdpBindingNotFound,
    InvalidGrant,
    PlexError,
    SlowDown,
    StepUpRequired,
)
from libs.ids import uuid7
from services.identity.bindings import offered
from services.identity.sign_in_model import Asker, Device, Login, Session, Wanted, digest, random_text
from services.identity.sign_in_ports import SignInStore

CODE_FOR = datetime.timedelta(minutes=10)
TOKEN_FOR = datetime.timedelta(minutes=15)
INTERVAL_S = 1
LONGEST_SHOWN = 256
UNKNOWN = Asker()


@dataclass(frozen=True)
class Asking:
    """What somebody sees before deciding about a device."""

    device: Device
    domain_name: str
    asked_at: datetime.datetime
    step_up_needed: bool


def plain(text: str) -> str:
    """Return what a page may show of a stranger's text: short, and nothing in it that reorders or hides the rest."""
    return "".join(filter(str.isprintable, text))[:LONGEST_SHOWN]


def user_code_digest(text: str) -> bytes:
    """Return the digest of a user code, however it was typed."""
    return digest("user-code:" + text.replace("-", "").upper())


def satisfies(login: Login, device: Device, now: datetime.datetime) -> bool:
    """Whether a login is what a device asked for; an age of zero means a login since it asked."""
    wanted = device.wanted
    if wanted.acr_values and login.acr not in wanted.acr_values:
        return False
    if wanted.max_age_s is None:
        return True
    oldest = now.timestamp() - wanted.max_age_s if wanted.max_age_s else (device.expires_at - CODE_FOR).timestamp()
    return login.auth_time is not None and login.auth_time >= int(oldest)


def _refusal(
    device: Device | None, session: Session, provider: UUID | None, now: datetime.datetime, *, strong: bool
) -> PlexError | None:
    # A device without a Domain asked for the platform: somebody of a Domain is not whom it waits for.
    if device is None or device.denied or device.domain_id != session.person.domain_id:
        return DeviceCodeNotFound()
    if device.binding_id not in {None, provider}:
        return DeviceCodeNotFound()
    if now >= device.expires_at:
        return DeviceCodeExpired()
    if device.person_id is not None:
        return DeviceCodeAlreadyApproved()
    if strong and not satisfies(session.login, device, now):
        return StepUpRequired(acr_values=list(device.wanted.acr_values), max_age_s=device.wanted.max_age_s)
    return None


@dataclass(frozen=True)
class Devices:
    """Lets a signed-in person hand the login to a device without a browser."""

    store: SignInStore
    audit: Recorder
    clock: Clock
    environment: str

    async def start(
        self,
        domain_id: UUID | None,
        client_id: str,
        wanted: Wanted,
        binding_id: UUID | None = None,
        alias: str = "",
        asker: Asker = UNKNOWN,
    ) -> tuple[Device, str, str]:
        """Return a device authorization, its device code and its user code; a named binding is the only one then."""
        if binding_id or alias:
            binding_id = await self._named(domain_id, binding_id, alias)
        device_code = random_text()
        letters = base64.b32encode(os.urandom(5)).decode()
        user_code = f"{letters[:4]}-{letters[4:]}"
        expires_at = self.clock.now() + CODE_FOR
        device = Device(
            uuid7(), client_id, domain_id, wanted, INTERVAL_S, expires_at, binding_id=binding_id, asker=asker
        )
        await self.store.start_device(device, digest(device_code), user_code_digest(user_code))
        return device, device_code, user_code

    async def _named(self, domain_id: UUID | None, binding_id: UUID | None, alias: str) -> UUID:
        for binding in await offered(self.store, domain_id):
            if binding_id in {None, binding.id} and alias in {"", binding.alias}:
                return binding.id
        raise IdpBindingNotFound

    async def inspect(self, session: Session, user_code: str) -> Asking:
        """Say who asks, to somebody who could approve; a code that is none for them is told as approving tells it."""
        device = await self._asked(session, user_code, "device.inspect")
        domain_name = await self.store.domain_name(device.domain_id) if device.domain_id else ""
        asker = Asker(device.asker.client_ip, plain(device.asker.user_agent))
        shown = replace(device, client_id=plain(device.client_id), asker=asker)
        strong = satisfies(session.login, device, self.clock.now())
        return Asking(shown, domain_name, device.expires_at - CODE_FOR, step_up_needed=not strong)

    async def approve(self, session: Session, user_code: str) -> None:
        """Give the device the login behind a session; it never becomes fresher by that."""
        device = await self._asked(session, user_code, "device.approve")
        if not await self.store.approve_device(device.id, session):
            raise DeviceCodeAlreadyApproved

    async def deny(self, session: Session, user_code: str) -> None:
        """Tell the device that it gets nothing."""
        device = await self._asked(session, user_code, "device.deny")
        if not await self.store.deny_device(device.id):
            raise DeviceCodeAlreadyApproved

    async def _asked(self, session: Session, user_code: str, action: str) -> Device:
        """Return the device that a person may decide about, once the decision is recorded, as a refusal is."""
        device = await self.store.device_by_user_code(user_code_digest(user_code))
        provider = await self.store.provider_of(session.person.id)
        refusal = _refusal(device, session, provider, self.clock.now(), strong=action == "device.approve")
        # Also in the row, which the person's own Domain reads, another one's device is as none.
        shown = device is not None and device.domain_id == session.person.domain_id
        await self.audit.record(
            Record(
                domain_id=str(session.person.domain_id or ""),
                action=action,
                relation="approve",
                object_type="device",
                object_id=str(device.id) if device and shown else "unknown",
                reason="caveat_violation" if refusal else GRANTED,
                subject_id=str(session.person.id),
                subject_kind="user",
                context={"device": [refusal.code]} if refusal else {},
            )
        )
        if device is None or refusal:
            raise refusal or DeviceCodeNotFound
        return device

    async def poll(self, device_code: str, client_id: str) -> tuple[str, int]:
        """Return an access token and its lifetime in seconds, once; raises the codes of RFC 8628, 3.5."""
        now = self.clock.now()
        device = await self.store.poll_device(digest(device_code), client_id, now)
        if device is None:
            raise InvalidGrant
        if now >= device.expires_at:
            raise ExpiredToken
        if device.polled_at is not None and now - device.polled_at < datetime.timedelta(seconds=device.interval_s):
            raise SlowDown
        if device.denied:
            raise AccessDenied
        if device.person_id is None:
            raise AuthorizationPending
        await self.audit.record(
            Record(
                domain_id=str(device.domain_id or ""),
                action="access_token.issue",
                relation="approve",
                object_type="device",
                object_id=str(device.id),
                subject_id=str(device.person_id),
                subject_kind="user",
            )
        )
        token = f"pat_{self.environment}_{random_text()}"
        if not await self.store.issue_token(device, digest(token), now, now + TOKEN_FOR):
            raise InvalidGrant
        return token, int(TOKEN_FOR.total_seconds())
