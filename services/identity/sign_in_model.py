"""What identity knows of people: bindings, logins, sessions, devices; credentials only as digests."""

import base64
import datetime
import hashlib
import os
from dataclasses import dataclass, field
from uuid import UUID

from libs.access_policy import SecretLimits

SCOPES = ("openid", "email", "profile")
LEEWAY_S, MOST_LEEWAY_S = 30, 60
# Asymmetric ones only. EdDSA and Ed25519 are two names of one (RFC 9864).
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")


def digest(text: str) -> bytes:
    """Return what is stored of a credential: its SHA-256. Credentials are 256 random bits, so no salt is needed."""
    return hashlib.sha256(text.encode()).digest()


def random_text() -> str:
    """Return 256 random bits as base64url."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


@dataclass(frozen=True)
class Binding:
    """A Domain's, or the platform's, OpenID provider, and what is believed of it.

    `required_acr` means any one of, `required_amr` all of; a method outside of a non-empty `accepted_amr` is refused.
    `max_auth_age_s` is 0 for no limit.
    """

    id: UUID
    domain_id: UUID | None
    issuer: str
    client_id: str
    client_secret_ref: str
    discovery_url: str
    claim_mappings: dict[str, str]
    required_acr: tuple[str, ...]
    required_amr: tuple[str, ...]
    jit_policy: str
    status: str
    alias: str
    primary: bool
    created_at: datetime.datetime
    updated_at: datetime.datetime
    scopes: tuple[str, ...] = SCOPES
    accepted_amr: tuple[str, ...] = ()
    max_auth_age_s: int = 0
    leeway_s: int = LEEWAY_S
    algorithms: tuple[str, ...] = ALGORITHMS

    def max_age_s(self, asked: int | None) -> int | None:
        """Return how old a login may be: what was asked for, and never more than the binding allows."""
        ages = [age for age in (asked, self.max_auth_age_s or None) if age is not None]
        return min(ages, default=None)


@dataclass(frozen=True)
class Wanted:
    """What a step-up asks of the provider, checked again in what comes back."""

    acr_values: tuple[str, ...] = ()
    max_age_s: int | None = None


@dataclass(frozen=True)
class Pending:
    """A sign-in under way; verifier and nonce are derived from the state and stored nowhere.

    `previous` is the digest of the session that the browser had when it began, `used` whether the state came back
    before.
    """

    binding_id: UUID
    return_to: str
    wanted: Wanted
    expires_at: datetime.datetime
    previous: bytes | None = None
    used: bool = False


@dataclass(frozen=True)
class Callback:
    """What a browser brings back from the provider; `binding_id` is the one that the path names, if any."""

    state: str
    code: str = field(default="", repr=False)
    issuer: str = ""
    error: str = ""
    handle: str = field(default="", repr=False)
    binding_id: UUID | None = None


@dataclass(frozen=True)
class Login:
    """How somebody proved who they are, as the provider said and we verified; times are Unix seconds."""

    acr: str = ""
    amr: tuple[str, ...] = ()
    auth_time: int | None = None


@dataclass(frozen=True)
class Person:
    """A user identity."""

    id: UUID
    domain_id: UUID | None
    display_name: str = ""
    email: str = ""


@dataclass(frozen=True)
class Grant:
    """What the provider is asked with whether it still knows a person: a refresh token, as ciphertext only."""

    refresh_token: str
    nonce_digest: bytes
    refresh_at: datetime.datetime
    confirmed_until: datetime.datetime


@dataclass(frozen=True)
class Session:
    """A session of a person; `sid` is the provider's name of its own session, if it has one."""

    id: UUID
    person: Person
    login: Login
    expires_at: datetime.datetime
    sid: str = ""
    grant: Grant | None = None


@dataclass(frozen=True)
class Held:
    """A session that its provider is to be asked about."""

    session_id: UUID
    person_id: UUID
    domain_id: UUID | None
    subject: str
    binding: Binding
    auth_time: int | None
    nonce_digest: bytes
    refresh_token: str


@dataclass(frozen=True)
class Asker:
    """Where a device's request came from, and what it says that it is; who approves is shown it."""

    client_ip: str = ""
    user_agent: str = ""


@dataclass(frozen=True)
class Device:
    """A device authorization (RFC 8628)."""

    id: UUID
    client_id: str
    domain_id: UUID | None
    wanted: Wanted
    interval_s: int
    expires_at: datetime.datetime
    polled_at: datetime.datetime | None = None
    person_id: UUID | None = None
    binding_id: UUID | None = None
    denied: bool = False
    login: Login = field(default_factory=Login)
    asker: Asker = field(default_factory=Asker)


@dataclass(frozen=True)
class NodeKey:
    """What is known of the node key that a bearer names."""

    node_id: UUID
    project_id: UUID | None
    domain_id: UUID
    kid: str
    fingerprint: bytes
    live: bool
    secret_limits: SecretLimits = field(default_factory=SecretLimits)
