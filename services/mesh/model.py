"""What the rules of mesh speak about."""

import datetime
import hashlib
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from libs.envelope import WINDOW_NS

KID_BYTES = 16
# How long an envelope is fresh to its receivers, and how much of that must be left when it is sent once more.
FRESH = datetime.timedelta(microseconds=WINDOW_NS / 1000)
MARGIN = datetime.timedelta(seconds=15)
ROTATED = "signing_key_rotated"
STATE_UPDATED = "node_state_updated"
TYPES = frozenset(
    {
        STATE_UPDATED, "policy_updated", "bridge_config_updated", "peer_added", "peer_removed", "peer_key_rotated",
        "peer_endpoint_changed", "rotate_keys", ROTATED, "session_setup", "session_revoked", "action_request",
    }
)  # fmt: skip


@dataclass(frozen=True)
class PublicHalf:
    """What OpenBao says of one version of a Domain's event key: Ed25519 (RFC 8032), 32 bytes."""

    public_key: bytes
    version: int

    @property
    def kid(self) -> str:
        """The key's id: made from the key itself, so that replicas agree without asking each other."""
        return f"evk_{hashlib.sha256(self.public_key).digest()[:KID_BYTES].hex()}"


@dataclass(frozen=True)
class SigningKey:
    """A Domain's event key as it was recorded; `expires_at` is absent for the current one.

    A key is announced under the one before it and signs only once it is activated: every node hears of it first.
    """

    kid: str
    domain_id: UUID
    public_key: bytes
    version: int
    created_at: datetime.datetime
    expires_at: datetime.datetime | None = None
    activated_at: datetime.datetime | None = None
    revoked_at: datetime.datetime | None = None
    transition_expires: datetime.datetime | None = None
    announcement_id: UUID | None = None
    transition: datetime.timedelta | None = None

    @property
    def current(self) -> bool:
        """Whether it is the one that signs."""
        return self.activated_at is not None and self.expires_at is None and self.revoked_at is None

    @property
    def pending(self) -> bool:
        """Whether it waits to be announced."""
        return self.activated_at is None and self.revoked_at is None

    def time_to_hear(self, now: datetime.datetime) -> bool:
        """Whether most of the transition is still ahead, so that who hears of it now can follow."""
        whole, expires = self.transition, self.transition_expires
        return whole is None or expires is None or expires - now >= whole / 2

    def verifies(self, now: datetime.datetime) -> bool:
        """Whether receivers may believe it now."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class Keys:
    """A Domain's keys, oldest first."""

    rows: tuple[SigningKey, ...] = ()

    @property
    def current(self) -> SigningKey | None:
        """The key that signs."""
        return next((key for key in self.rows if key.current), None)

    @property
    def pending(self) -> SigningKey | None:
        """The key that is about to be announced."""
        return next((key for key in self.rows if key.pending), None)

    def previous(self, now: datetime.datetime) -> SigningKey | None:
        """Return the key before the current one while it still verifies."""
        return next((key for key in reversed(self.rows) if key.expires_at is not None and key.verifies(now)), None)

    def by_id(self, kid: str) -> SigningKey | None:
        """Return a key by its id."""
        return next((key for key in self.rows if key.kid == kid), None)


@dataclass(frozen=True)
class Event:
    """Something to be published; `payload` is JSON text."""

    id: UUID
    domain_id: UUID
    type: str
    scope: str
    payload: str


@dataclass(frozen=True)
class Logged:
    """A signed event as the log has it, with its newest place in the stream once that is known."""

    id: UUID
    domain_id: UUID
    scope: str
    type: str
    envelope: bytes
    issued_at: datetime.datetime
    sequence: int | None = None

    @property
    def subject(self) -> str:
        """Where it is published."""
        return f"events.{self.domain_id}.{self.scope.replace(':', '.')}.{self.type}"


@dataclass(frozen=True)
class Seen:
    """An envelope as a gateway read it."""

    sequence: int
    id: UUID
    digest: bytes


class Publication(Enum):
    """What the log says of an envelope that somebody read."""

    PUBLISHED = "published"
    PENDING = "pending"
    REPLAYED = "replayed"
    ALTERED = "altered"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class StreamState:
    """The stream as the broker has it."""

    first: int
    last: int
    deleted: tuple[int, ...] = ()
    # Whether its settings are those that mesh gave it.
    ours: bool = True
