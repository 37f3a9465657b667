"""What checkpoints and proofs read and take on a small chain and on one a hundred times as long, in turn."""

import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from bench.chains import decision
from bench.measure import Bar, Figures, Report, alternate, column
from libs.custody import Secret
from libs.tlog.tree import Node
from services.audit.checkpoints import Checkpoints
from services.audit.entry import draft
from services.audit.proofs import Proofs
from services.audit.tree_store import PgTrees
from services.audit.writer import GroupWriter

# log2 of a million by that of ten thousand is 1.5; linear would be 100.
MOST = 2.0
TURNS = 20


class Counting(PgTrees):
    """Trees that count the hashes that are read."""

    read = 0

    async def hashes(self, chain: str, nodes: Iterable[Node]) -> dict[Node, bytes]:
        """Return the stored hashes of subtrees."""
        found = await super().hashes(chain, nodes)
        type(self).read += len(found)
        return found


@dataclass(frozen=True)
class Work:
    """Checkpoints of two chains; the trees must be those that count."""

    checkpoints: Checkpoints
    writer: GroupWriter
    pepper: Secret
    small: str
    large: str

    async def checkpoint(self, chain: str) -> None:
        """Checkpoint one more entry."""
        await self.writer.append(draft(decision(chain), self.pepper))
        await self.checkpoints.turn(chain)

    async def prove(self, chain: str) -> None:
        """Prove that an entry is in the newest checkpoint."""
        proofs = Proofs(self.checkpoints)
        size = (await proofs.newest(chain)).signed.size
        await proofs.inclusion(chain, random.randint(1, size), size)

    async def measure(self, report: Report) -> None:
        """Add the bars."""
        for what, one in (
            ("a checkpoint of one more entry", self.checkpoint),
            ("an inclusion proof", self.prove),
        ):
            large, small = await alternate(_round(one, self.large), _round(one, self.small))
            for unit in ("hashes", "ms"):
                name, a, b = f"{what}, 10^6 by 10^4 entries", column(large, unit), column(small, unit)
                report.bars.append(Bar(name, unit, a, b, MOST, at_most=True))


def _round(one: Callable[[str], Awaitable[None]], chain: str) -> Callable[[], Awaitable[Figures]]:
    async def measure() -> Figures:
        read, started = Counting.read, time.perf_counter()
        for _ in range(TURNS):
            await one(chain)
        elapsed = time.perf_counter() - started
        return {"ms": elapsed * 1000 / TURNS, "hashes": (Counting.read - read) / TURNS}

    return measure
