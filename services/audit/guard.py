"""Whether a chain may be appended to: what this process knows of each, and when that has to be found out again.

A database that was restored from an older, an altered or another backup is found before its next append: at start, when
the server, the database or the table is another one, and when a head is not where it was.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import structlog

from libs.errors import AuditDiverged, AuditUnavailable
from libs.telemetry import REFUSALS, REFUSED_CHAINS
from services.audit.model import Head
from services.audit.restores import Checked, Restores, Seen, goes_on

LOOK_EVERY_S = 2.0
# What is refused is looked at again, for at most so large a part of the time.
SHARE = 0.1
ABREAST = 8

log = structlog.get_logger()


@dataclass
class Guard:
    """What this process knows of the chains; `refused` says why one is not appended to."""

    restores: Restores
    refused: dict[str, str] = field(default_factory=dict)
    _checked: dict[str, Checked] = field(default_factory=dict)
    _seen: dict[str, Seen] = field(default_factory=dict)
    _checks: dict[str, "asyncio.Task[Exception | None]"] = field(default_factory=dict)
    _again_at: dict[str, float] = field(default_factory=dict)
    # The server on which all chains were looked at.
    _surveyed: str = ""

    async def require(self, chain: str) -> None:
        """Return if a chain goes on from its anchor; raises AuditDiverged, and what the check raises."""
        if chain in self._checked:
            return
        if chain in self.refused:
            raise AuditDiverged(self.refused[chain])
        if (error := await self._check(chain)) is not None:
            raise error

    async def look_at(self, chains: Iterable[str]) -> list[str]:
        """Check chains now; returns why each is refused, empty when it goes on."""
        answers = await self._check_all(chains)
        for answer in answers:
            if answer is not None and not isinstance(answer, AuditDiverged):
                raise answer
        return [str(answer or "") for answer in answers]

    def before(self, turn: Callable[[str], Awaitable[None]]) -> Callable[[str], Awaitable[None]]:
        """Return a turn that is not taken for a chain which is not what it was, as this process knows it."""

        async def guarded(chain: str) -> None:
            await self.require(chain)
            store, (seen,) = self.restores.checkpoints.store, self.seen([chain])
            server, head, row = (await store.storage()).server, await store.head(chain), await store.get(chain, seen)
            if not self.holds(chain, server, head, row.entry_hash if row else None):
                await self.require(chain)
            await turn(chain)

        return guarded

    def holds(self, chain: str, server: str, head: Head, there: bytes | None) -> bool:
        """Whether a locked head may be appended to; False when the chain has to be checked once more.

        `there` is the hash of the entry at the sequence that was last seen.
        """
        checked, seen = self._checked.get(chain), self._seen.get(chain)
        if checked is None:
            return False
        if checked.server != server or (seen is not None and not goes_on(seen.head, head, there)):
            del self._checked[chain]
            return False
        self._seen[chain] = Seen(head, checked.epoch)
        return True

    def seen(self, chains: Iterable[str]) -> list[int]:
        """Return the sequence that was last seen of each chain, 0 for none."""
        return [self._seen[chain].head.seq if chain in self._seen else 0 for chain in chains]

    def wrote(self, chain: str, head: Head) -> None:
        """Remember where a chain ends, once that is durable."""
        if (checked := self._checked.get(chain)) is not None:
            self._seen[chain] = Seen(head, checked.epoch)

    async def ready(self) -> None:
        """Raise unless each chain that was anchored was looked at, and goes on."""
        if not self._surveyed:
            raise AuditUnavailable("not every chain was looked at yet")
        if self.refused:
            raise AuditDiverged("a chain does not go on from its anchor")

    async def run(self) -> None:
        """Look for as long as the process lives."""
        while True:
            try:
                await self.look()
            except Exception as error:  # the next look may find the backends again
                log.warning("restore.look_failed", exc_info=error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look at all chains when the database is another one, and again at those that are refused."""
        server = await self.restores.server()
        if server != self._surveyed:
            self._surveyed = ""
            await self.look_at(await self.restores.chains())
            self._surveyed = server
        await self._check_all(chain for chain in self.refused if time.monotonic() >= self._again_at[chain])

    async def _check_all(self, chains: Iterable[str]) -> list[Exception | None]:
        places = asyncio.Semaphore(ABREAST)

        async def check(chain: str) -> Exception | None:
            async with places:
                return await self._check(chain)

        return await asyncio.gather(*map(check, list(chains)))

    async def _check(self, chain: str) -> Exception | None:
        """Check a chain, once for all who ask meanwhile; returns what is wrong with it."""
        if chain not in self._checks:
            # Of no caller's context: the deadline of one is not that of the others.
            work = self._held_against(chain)
            self._checks[chain] = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        return await asyncio.shield(self._checks[chain])

    async def _held_against(self, chain: str) -> Exception | None:
        started = time.monotonic()
        try:
            self._checked[chain] = await self.restores.check(chain, self._seen.get(chain))
        except AuditDiverged as error:
            self._refuse(chain, str(error))
            return error
        except Exception as error:  # noqa: BLE001 — it is raised where it was asked for
            return error
        finally:
            del self._checks[chain]
            self._again_at[chain] = time.monotonic() + (time.monotonic() - started) / SHARE
        if self.refused.pop(chain, None) is not None:
            log.info("restore.goes_on", chain=chain)
        self._after(chain)
        return None

    def _after(self, chain: str) -> None:
        """Forget what was seen in an epoch that is over."""
        if chain in self._seen and self._seen[chain].epoch != self._checked[chain].epoch:
            del self._seen[chain]
        REFUSED_CHAINS.set(len(self.refused))

    def _refuse(self, chain: str, reason: str) -> None:
        self._checked.pop(chain, None)
        if self.refused.get(chain) != reason:
            REFUSALS.labels("restore", "diverged").inc()
            log.error("restore.diverged", chain=chain, reason=reason)
        self.refused[chain] = reason
        REFUSED_CHAINS.set(len(self.refused))
