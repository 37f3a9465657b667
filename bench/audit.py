"""`make bench-audit`: the bars of the record, on an embedded stack of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from bench import appending, calls, verifying
from bench.chains import plant
from bench.deployment import Deployment, deployed
from bench.measure import ROUNDS, Bar, Report, console
from bench.proving import Counting, Work
from libs.bao import Bao, open_bao
from libs.clock import SystemClock
from libs.cursor import Cursors
from libs.custody import Secret
from libs.ids import uuid7
from libs.pg import create_pool
from libs.settings import load
from services.audit.checkpoints import Checkpoints
from services.audit.guard import Guard
from services.audit.proofs import Proofs
from services.audit.restores import Restores
from services.audit.service import Audit
from services.audit.settings import AuditSettings
from services.audit.store import PgStore
from services.audit.vault import BaoAnchors, BaoPeppers, BaoSigner
from services.audit.writer import GroupWriter

SMALL, LARGE = 10_000, 1_000_000


@dataclass(frozen=True)
class Store:
    """What the service is made of, in this process."""

    pool: asyncpg.Pool
    bao: Bao

    @property
    def checkpoints(self) -> Checkpoints:
        """The rules of checkpoints, under a log's name of the benchmark's own."""
        bao, store = self.bao, PgStore(self.pool)
        return Checkpoints("bench/audit", store, Counting(self.pool), BaoAnchors(bao), BaoSigner(bao), SystemClock())

    def writer(self) -> GroupWriter:
        """Make a writer."""
        return GroupWriter(self.pool, Guard(Restores(self.checkpoints)))

    def audit(self, writer: GroupWriter) -> Audit:
        """The service's rules, for an auditor who may read everything."""
        return Audit(
            appender=writer,
            store=PgStore(self.pool),
            peppers=BaoPeppers(self.bao),
            relations=verifying.Granting(),
            proofs=Proofs(self.checkpoints),
            cursors=Cursors(Secret(b"bench" * 7)),
            clock=SystemClock(),
        )


@contextlib.asynccontextmanager
async def opened(deployment: Deployment) -> AsyncIterator[Store]:
    """Connect to the backends as audit does."""
    settings = load(deployment.state / "config/audit.toml", AuditSettings)
    async with create_pool(settings.postgres, settings.tls) as pool, open_bao(settings.openbao, settings.tls) as bao:
        yield Store(pool, bao)


@contextlib.asynccontextmanager
async def running(store: Store) -> AsyncIterator[tuple[GroupWriter, appending.Raw]]:
    """Run the writers of both sides for the block."""
    writer, raw = store.writer(), appending.Raw(store.pool)
    tasks = [asyncio.ensure_future(one.run()) for one in (writer, raw)]
    try:
        yield writer, raw
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def play(deployment: Deployment, dba: asyncpg.Connection, store: Store, report: Report) -> None:
    """Measure in this process what audit does in its own."""
    url, pepper, small, large = deployment.world.env["PLEX_PG_SUPERUSER"], Secret(b"p" * 32), str(uuid7()), str(uuid7())
    await dba.execute(appending.TWINS)
    async with running(store) as (writer, raw):
        costs = {}
        for chain, size in ((small, SMALL), (large, LARGE)):
            console.print(f"a chain of {size:,} rows …")
            await plant(dba, url, chain, pepper, size)
            console.print("appends against raw inserts …")
            costs[chain] = await appending.measure(appending.Sides(writer, raw, pepper, chain), report, size)
        name = "an append to 10^6 rows by one to 10^4, each in raw inserts of its moment"
        growth = Bar(name, "inserts", costs[large], costs[small], appending.GROWTH, at_most=True)
        report.bars.append(growth)
        for chain in (small, large):
            await store.checkpoints.turn(chain)
        console.print("verification against bare hashes …")
        await verifying.measure(store.audit(writer), PgStore(store.pool), large, LARGE, report)
        console.print("checkpoints and proofs …")
        await Work(store.checkpoints, writer, pepper, small, large).measure(report)


async def main() -> int:
    """Start a stack, measure, print; returns the exit status."""
    settings = (
        f"{calls.IN_FLIGHT} in flight through gRPC, {calls.SECONDS:.0f} s; {appending.IN_FLIGHT} at the store, "
        f"{appending.ROWS} rows; {verifying.ROWS} rows verified; {ROUNDS} rounds in turn; fsync and "
        "synchronous_commit on, TLS 1.3 on every hop, no span exporter, log level info"
    )
    report = Report("audit", {"settings": settings})
    async with deployed() as deployment:
        await deployment.without_traces("audit")
        await calls.measure(deployment, report)
        # It would checkpoint what is appended here.
        await deployment.kill("audit")
        dba = await deployment.world.superuser()
        try:
            async with opened(deployment) as store:
                await play(deployment, dba, store, report)
        finally:
            await dba.close()
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
