"""What signing in needs from outside; each docstring is the promise."""

import datetime
from typing import Any, Protocol
from uuid import UUID

from libs.custody import Secret
from libs.errors import ProviderFailed, SignInRefused
from services.identity.model import Tuple
from services.identity.sign_in_model import Binding, Device, Held, Login, NodeKey, Pending, Person, Session


class ProviderDoubted(ProviderFailed):
    """A provider that does not answer, or cannot be believed; `reason` goes to log, metric and audit only."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExchangeRefused(SignInRefused):
    """A token endpoint that gives nothing; `reason` goes to log, metric and audit only."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class BindingStore(Protocol):
    """Bindings; a method is a transaction."""

    async def add_binding(self, binding: Binding) -> None:
        """Raise BindingConflict for a second issuer, or a second primary, of a Domain."""

    async def ensure_binding(self, binding: Binding) -> None:
        """Let the platform's binding be as the settings file states it."""

    async def binding(self, binding_id: UUID) -> Binding | None:
        """Return a binding."""

    async def bindings(self, domain_id: UUID | None) -> list[Binding]:
        """Return a Domain's bindings, or the platform's, the primary one first."""

    async def change_binding(self, before: Binding, after: Binding) -> None:
        """Put one state of a binding for another; raises BindingConflict when it changed, or for a second primary."""

    async def set_binding_status(self, binding_id: UUID, status: str, at: datetime.datetime) -> Binding | None:
        """Set a status; whatever the people of a binding that is not active hold is worth nothing once it returns."""

    async def remove_binding(self, binding_id: UUID) -> list[Tuple] | None:
        """Remove a binding with its people and what they hold, and mark their tuples as removing; returns these."""


class SignInStore(BindingStore, Protocol):
    """Bindings, sessions, devices; a method is a transaction."""

    async def start(self, state_digest: bytes, pending: Pending) -> None:
        """Remember a sign-in under way."""

    async def finish(self, state_digest: bytes, at: datetime.datetime) -> Pending | None:
        """Return a sign-in as it was, and mark its state as used: it is found unused only once."""

    async def person(self, binding: Binding, subject: str) -> Person | None:
        """Return who a provider's subject is."""

    async def admit(self, binding: Binding, person: Person, subject: str, at: datetime.datetime) -> Person:
        """Create or refresh a person; two first sign-ins at once make one."""

    async def was_made_admin(self, person_id: UUID) -> bool:
        """Whether a person was made an administrator of the platform by the settings file, whatever became of it."""

    async def open_session(self, session: Session, digest: bytes, at: datetime.datetime, ended: bytes | None) -> None:
        """Store a session, and end the one whose digest is given."""

    async def use_session(self, digest: bytes, at: datetime.datetime, idle_since: datetime.datetime) -> Session | None:
        """Return a live session and move its idle time."""

    async def end_session(self, session_id: UUID) -> None:
        """End a session; it is gone for every replica when this returns."""

    async def end_sessions(self, person_id: UUID) -> int:
        """End every session and access token of a person; returns how many sessions there were."""

    async def start_device(self, device: Device, device_digest: bytes, user_code_digest: bytes) -> None:
        """Remember a device authorization."""

    async def device_by_user_code(self, user_code_digest: bytes) -> Device | None:
        """Return a device authorization by what a person typed."""

    async def domain_name(self, domain_id: UUID) -> str:
        """Return a Domain's name; empty when it is gone."""

    async def approve_device(self, device_id: UUID, session: Session) -> bool:
        """Give a device the login behind a session; False when it has one already.

        Raises Unauthenticated when the session is over: the assertion that named it may be a minute old.
        """

    async def deny_device(self, device_id: UUID) -> bool:
        """Deny a device; False when it was approved or denied already."""

    async def poll_device(self, device_digest: bytes, client_id: str, at: datetime.datetime) -> Device | None:
        """Return a device authorization as it was before this poll, and note the poll."""

    async def issue_token(
        self, device: Device, digest: bytes, at: datetime.datetime, expires_at: datetime.datetime
    ) -> bool:
        """Store an access token's digest and forget the device; False when another poll was first."""

    async def use_token(self, digest: bytes, at: datetime.datetime) -> Session | None:
        """Return the login behind a live access token; its id is the token's."""

    async def end_token(self, token_id: UUID) -> None:
        """End an access token."""

    async def node_keys(self, node_id: UUID, at: datetime.datetime) -> list[NodeKey]:
        """Return the keys of a node, those that count and the newest of those that did."""

    async def provider_of(self, person_id: UUID) -> UUID | None:
        """Return the binding at which a person signs in."""

    async def email(self, person_id: UUID) -> str:
        """Return a person's e-mail address, or nothing."""


class LogoutStore(Protocol):
    """What a provider's logout ends; a method is a transaction."""

    async def believing(self, issuer: str) -> list[Binding]:
        """Return every binding to an issuer, whoever owns it."""

    async def known(self, binding_id: UUID, jti_digest: bytes) -> bool:
        """Whether a logout token of a binding came before."""

    async def whose(self, binding_id: UUID, subject: str, sid: str) -> UUID | None:
        """Return the one person whose sessions a logout would end, if that is one."""

    async def log_out(
        self,
        binding_id: UUID,
        subject: str,
        sid: str,
        jti_digest: bytes,
        at: datetime.datetime,
        until: datetime.datetime,
    ) -> bool:
        """End what came from a provider's session, or without `sid` from all of a subject's; once a `jti_digest`.

        That is remembered `until` then.

        Sessions, approvals and access tokens are gone for every replica when this returns; False when the logout token
        came before.
        """


class RefreshStore(Protocol):
    """Sessions with a refresh token; a method is a transaction."""

    async def due(
        self, at: datetime.datetime, next_at: datetime.datetime, limit: int, of_one: int, busy: list[UUID]
    ) -> list[Held]:
        """Return sessions whose time has come, each to one caller only, and come back to them at `next_at`.

        Of a binding at most `of_one`, those counted that `busy` names.
        """

    async def keep(self, session_id: UUID, refresh_token: str) -> None:
        """Keep what to ask with next."""

    async def confirm(self, session_id: UUID, until: datetime.datetime) -> None:
        """Believe the provider about a session until then."""

    async def end(self, session_id: UUID) -> None:
        """End a session, its approvals and the access tokens of the same provider's session, for every replica."""


class RefreshVault(Protocol):
    """Refresh tokens at rest; raises OpenbaoUnavailable."""

    async def wrap_refresh(self, domain_id: UUID | None, session_id: UUID, token: Secret) -> str:
        """Return ciphertext bound to Domain and session."""

    async def unwrap_refresh(self, domain_id: UUID | None, session_id: UUID, ciphertext: str) -> Secret:
        """Return the token; the caller wipes it."""


class Provider(Protocol):
    """An OpenID provider."""

    async def metadata(self, binding: Binding) -> dict[str, Any]:
        """Return what is used of the discovery document, whose issuer is exactly the binding's.

        Raises ProviderDoubted.
        """

    async def keys(self, binding: Binding, kid: str, purpose: str = "sign_in") -> list[dict[str, Any]]:
        """Return the provider's public keys, fetched again at most once a purpose and minute for an unknown key id.

        How often they are fetched is counted for each purpose: what strangers send never uses up what sign-ins need.
        Raises ProviderDoubted.
        """

    async def exchange(self, binding: Binding, secret: Secret, form: dict[str, str]) -> dict[str, Any]:
        """Exchange a code at the token endpoint; raises ExchangeRefused or ProviderDoubted."""

    async def userinfo(self, binding: Binding, access_token: str) -> dict[str, Any]:
        """Return what the userinfo endpoint says of whom the access token is for; raises ProviderDoubted."""


class ClientSecrets(Protocol):
    """Client secrets of bindings."""

    async def client_secret(self, reference: str) -> Secret:
        """Return the secret behind a reference; the caller wipes it."""


class Admins(Protocol):
    """Makes a person an administrator of the platform."""

    async def grant_platform_admin(self, person_id: UUID) -> None:
        """Grant, once for good: what was revoked since stays so."""


__all__ = ["Admins", "BindingStore", "ClientSecrets", "Login", "Provider", "SignInStore"]
