"""Verification by the service's rule against bare hashes of the same bytes, both of rows in this process's memory.

The bare pass takes all that verifying has to hash: canonical bytes, link, leaf, the inner nodes of the Merkle tree (one
a leaf) and the salted personal record. It compares nothing; the rule holds every column of each row against its bytes.
What it costs to have the rows from the database is told beside it.
"""

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.deployment import memory_bytes
from bench.measure import Bar, Check, Figures, Report, alternate, column
from libs.chain import GENESIS
from libs.decision import GRANTED, Decision
from libs.ids import uuid7
from libs.principal import Principal
from libs.tlog.tree import Run
from services.audit.entry import PERSONAL, personal
from services.audit.model import Piece
from services.audit.piece import divergence
from services.audit.service import Audit, Request
from services.audit.store import PgStore
from services.audit.verification import PIECE

ROWS = 100 * PIECE
FLOOR, AIM = 0.3, 0.6
MOST_BYTES = 32 * 1024 * 1024
AUDITOR = Request(Principal(str(uuid7()), "user", "session"))


@dataclass(frozen=True)
class Granting:
    """Relations of an auditor."""

    async def check(self, subject: str, permission: str, resource: str) -> Decision:  # noqa: ARG002 — all is granted
        """Grant."""
        return Decision(GRANTED)


def bare(rows: Sequence[tuple[bytes, bytes]]) -> None:
    """Hash what verifying hashes."""
    sha256, before = hashlib.sha256, bytes(32)
    for canonical, record in rows:
        before = sha256(before + sha256(canonical).digest()).digest()
        leaf = sha256(b"\0" + before).digest()
        sha256(b"\1" + leaf + before).digest()
        sha256(record).digest()


@dataclass
class Peak:
    """The most memory that this process had while it was looked at."""

    bytes: int = 0

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            self.bytes = max(self.bytes, memory_bytes(os.getpid()))
            await asyncio.sleep(0.5)


def judged(pieces: Sequence[Piece]) -> None:
    """Hold rows against what was written and take them into a tree, as the service does once it has them."""
    run, before = Run(), GENESIS
    for piece in pieces:
        assert divergence(piece, run.end + 1, before) is None
        run.push_all(piece.entry_hash)
        before = piece.entry_hash[-1]


async def measure(audit: Audit, store: PgStore, chain: str, size: int, report: Report) -> None:
    """Add the bar, and whether memory stays the same over the whole chain."""
    pieces = [await store.piece(chain, first, first + PIECE - 1) for first in range(1, ROWS, PIECE)]
    rows = [
        (content, (salt or b"") + personal(*record))
        for piece in pieces
        for content, (salt, *record) in zip(piece.canonical, zip(*piece[PERSONAL][:5], strict=True), strict=True)
    ]

    async def ours() -> Figures:
        return timed(lambda: judged(pieces))

    async def theirs() -> Figures:
        return timed(lambda: bare(rows))

    a, b = await alternate(ours, theirs)
    bar = Bar("verification of rows, by bare hashes", "rows/s", column(a, "rate"), column(b, "rate"), FLOOR, AIM)
    report.bars.append(bar)
    rows.clear()
    pieces.clear()
    peak = Peak(before := memory_bytes(os.getpid()))
    watching = asyncio.ensure_future(peak.watch())
    whole = await _verify(audit, chain, size)
    watching.cancel()
    grown = peak.bytes - before
    report.shares[f"verification of {size:,} rows through the database"] = {
        "rows/s": whole["rate"],
        "by bare hashes": whole["rate"] / statistics.median(bar.theirs),
    }
    name = f"memory while {size:,} rows are verified"
    report.checks.append(Check(name, f"< {MOST_BYTES >> 20} MiB more", f"{grown / 2**20:.1f} MiB", grown < MOST_BYTES))


def timed(work: Callable[[], None]) -> Figures:
    """Return rows a second."""
    started = time.perf_counter()
    work()
    return {"rate": ROWS / (time.perf_counter() - started)}


async def _verify(audit: Audit, chain: str, last: int) -> Figures:
    started = time.perf_counter()
    verdict = await audit.verify(AUDITOR, chain, 1, last)
    elapsed = time.perf_counter() - started
    assert verdict.segment_to == last, verdict
    assert not verdict.divergent_seq, verdict
    return {"rate": last / elapsed}
