"""What the rules of access speak about."""

import asyncio
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from libs.access_policy import AccessPolicy

KID_BYTES = 16
# What a session that this service takes back is revoked for.
POLICY_VIOLATION = "policy_violation"
SCHEMA = "access"


@dataclass(frozen=True)
class Terms:
    """Where a resource stands, and on which terms its sessions are issued; `node_id` is None where none registered."""

    project_id: UUID
    domain_id: UUID
    node_id: UUID | None
    policy: AccessPolicy = field(default_factory=AccessPolicy)
    binding_acr: tuple[str, ...] = ()
    sign_in_ended: bool = False


@dataclass(frozen=True)
class Wish:
    """What a caller asks for; `request_digest` is of the key that makes a repeat safe, or None."""

    project_id: UUID
    resource_id: UUID
    kind: str
    target: Mapping[str, Any]
    ttl_s: int = 0
    request_digest: bytes | None = None
    body_digest: bytes = b""


@dataclass(frozen=True)
class Session:
    """A session as it stands; what is true of it is a matter of the clock, not of who wrote it down when."""

    id: UUID
    domain_id: UUID
    project_id: UUID
    resource_id: UUID
    node_id: UUID
    identity_id: UUID
    sign_in_ids: tuple[UUID, ...]
    kind: str
    target: Mapping[str, Any]
    issued_at: datetime.datetime
    expires_at: datetime.datetime
    last_active_at: datetime.datetime
    revoked_at: datetime.datetime | None = None
    revoke_reason: str = ""
    kid: str = ""
    claims: str = ""
    seal: bytes = b""

    def status(self, at: datetime.datetime) -> str:
        """Return "active", "revoked" or "expired"; one that was revoked stays so."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if at < self.expires_at else "expired"


@dataclass(frozen=True)
class Budget:
    """How many sessions there may be."""

    per_identity: int
    per_node: int
    per_minute: int


@dataclass(frozen=True)
class Reserved:
    """What became of a reservation: a place, the session that this request got before, or the name of what refused."""

    repeats: UUID | None = None
    refused: str = ""


@dataclass(frozen=True)
class PublicHalf:
    """What OpenBao says of one version of a Domain's session key: Ed25519 (RFC 8032), 32 bytes."""

    public_key: bytes
    version: int

    @property
    def kid(self) -> str:
        """The key's id: made from the key itself, so that replicas agree without asking each other."""
        return f"sek_{hashlib.sha256(self.public_key).digest()[:KID_BYTES].hex()}"


@dataclass(frozen=True)
class SessionKey:
    """A Domain's session key as it was recorded; the current one has neither an end nor a revocation."""

    kid: str
    domain_id: UUID
    public_key: bytes
    version: int
    created_at: datetime.datetime
    expires_at: datetime.datetime | None = None
    revoked_at: datetime.datetime | None = None

    @property
    def current(self) -> bool:
        """Whether it is the one that signs."""
        return self.expires_at is None and self.revoked_at is None

    def verifies(self, at: datetime.datetime) -> bool:
        """Whether its signatures count: strictly before its end."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True)
class Page:
    """A page of sessions; `following` is the cursor of the next one, empty on the last."""

    rows: tuple[Session, ...]
    following: str


@dataclass(frozen=True)
class Issued:
    """A session and its token, which is nowhere else."""

    session: Session
    token: str = field(repr=False)


@dataclass
class Doubt:
    """Whether somebody may have lost what a session rests on; `following` says whether that would be heard of."""

    count: int = 0
    following: bool = False
    roused: asyncio.Event = field(default_factory=asyncio.Event)

    def rouse(self) -> None:
        """Call for a look at who holds sessions."""
        self.count += 1
        self.roused.set()
