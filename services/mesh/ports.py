"""What the rules of mesh need; each docstring is the promise."""

from typing import Protocol
from uuid import UUID

from services.mesh.model import PublicHalf, SigningKey


class Vault(Protocol):
    """Event keys; private halves never leave it. Raises SigningUnavailable."""

    async def current(self, domain_id: UUID) -> PublicHalf | None:
        """Return the newest version of a Domain's key; None when it has no key."""

    async def create(self, domain_id: UUID) -> PublicHalf:
        """Make a Domain's key; of concurrent callers one makes it and all get the same one."""


class Store(Protocol):
    """Public halves. Raises DatastoreUnavailable."""

    async def remember(self, domain_id: UUID, half: PublicHalf) -> SigningKey:
        """Return the row of a key version, made when it was not there; of concurrent callers all get the same row."""


class Audit(Protocol):
    """The chain."""

    async def record_creation(self, domain_id: UUID) -> None:
        """Append that a Domain gets its event key. Durable once it returns; raises AuditUnavailable otherwise."""
