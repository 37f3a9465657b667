"""What the audit rules need from outside; each docstring is the promise."""

import datetime
from collections.abc import AsyncIterator
from typing import Protocol

from libs.custody import Secret
from libs.decision import Decision as Verdict
from services.audit.model import Draft, Filter, Head, Stored


class Appender(Protocol):
    """Takes decisions into chains, from many callers at once."""

    async def append(self, entry: Draft) -> int:
        """Return the entry's sequence; durable once it returns. The same idempotency key returns the same one."""


class Store(Protocol):
    """Reads chains and removes personal data."""

    async def head(self, chain: str) -> Head:
        """Return where a chain ends now."""

    async def page(self, chain: str, wanted: Filter, below: int, limit: int) -> list[Stored]:
        """Return matching entries with a sequence below `below`, newest first."""

    async def get(self, chain: str, seq: int) -> Stored | None:
        """Return one entry."""

    def walk(self, chain: str, first: int, last: int) -> AsyncIterator[Stored]:
        """Yield entries in order, in constant memory, from one snapshot."""

    async def erase(self, chain: str, pseudonyms: list[str], at: datetime.datetime) -> datetime.datetime:
        """Remove the personal data behind pseudonyms; returns when it was first removed."""

    async def erased_at(self, chain: str, pseudonym: str) -> datetime.datetime | None:
        """Return when personal data was removed, if it was."""


class Peppers(Protocol):
    """The per-Domain secrets behind pseudonyms."""

    async def pepper(self, chain: str) -> Secret:
        """Return the chain's pepper, made at its first use and the same for every replica ever after."""


class Relations(Protocol):
    """Asks who may do what; never answers from memory."""

    async def check(self, subject: str, permission: str, resource: str) -> Verdict:
        """Answer one check; raises AuthzUnavailable for anything but an answer."""
