"""What the rules of mesh speak about."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

KID_BYTES = 16


@dataclass(frozen=True)
class PublicHalf:
    """What OpenBao says of the newest version of a Domain's event key: Ed25519 (RFC 8032), 32 bytes."""

    public_key: bytes
    version: int

    @property
    def kid(self) -> str:
        """The key's id: made from the key itself, so that replicas agree without asking each other."""
        return f"evk_{hashlib.sha256(self.public_key).digest()[:KID_BYTES].hex()}"


@dataclass(frozen=True)
class SigningKey:
    """A Domain's event key as it was recorded; `expires_at` is absent for the current one."""

    kid: str
    domain_id: UUID
    public_key: bytes
    version: int
    created_at: datetime
    expires_at: datetime | None = None
