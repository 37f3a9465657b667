"""What the rules of secrets need; each docstring is the promise."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID

from libs.access_policy import SecretLimits
from libs.custody import Secret
from libs.decision import Record
from services.secrets.model import Place, SecretRow


class Limiter(Protocol):
    """Limits that hold across every replica, to the unit."""

    async def spend(self, node_id: UUID, domain_id: UUID, said: SecretLimits) -> None:
        """Charge one read to the node and to its Domain, or neither, by what the Domain's policy says.

        Raises PerNodeRateLimited or PerDomainRateLimited with the whole seconds after which one more gets through both
        when nobody else is faster, and LimiterUnavailable when nobody can say.
        """


class Store(Protocol):
    """Metadata of secrets; each method is one transaction. Raises DatastoreUnavailable."""

    async def find(self, project_id: UUID, name: str) -> SecretRow | None:
        """Return the row of a name, in whatever state it is."""

    async def begin_put(self, row: SecretRow, expected_version: int) -> bool:
        """Note that the version after the expected one is about to be written; False when the row is another by now.

        Concurrent callers may all begin on one row: OpenBao's check-and-set then lets one of them through.
        """

    async def settle(self, row: SecretRow, version: int, readers: Sequence[UUID]) -> None:
        """Make what OpenBao holds the current version; never goes back, and ends a pending write that it covers.

        The readers are told in the same transaction when the version has risen.
        """

    async def note(self, row: SecretRow, readers: Sequence[UUID], reason: str) -> UUID:
        """Note that nodes are to be told of a change that is about to be made; durable once it returns the note."""

    async def tell(self, note: UUID) -> None:
        """Tell the nodes of a note; of concurrent callers one does."""

    async def untold(self, idle: timedelta) -> list[UUID]:
        """Return notes that were made at least `idle` ago, oldest first, some of them when there are many."""

    async def unsettled(self, project_id: UUID | None, idle: timedelta) -> list[SecretRow]:
        """Return rows with a write or a destruction that was begun at least `idle` ago; None for every project."""

    async def page(self, project_id: UUID, after: str, count: int) -> list[SecretRow]:
        """Return visible rows of a project in the order of their names, those after a name."""

    async def begin_destroy(self, row: SecretRow, readers: Sequence[UUID]) -> None:
        """Hide a secret from everybody, and tell those who read it; durable and final once it returns."""

    async def remove(self, secret_id: UUID) -> None:
        """Forget a secret whose destruction was begun."""


class Vault(Protocol):
    """Values of secrets. Raises OpenbaoUnavailable."""

    async def read(self, row: SecretRow, version: int) -> Secret:
        """Return exactly one version; raises SecretVersionNotFound when there is none or it was destroyed."""

    async def write(self, row: SecretRow, value: Secret, expected_version: int) -> int:
        """Write a version durably when the current one is the expected; raises PreconditionFailed otherwise."""

    async def current_version(self, row: SecretRow) -> int:
        """Return the newest version ever written; 0 when there is none."""

    async def destroy_version(self, row: SecretRow, version: int) -> None:
        """Destroy one version for good; repeating it changes nothing."""

    async def destroy(self, row: SecretRow) -> None:
        """Destroy every version for good; repeating it changes nothing."""


class Relations(Protocol):
    """Who may do what: fully consistent, never cached. Raises AuthzUnavailable, never a denial in its stead."""

    async def check(self, subject: str, permission: str, resource: str) -> str:
        """Return "granted", or the reason why not."""

    async def grant_reader(self, secret: SecretRow, node_id: UUID) -> None:
        """Let a node read a secret; checks may lag behind for a moment."""

    async def revoke_reader(self, secret: SecretRow, node_id: UUID) -> None:
        """Stop a node from reading a secret: no check finds it once this returns. Repeating it changes nothing."""

    async def readers(self, secret: SecretRow) -> list[UUID]:
        """Return the nodes that may read a secret."""

    async def revoke_readers(self, secret: SecretRow) -> None:
        """Stop everybody from reading a secret, in the same way."""


class Fleet(Protocol):
    """Where things stand. Raises Unavailable."""

    async def node(self, node_id: UUID) -> Place | None:
        """Return the project and Domain of a node; None when there is no such node."""

    async def project(self, project_id: UUID) -> Place | None:
        """Return the Domain of a project; None when there is no such project."""


class Audit(Protocol):
    """The chain."""

    async def record(self, record: Record) -> int:
        """Append a decision and return its sequence. Durable once it returns; the caller may then let the effect out.

        Raises AuditUnavailable, and then nothing may happen.
        """


class Cursors(Protocol):
    """Positions in lists, as callers carry them."""

    def seal(self, of: str, caller: str, position: dict[str, Any]) -> str:
        """Return an opaque cursor, bound to its list and its caller."""

    def open(self, of: str, caller: str, cursor: str) -> dict[str, Any]:
        """Return the position; raises InvalidCursor and CursorBindingMismatch."""
