"""When something is done with each chain: after a while or after many entries, whichever comes first."""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from libs.clock import Clock
from libs.errors import AuditDiverged
from libs.telemetry import CHAINS_DIVERGED, REFUSALS, ROUND_OVERDUE
from services.audit.archive import Archive
from services.audit.checkpoints import Checkpoints
from services.audit.settings import Archive as Settings

LOOK_EVERY_S = 1.0
# What takes its turns seldom is looked for seldom: an object store is paid by request.
SELDOM_S = 60.0

log = structlog.get_logger()


@dataclass
class Rounds:
    """Looks which chains are due, and takes their turns one after the other; `what` is the name in logs and metrics."""

    what: str
    turn: Callable[[str], Awaitable[None]]
    due: Callable[[int, datetime.datetime], Awaitable[list[str]]]
    clock: Clock
    every: datetime.timedelta
    entries: int
    look_every_s: float = LOOK_EVERY_S
    # A chain that could not be done waits like the others, so that it neither floods the log nor OpenBao.
    _failed: dict[str, datetime.datetime] = field(default_factory=dict)
    _diverged: set[str] = field(default_factory=set)
    _due_since: dict[str, datetime.datetime] = field(default_factory=dict)
    _looked_at: datetime.datetime = field(init=False)

    def __post_init__(self) -> None:
        """Tell at each scrape how late the rounds are, also while they cannot even look."""
        self._looked_at = self.clock.now()
        ROUND_OVERDUE.labels(self.what).set_function(self.overdue_s)
        CHAINS_DIVERGED.labels(self.what).set_function(lambda: len(self._diverged))

    def overdue_s(self) -> float:
        """Return how long the chain has waited that waits longest; what nobody looked at counts as waiting."""
        waiting = (self.clock.now() - self._looked_at).total_seconds() - self.look_every_s
        longest = (self.clock.now() - min(self._due_since.values(), default=self.clock.now())).total_seconds()
        return max(waiting, longest, 0.0)

    async def run(self) -> None:
        """Look for as long as the process lives."""
        while True:
            try:
                await self.look()
            except Exception as error:  # appends go on when nothing can be signed, and so does the next look
                log.warning(self._event("look_failed"), exc_info=error)
            await asyncio.sleep(self.look_every_s)

    async def look(self) -> None:
        """Take the turns that are due."""
        now = self.clock.now()
        self._failed = {chain: at for chain, at in self._failed.items() if at > now - self.every}
        due = await self.due(self.entries, now - self.every)
        self._due_since = {chain: self._due_since.get(chain, now) for chain in due}
        for chain in due:
            if chain not in self._failed:
                await self._turn(chain)
        self._looked_at = self.clock.now()

    def _event(self, name: str) -> str:
        return f"{self.what}.{name}"

    async def _turn(self, chain: str) -> None:
        try:
            await self.turn(chain)
        except AuditDiverged as error:
            self._diverged.add(chain)
            REFUSALS.labels(self.what, "diverged").inc()
            log.error(self._event("diverged"), chain=chain, reason=str(error))  # noqa: TRY400 — the reason says all
        except Exception as error:  # a chain that goes wrong holds up no other
            log.warning(self._event("failed"), chain=chain, exc_info=error)
        else:
            self._diverged.discard(chain)
            self._due_since.pop(chain, None)
            return
        self._failed[chain] = self.clock.now()


def mirrored(archive: Archive, checkpoints: Checkpoints, settings: Settings) -> list[Rounds]:
    """Return the rounds that upload what was checkpointed, and those that compare all of it."""
    compared: dict[str, datetime.datetime] = {}

    async def compare(chain: str) -> None:
        await archive.require_same(chain, await checkpoints.keys(chain))
        compared[chain] = archive.clock.now()

    async def due(_: int, before: datetime.datetime) -> list[str]:
        return [chain for chain in await archive.chains() if compared.get(chain, before) <= before]

    every, compare_every = (datetime.timedelta(seconds=one) for one in (settings.every_s, settings.compare_every_s))
    look_s, look_again_s = min(SELDOM_S, settings.every_s), min(SELDOM_S * 60, settings.compare_every_s)
    return [
        Rounds("archive", archive.turn, archive.segments.due, archive.clock, every, settings.every_entries, look_s),
        Rounds("archive_comparison", compare, due, archive.clock, compare_every, 0, look_again_s),
    ]
