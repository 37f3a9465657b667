"""Whether a chain may be appended to: it goes on from its anchor, and from what this process has seen of it.

A database that was restored from an older or another backup is found before its next append: at start, when the server
is another one, and when a head is not where it was.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import structlog

from libs.errors import AuditDiverged
from libs.telemetry import REFUSALS
from services.audit.model import Head

log = structlog.get_logger()


@dataclass(frozen=True)
class Server:
    """A running database server: when it was started tells it from any other, and from itself after a restore."""

    started: object


@dataclass
class Guard:
    """What this process knows of the chains; `check` holds one against its anchor and raises AuditDiverged."""

    check: Callable[[str], Awaitable[None]]
    # Why a chain is refused.
    diverged: dict[str, str] = field(default_factory=dict)
    _trusted: dict[str, Server | None] = field(default_factory=dict)
    _heads: dict[str, Head] = field(default_factory=dict)
    _behind: set[str] = field(default_factory=set)

    async def require(self, chain: str) -> None:
        """Return if a chain goes on from its anchor; raises AuditDiverged, and what the check raises."""
        if chain in self._trusted:
            return
        if chain in self._behind:
            raise AuditDiverged(self.diverged[chain])
        try:
            await self.check(chain)
        except AuditDiverged as error:
            self._refuse(chain, str(error))
            raise
        self.diverged.pop(chain, None)
        self._trusted[chain] = None

    def holds(self, chain: str, server: Server, head: Head) -> bool:
        """Whether a locked head may be appended to; False when the chain has to be checked once more.

        Raises AuditDiverged when it is behind what this process has seen, which no crash of a durable database does.
        """
        seen = self._heads.get(chain)
        if seen is not None and (head.seq < seen.seq or (head.seq == seen.seq and head != seen)):
            # The anchor may be older than what was lost.
            self._behind.add(chain)
            self._refuse(chain, f"entry {seen.seq} was there and is not any longer")
            raise AuditDiverged(self.diverged[chain])
        if chain not in self._trusted:
            return False
        known = self._trusted[chain]
        if known not in {None, server}:
            del self._trusted[chain]
            return False
        self._trusted[chain] = server
        self._heads[chain] = head
        return True

    def wrote(self, heads: Iterable[tuple[str, Head]]) -> None:
        """Remember where chains end, once that is durable."""
        self._heads.update(heads)

    def _refuse(self, chain: str, reason: str) -> None:
        self._trusted.pop(chain, None)
        if self.diverged.get(chain) != reason:
            REFUSALS.labels("restore", "diverged").inc()
            log.error("restore.diverged", chain=chain, reason=reason)
        self.diverged[chain] = reason
