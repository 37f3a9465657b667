"""What the rules of secrets speak about; no value of a secret is ever in one of these."""

import re
from dataclasses import dataclass
from uuid import UUID

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def is_name(text: str) -> bool:
    """Whether this could be the name of a secret."""
    return NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Place:
    """A project and the Domain that it belongs to."""

    project_id: UUID
    domain_id: UUID


@dataclass(frozen=True)
class SecretRow:
    """What PostgreSQL knows of a secret.

    `current_version` is what readers get; 0 until the first value stands. `pending_version` is a write that was begun,
    `destroying` a destruction that was: both are brought to their end by whoever meets them next.
    """

    id: UUID
    domain_id: UUID
    project_id: UUID
    name: str
    current_version: int = 0
    pending_version: int | None = None
    destroying: bool = False

    @property
    def reference(self) -> str:
        """Where OpenBao keeps the value, below the `kv` mount."""
        return f"secrets/{self.domain_id}/{self.id}"

    @property
    def resource(self) -> str:
        """The secret as relations name it."""
        return f"secret:{self.id}"

    @property
    def visible(self) -> bool:
        """Whether it exists for anybody who asks."""
        return self.current_version > 0 and not self.destroying


@dataclass(frozen=True)
class Sealed:
    """A secret as it leaves the system: encrypted under the node's key."""

    body: bytes
    version: int
    kid: str


@dataclass(frozen=True)
class Page:
    """A page of a project's secrets; `following` is the cursor of the next one, empty on the last."""

    rows: tuple[SecretRow, ...]
    following: str
