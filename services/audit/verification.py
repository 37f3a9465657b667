"""How a segment is recomputed from the rows themselves, piece by piece, and held against what was anchored."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from libs.chain import GENESIS
from libs.tlog.checkpoint import Checkpoint
from libs.tlog.tree import Run
from services.audit.model import Head, Progress, Stored, Verdict
from services.audit.piece import divergence
from services.audit.ports import Store
from services.audit.proofs import Proofs

# Rows that are in memory at a time, and for which a transaction is open.
PIECE = 512
TOLD_EVERY_S = 5.0


@dataclass(frozen=True)
class Verification:
    """Recomputes segments in constant memory; no transaction is open while who asked takes its time."""

    store: Store
    proofs: Proofs

    async def run(
        self, chain: str, anchored: Checkpoint | None, first: int, last: int, head: Head
    ) -> AsyncIterator[Progress | Verdict]:
        """Yield how far it is, and at last the verdict."""
        before, expected, run = await self._hash_before(chain, first), first, Run(first - 1)
        yield Progress(0, last - first + 1)
        for begin in range(first, last + 1, PIECE):
            piece = await self.store.piece(chain, begin, min(begin + PIECE - 1, last))
            if (wrong := divergence(piece, expected, before)) is not None:
                seq, wanted, observed = wrong
                yield Verdict(first, last, seq, wanted.hex(), observed.hex())
                return
            if anchored and run.end < anchored.size:
                run.push_all(piece.entry_hash[: anchored.size - run.end])
            before, expected = piece.entry_hash[-1] if piece.entry_hash else before, expected + len(piece.seq)
            if expected <= min(begin + PIECE - 1, last):
                break
            yield Progress(expected - first, last - first + 1)
        if expected <= last and head.seq:
            yield Verdict(first, last, expected, before.hex(), GENESIS.hex())
        elif last == head.seq and before != head.entry_hash:
            yield Verdict(first, last, last, before.hex(), head.entry_hash.hex())
        elif anchored is None:
            yield Verdict(first, last)
        elif head.seq < anchored.size:
            yield Verdict(first, last, head.seq + 1, anchored.root.hex(), GENESIS.hex())
        else:
            looking = asyncio.ensure_future(self._doubt(chain, anchored, run))
            try:
                # Where a chain begins to differ is looked for in all of its tree.
                while not (await asyncio.wait({looking}, timeout=TOLD_EVERY_S))[0]:
                    yield Progress(expected - first, last - first + 1)
            finally:
                looking.cancel()
            yield Verdict(first, last, *looking.result())

    async def _doubt(self, chain: str, anchored: Checkpoint, run: Run) -> tuple[int, str, str]:
        found = await self.proofs.doubt(chain, anchored, run) if run.begin < anchored.size else None
        return (found.seq, found.expected_hash.hex(), found.observed_hash.hex()) if found else (0, "", "")

    async def _hash_before(self, chain: str, first: int) -> bytes:
        if first == 1:
            return GENESIS
        row = await self.store.get(chain, first - 1)
        return row.entry_hash if row else GENESIS


async def pieces(store: Store, chain: str, first: int, last: int) -> AsyncIterator[list[Stored]]:
    """Yield entries in order, some at a time, up to where none follow; each piece is a snapshot of its own.

    What is appended stays as it is, so that the pieces are of one chain whatever happens in between.
    """
    for begin in range(first, last + 1, PIECE):
        rows = [row async for row in store.walk(chain, begin, min(begin + PIECE - 1, last))]
        if not rows:
            return
        yield rows
