"""What the rules of access need; each docstring is the promise."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from libs.decision import Decision, Record
from libs.principal import Principal
from services.access.model import Budget, PublicHalf, Reserved, Session, SessionKey, Terms, Wish


class Vault(Protocol):
    """Session keys; private halves never leave it. Raises SigningUnavailable."""

    async def halves(self, domain_id: UUID) -> list[PublicHalf]:
        """Return all versions of a Domain's key, oldest first; none when it has no key."""

    async def create(self, domain_id: UUID) -> PublicHalf:
        """Make a Domain's key; of concurrent callers one makes it and all get the same one."""

    async def rotate(self, domain_id: UUID) -> PublicHalf:
        """Make one more version of a Domain's key and return the newest."""

    async def sign(self, domain_id: UUID, version: int, message: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032) of the exact bytes under one version: each time the same."""


class KeyStore(Protocol):
    """Public halves and what became of them; a method is a transaction. Raises DatastoreUnavailable."""

    async def keys(self, domain_id: UUID) -> list[SessionKey]:
        """Return a Domain's keys as they are now, oldest first."""

    async def remember(self, domain_id: UUID, half: PublicHalf, at: datetime.datetime) -> None:
        """Record a Domain's first key; one that is there stays."""

    async def succeed(self, domain_id: UUID, half: PublicHalf, at: datetime.datetime, until: datetime.datetime) -> None:
        """Let a key sign from now on, the one before verify until a time; of two at once one is RotationUnderWay."""

    async def revoke(self, key: SessionKey, successor: PublicHalf | None, at: datetime.datetime) -> None:
        """Revoke a key; of a current one the successor signs from now on.

        Raises Stale when the key is the current one and there is no successor.
        """


class Store(Protocol):
    """Sessions; a method is a transaction, and its event commits with it. Raises DatastoreUnavailable."""

    async def reserve(
        self, session_id: UUID, identity_id: UUID, node_id: UUID, wish: Wish, budget: Budget, at: datetime.datetime
    ) -> Reserved:
        """Hold a place for a session, or say what there is none for; exact however many ask at once.

        A repeat holds no place, and counts as a request of its minute.
        """

    async def release(self, session_id: UUID) -> None:
        """Give a place back, and forget its request, unless the session is there."""

    async def open(self, session: Session, payload: Mapping[str, Any], at: datetime.datetime) -> None:
        """Turn a place into a session and announce it, or raise Stale and do neither: when place or key is gone."""

    async def find(self, session_id: UUID) -> Session | None:
        """Return a session; with the key that signed it, it is revoked."""

    async def page(
        self, project_id: UUID, status: str, kind: str, identity_id: UUID | None, before: UUID | None, count: int,
        at: datetime.datetime,
    ) -> list[Session]:  # fmt: skip
        """Return a project's sessions, newest first, those before one; empty filters match all."""

    async def unrevoked(self, after: UUID, count: int, at: datetime.datetime) -> list[Session]:
        """Return sessions that have not run out and that nobody has revoked, by id, those after one.

        Those whose key was revoked are among them, and say so as everywhere: revoked when their key was.
        """

    async def join(self, session_id: UUID, sign_in_id: UUID, at: datetime.datetime) -> bool:
        """Bind an active session to one more sign-in, durably; False when it is not active, or its token is denied."""

    async def revoke(self, session: Session, reason: str, payload: Mapping[str, Any], at: datetime.datetime) -> bool:
        """Revoke an active session, deny its token and announce it; False, and nothing, when it is not active."""

    async def touch(
        self, session_id: UUID, node_id: UUID, kind: str, report: Mapping[str, Any], at: datetime.datetime
    ) -> bool:
        """Keep a report on an active session of a node and kind; False when there is none, or its token is denied.

        Of a session the first MOST_REPORTS are kept; the time is noted of all.
        """


class Directory(Protocol):
    """Where things stand, and what is asked of people there; never from memory. Raises Unavailable."""

    async def terms(self, caller: Principal, resource_id: UUID) -> tuple[Decision, Terms | None]:
        """Answer whether a caller may act on a resource, and return its terms; None when there is no such resource."""

    async def domain_of(self, project_id: UUID) -> UUID | None:
        """Return the Domain of a project."""

    async def ended(self, sign_in_ids: Sequence[UUID]) -> set[UUID]:
        """Return which sign-ins were ended; running out ends none."""


class Authority(Protocol):
    """Who may do what, fully consistent; raises AuthzUnavailable for anything but an answer."""

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        """Answer one check."""

    async def check_all(self, questions: Sequence[tuple[str, str, str]]) -> list[Decision]:
        """Answer several `(subject, permission, resource)` checks."""


class Audit(Protocol):
    """The chain."""

    async def record(self, record: Record) -> int:
        """Return the row's sequence once it is durable; raises AuditUnavailable, and then nothing may happen."""


class Cursors(Protocol):
    """Cursors of lists."""

    def seal(self, of: str, caller: str, position: dict[str, Any]) -> str:
        """Return a cursor for a position in the list `of`."""

    def open(self, of: str, caller: str, cursor: str) -> dict[str, Any]:
        """Return the position; raises InvalidCursor or CursorBindingMismatch."""
