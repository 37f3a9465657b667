"""What the rules of mesh need; each docstring is the promise."""

import datetime
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol
from uuid import UUID

from libs.decision import Decision, Record
from services.mesh.model import Event, Keys, Logged, Publication, PublicHalf, Seen, SigningKey, StreamState


class Vault(Protocol):
    """Event keys; private halves never leave it. Raises SigningUnavailable."""

    async def halves(self, domain_id: UUID) -> list[PublicHalf]:
        """Return all versions of a Domain's key, oldest first; none when it has no key."""

    async def create(self, domain_id: UUID) -> PublicHalf:
        """Make a Domain's key; of concurrent callers one makes it and all get the same one."""

    async def rotate(self, domain_id: UUID) -> PublicHalf:
        """Make one more version of a Domain's key and return the newest."""

    async def sign(self, domain_id: UUID, version: int, messages: Sequence[bytes]) -> list[bytes]:
        """Return the Ed25519 signatures (RFC 8032) of the exact bytes under one version, in their order."""


class KeyStore(Protocol):
    """Public halves and what became of them; a method is a transaction. Raises DatastoreUnavailable."""

    async def remember(self, domain_id: UUID, half: PublicHalf) -> SigningKey:
        """Return the row of a key version, made when it was not there; of concurrent callers all get the same row."""

    async def keys(self, domain_ids: Collection[UUID]) -> dict[UUID, Keys]:
        """Return the Domains' keys as they are now, never from memory; Domains without a key are left out."""

    async def begin_rotation(
        self, domain_id: UUID, half: PublicHalf, transition: datetime.timedelta, at: datetime.datetime
    ) -> SigningKey:
        """Record a key that is to be announced; raises RotationUnderWay when another one is, or still in transition."""

    async def activate(self, key: SigningKey, at: datetime.datetime) -> None:
        """Make a key the one that signs, and begin the transition of the one before it; idempotent.

        Nothing happens when the key's announcement was renewed since.
        """

    async def revoke(self, key: SigningKey, successor: PublicHalf | None, at: datetime.datetime) -> None:
        """Revoke a key; of a current one the successor signs from now on. Announces it in the same transaction.

        Raises Stale when the key is the current one and there is no successor.
        """

    async def pending(self, before: datetime.datetime) -> list[SigningKey]:
        """Return the keys that were recorded before a time and are not announced."""

    async def to_announce(self, at: datetime.datetime, before: datetime.datetime) -> list[SigningKey]:
        """Return the keys in transition at `at` whose last announcement was before `before`."""

    async def repeat(self, key: SigningKey, payload: dict[str, Any], at: datetime.datetime) -> None:
        """Put one more announcement of a key into the outbox, and note when."""

    async def renew(self, key: SigningKey, announcement_id: UUID, at: datetime.datetime) -> SigningKey:
        """Give the announcement of a pending key another id, and let its transition begin at `at`.

        Raises RotationUnderWay when somebody else did, or the key is not pending any more.
        """

    async def ask_reconcile(
        self,
        domain_id: UUID,
        events: Sequence[tuple[str, dict[str, Any]]],
        at: datetime.datetime,
        quiet: datetime.timedelta,
    ) -> bool:
        """Put events for a Domain's nodes into the outbox; False when some were put there within `quiet`."""


class Log(Protocol):
    """The signed bytes of what was published; append-only. Raises DatastoreUnavailable."""

    async def find(self, ids: Collection[UUID]) -> dict[UUID, Logged]:
        """Return the events that are logged, with their newest place."""

    async def append(self, rows: Sequence[Logged]) -> set[UUID]:
        """Log events; returns the ids of those that were not there. Durable once it returns."""

    async def note(self, rows: Sequence[tuple[int, UUID]], within_s: float) -> None:
        """Note at which sequence events were published, within so many seconds or not at all.

        Raises EventBusUnavailable when one is another's already. After any refusal they may be noted all the same.
        """

    async def highest(self, at: datetime.datetime | None = None) -> int:
        """Return the highest sequence that was noted, ever or until a time; 0 for none."""

    async def fresh(self, since: datetime.datetime) -> list[Logged]:
        """Return published events issued after `since`, with their newest places and in the order of their first.

        An event that has several was published again; what followed it in its scope follows its first place.
        """

    async def check(self, seen: Sequence[Seen]) -> list[Publication]:
        """Say of each whether exactly these bytes were published at this sequence."""

    async def between(self, first: int, last: int, since: datetime.datetime, most: int, size: int) -> list[Logged]:
        """Return what was published at these sequences and issued after `since`, both ends included, in order.

        Ends after `most` events, and with the one that reaches `size` bytes.
        """

    async def roll(self) -> None:
        """Make the partitions of the next days and let go of what is past keeping.

        Raises DatastoreUnavailable when it must be asked again for the latter; the next days are there then.
        """

    def leading(self) -> AbstractAsyncContextManager[Callable[[], Awaitable[bool]]]:
        """Hold the keeper's lock for the block; what it gives says whether this replica holds it, or raises."""


class Stream(Protocol):
    """The stream on the broker. Raises EventBusUnavailable."""

    async def publish(self, rows: Sequence[Logged]) -> list[int]:
        """Publish in order, all or nothing, and return the acknowledged sequences: each the one before and one."""

    async def state(self) -> StreamState | None:
        """Return how the stream is; None when there is none."""

    async def create(self, first: int) -> None:
        """Make the stream; its first message gets the sequence `first`. Changes the settings of one that is there."""

    async def restart(self, first: int) -> None:
        """Empty the stream; its next message gets the sequence `first`."""

    async def read(self, first: int, count: int) -> list[tuple[int, bytes]]:
        """Return up to `count` messages from a sequence on; what cannot be read is left out."""

    async def open_consumer(self, start: int, back: datetime.timedelta) -> tuple[str, int]:
        """Open a pull consumer from a sequence on, or from a time ago for 0; returns its name and what waits for it."""


class Audit(Protocol):
    """The chain."""

    async def record(self, record: Record) -> int:
        """Return the row's sequence once it is durable; raises AuditUnavailable, and then nothing may happen."""


class Authority(Protocol):
    """Who may do what."""

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        """Answer one check, fully consistent; raises AuthzUnavailable for anything but an answer."""


class Fleet(Protocol):
    """Where things stand. Raises Unavailable."""

    async def domain_of(self, scope: str) -> UUID | None:
        """Return the Domain of `node:<id>` or `project:<id>`; None when there is no such thing."""


class Publishing(Protocol):
    """The way to the bus."""

    async def publish(self, event: Event) -> int:
        """Return the sequence at which exactly this event was published; asked again, the same one."""

    async def publish_in_order(self, events: Sequence[Event]) -> list[int]:
        """Return the sequences of those before the first that cannot be published; raises when that is the very first.

        None is published before one that stands in front of it.
        """
