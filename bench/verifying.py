"""Verification by the service's rule, from the database to the verdict, against bare hashes of the same bytes.

The bare pass has everything in memory and takes all that verifying has to hash: canonical bytes, link, leaf, the inner
nodes of the Merkle tree (one a leaf) and the salted personal record. It reads, parses and compares nothing.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.deployment import memory_bytes
from bench.measure import Bar, Check, Figures, Report, alternate, column
from libs.decision import GRANTED, Decision
from libs.ids import uuid7
from libs.principal import Principal
from services.audit.entry import personal
from services.audit.service import Audit, Request
from services.audit.store import PgStore

ROWS = 50_000
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


async def measure(audit: Audit, store: PgStore, chain: str, size: int, report: Report) -> None:
    """Add the bar, and whether memory stays the same over the whole chain."""
    rows = [
        (row.canonical, (row.salt or b"") + personal(row.subject_id, row.subject_kind, row.client_ip, row.user_agent))
        async for row in store.walk(chain, 1, ROWS)
    ]

    async def ours() -> Figures:
        return await _verify(audit, chain, ROWS)

    async def theirs() -> Figures:
        started = time.perf_counter()
        bare(rows)
        return {"rate": ROWS / (time.perf_counter() - started)}

    a, b = await alternate(ours, theirs)
    report.bars.append(Bar("verification, by bare hashes", "rows/s", column(a, "rate"), column(b, "rate"), FLOOR, AIM))
    rows.clear()
    peak = Peak(before := memory_bytes(os.getpid()))
    watching = asyncio.ensure_future(peak.watch())
    whole = await _verify(audit, chain, size)
    watching.cancel()
    grown = peak.bytes - before
    report.shares[f"verification of {size:,} rows"] = {"rows/s": whole["rate"], "MiB more": grown / 2**20}
    name = f"memory while {size:,} rows are verified"
    report.checks.append(Check(name, f"< {MOST_BYTES >> 20} MiB more", f"{grown / 2**20:.1f} MiB", grown < MOST_BYTES))


async def _verify(audit: Audit, chain: str, last: int) -> Figures:
    started = time.perf_counter()
    verdict = await audit.verify(AUDITOR, chain, 1, last)
    elapsed = time.perf_counter() - started
    assert verdict.segment_to == last, verdict
    assert not verdict.divergent_seq, verdict
    return {"rate": last / elapsed}
