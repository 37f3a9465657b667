"""When checkpoints are taken: a chain's is due after a while or after many entries, whichever comes first."""

import asyncio
import datetime
from dataclasses import dataclass, field

import structlog

from libs.clock import Clock
from libs.errors import AuditDiverged
from libs.telemetry import REFUSALS
from services.audit.checkpoints import Checkpoints
from services.audit.ports import Trees

LOOK_EVERY_S = 1.0

log = structlog.get_logger()


@dataclass
class Rounds:
    """Looks which chains are due, and takes their turns one after the other."""

    checkpoints: Checkpoints
    trees: Trees
    clock: Clock
    every: datetime.timedelta
    entries: int
    # A chain that could not be done waits like the others, so that it neither floods the log nor OpenBao.
    _failed: dict[str, datetime.datetime] = field(default_factory=dict)

    async def run(self) -> None:
        """Look for as long as the process lives."""
        while True:
            try:
                await self.look()
            except Exception as error:  # appends go on when nothing can be signed, and so does the next look
                log.warning("checkpoint.look_failed", exc_info=error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Take the turns that are due."""
        now = self.clock.now()
        self._failed = {chain: at for chain, at in self._failed.items() if at > now - self.every}
        for chain in await self.trees.due(self.entries, now - self.every):
            if chain not in self._failed:
                await self._turn(chain)

    async def _turn(self, chain: str) -> None:
        try:
            await self.checkpoints.turn(chain)
        except AuditDiverged as error:
            REFUSALS.labels("checkpoint", "diverged").inc()
            log.error("checkpoint.diverged", chain=chain, reason=str(error))  # noqa: TRY400 — the reason is all there is
        except Exception as error:  # a chain that goes wrong holds up no other
            log.warning("checkpoint.failed", chain=chain, exc_info=error)
        else:
            return
        self._failed[chain] = self.clock.now()
