"""What gateways ask: was this published, and what did the stream not deliver."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from libs.clock import Clock
from services.mesh.model import FRESH, MARGIN, Logged, Publication, Seen
from services.mesh.ports import Log

# An answer stays well below gRPC's limit of 4 MiB; who needs more asks again.
MOST_EVENTS = 1000
MOST_BYTES = 2 * 1024 * 1024
# In a gap that is wider, only what is fresh is looked for.
WIDE = 2000
# The last place that a database has; a broker may name a later one.
LAST_PLACE = 2**63 - 1

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Answer:
    """What is said of envelopes, what was published in gaps, and which gaps are not filled yet, all in order.

    `highest` is the highest sequence that is noted, when nothing else was asked.
    """

    publications: list[Publication]
    missing: list[Logged]
    unfilled: Ranges
    highest: int = 0


@dataclass(frozen=True)
class Delivery:
    """The log as the store of nonces: an id is good at the one sequence where it was published, with its bytes."""

    log: Log
    clock: Clock

    async def check(self, seen: Sequence[Seen], gaps: Sequence[tuple[int, int]]) -> Answer:
        """Say of each envelope what the log says, and return what was published in the gaps and is still fresh."""
        if not seen and not gaps:
            # That is how gateways hear in good time that nobody can tell them, and of what the broker withholds.
            return Answer([], [], [], await self.log.highest())
        publications = await self.log.check(seen)
        # What stands at a sequence instead of what was published there is a gap, too.
        wrong = [
            (one.sequence, one.sequence)
            for one, publication in zip(seen, publications, strict=True)
            if publication not in {Publication.PUBLISHED, Publication.PENDING}
        ]
        missing, unfilled = await self._fill(merged([*gaps, *wrong]))
        return Answer(publications, missing, unfilled)

    async def floor(self, back: datetime.timedelta) -> int:
        """Return the sequence up to which nothing is of the time since then."""
        return await self.log.highest(self.clock.now() - back + MARGIN)

    async def _fill(self, gaps: Ranges) -> tuple[list[Logged], Ranges]:
        since, found, size = self.clock.now() - FRESH, list[Logged](), 0
        for turn, (first, last) in enumerate(gaps):
            if len(found) >= MOST_EVENTS or size >= MOST_BYTES:
                return found, gaps[turn:]
            start, end = first, min(last, LAST_PLACE)
            if end - start > WIDE:
                start = max(start, await self.log.highest(since) + 1)
            rows = await self.log.between(start, end, since, MOST_EVENTS - len(found), MOST_BYTES - size)
            found += rows
            size += sum(len(row.envelope) for row in rows)
            reached = found[-1].sequence if found and (len(found) >= MOST_EVENTS or size >= MOST_BYTES) else None
            if reached is not None and reached < end:
                return found, [(reached + 1, last), *gaps[turn + 1 :]]
        return found, []


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges with those that touch made one."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result
