"""What gateways ask: was this published, and what did the stream not deliver."""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.clock import Clock
from services.mesh.model import FRESH, Logged, Publication, Seen
from services.mesh.ports import Log

# More is not filled at once; who lags that far behind begins anew.
LARGEST_FILL = 2000


@dataclass(frozen=True)
class Delivery:
    """The log as the store of nonces: an id is good at the one sequence where it was published, with its bytes."""

    log: Log
    clock: Clock

    async def check(
        self, seen: Sequence[Seen], gaps: Sequence[tuple[int, int]]
    ) -> tuple[list[Publication], list[Logged]]:
        """Say of each envelope what the log says, and return what was published in the gaps and is still fresh."""
        # Also asked for nothing: that is how gateways hear in good time that nobody can tell them.
        publications = await self.log.check(seen)
        # What stands at a sequence instead of what was published there is a gap, too.
        wrong = [
            (one.sequence, one.sequence)
            for one, publication in zip(seen, publications, strict=True)
            if publication not in {Publication.PUBLISHED, Publication.PENDING}
        ]
        since = self.clock.now() - FRESH
        missing: dict[int, Logged] = {}
        for first, last in merged([*gaps, *wrong]):
            for row in await self.log.between(first, min(last, first + LARGEST_FILL), since):
                missing[row.sequence or 0] = row
        return publications, [missing[sequence] for sequence in sorted(missing)]


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges with those that touch made one."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result
