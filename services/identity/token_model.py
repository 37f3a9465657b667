"""What identity knows of API tokens and service identities; a token's text only as a digest.

A token is `psk_<env>_` (API token) or `pst_<env>_` (service token), 30 random characters of base62, over 178 bits, and
6 of checksum: the CRC-32 (ISO 3309) in base62 of all that stands before it. Secret scanners match `TEXT` and tell a
token from a look-alike without asking anybody; so do we, before the database is asked.
"""

import datetime
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from uuid import UUID

API_TOKEN, SERVICE_TOKEN = "psk", "pst"
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM, CHECKSUM = 30, 6
TEXT = re.compile(r"(psk|pst)_(dev|stage|prod)_[0-9A-Za-z]{36}")


def checksum(text: str) -> str:
    """Return the checksum of what stands before it."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(CHECKSUM):
        number, digit = divmod(number, len(BASE62))
        digits = BASE62[digit] + digits
    return digits


def new_text(kind: str, environment: str) -> str:
    """Return the text of a new token."""
    text = f"{kind}_{environment}_" + "".join(secrets.choice(BASE62) for _ in range(RANDOM))
    return text + checksum(text)


def well_formed(text: str, kind: str) -> bool:
    """Whether a text can be a token of this kind at all."""
    return bool(TEXT.fullmatch(text)) and text.startswith(f"{kind}_") and checksum(text[:-CHECKSUM]) == text[-CHECKSUM:]


@dataclass(frozen=True)
class Owner:
    """Whose a token is: a person, or a service identity with the way in which it proves who it is."""

    kind: str
    id: UUID
    domain_id: UUID | None
    federation_kind: str = ""

    @property
    def reference(self) -> str:
        """The owner as relations name it."""
        return f"{self.kind}:{self.id}"


@dataclass(frozen=True)
class ApiToken:
    """An API token; `scope` None is all that its owner may."""

    id: UUID
    owner: Owner
    env_prefix: str
    scope: tuple[str, ...] | None
    issued_by: UUID
    created_at: datetime.datetime
    expires_at: datetime.datetime
    last_used_at: datetime.datetime | None = None
    rotated_at: datetime.datetime | None = None


@dataclass(frozen=True)
class ServiceToken:
    """A short access token of a service identity; it dies with the API token that begot it."""

    id: UUID
    api_token_id: UUID
    owner: Owner
    scope: tuple[str, ...] | None
    expires_at: datetime.datetime


@dataclass(frozen=True)
class Identity:
    """A person or a service identity in a Domain; `subject` is what the provider calls it."""

    id: UUID
    kind: str
    domain_id: UUID
    display_name: str
    issuer: str
    subject: str
    email: str
    last_sign_in_at: datetime.datetime | None
    created_at: datetime.datetime
    updated_at: datetime.datetime


@dataclass(frozen=True)
class ServiceIdentity:
    """A machine's account in a Domain."""

    id: UUID
    domain_id: UUID
    display_name: str
    subject: str
    audience: str
    federation_kind: str
    created_at: datetime.datetime
