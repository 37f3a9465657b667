"""`make soak-audit`: callers append through two replicas of audit, which are killed with PostgreSQL at random.

A caller that is refused sends the row again under its key, to either replica, or gives it up; now and then one that was
told a sequence asks once more. At the end every acknowledged row must be in its chain under its sequence, each caller's
in order; no key may have two rows, no chain a gap; each must verify from its rows, and against its anchor. Nobody
substituted a backup, so nobody may have said so: a false alarm would stop a Domain.
"""

import asyncio
import contextlib
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from bench.deployment import Operator, deployed
from bench.measure import Check, Report, console, percentile
from bench.replica import Replicated
from bench.soak import Faults, begin, none
from libs.audit import AuditClient
from libs.chain import Link, verify
from libs.decision import Record
from libs.errors import AuditUnavailable
from libs.ids import uuid7
from libs.rpc.channel import connect
from libs.settings import Peer

DOMAINS, CALLERS = 3, 32
PAUSE_S, AGAIN_S = 0.1, 0.2
# Of refused rows that are given up, and of acknowledged ones that are asked for once more.
GIVEN_UP, REPEATED = 0.05, 0.1
QUIET_S, DOWN_S, TWO_AT_ONCE, DRAIN_S = (0.5, 6.0), (0.1, 2.0), 0.3, 60.0
ACTION, TYPE = "soak.append", "soak"
# As two services call them.
AS = ("secrets", "mesh")
ROWS = """
SELECT e.seq, e.prev_hash, e.entry_hash, e.canonical, e.object_type, e.object_id, i.key
FROM audit.entries e LEFT JOIN audit.idempotency i USING (chain, seq) WHERE e.chain = $1 ORDER BY e.seq
"""
HEAD = "SELECT seq FROM audit.chains WHERE chain = $1"
CHECKPOINTED = "SELECT count(DISTINCT chain) FROM audit.checkpoints WHERE chain = ANY ($1)"


@dataclass(frozen=True)
class Row:
    """What a caller had acknowledged."""

    chain: str
    caller: int
    number: int
    key: UUID
    seq: int

    @property
    def name(self) -> str:
        """What its object is called."""
        return f"{self.caller}-{self.number}"


@dataclass
class Soak:
    """Everything that happens, and what was seen of it."""

    deployment: Replicated
    operator: Operator
    faults: Faults
    chains: list[str]
    clients: dict[str, AuditClient]
    acknowledged: list[Row] = field(default_factory=list)
    by: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    given_up: int = 0
    repeated: int = 0
    diverged: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)

    async def call(self, caller: int) -> None:
        """Append one row after the other, as one caller."""
        chain, number = self.chains[caller % len(self.chains)], 0
        while not self.faults.stop.is_set():
            number += 1
            await self.append(chain, caller, number, list(self.clients))
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))

    async def append(self, chain: str, caller: int, number: int, replicas: list[str]) -> bool:
        """Append a row through any of the replicas; says whether it was acknowledged, and not given up."""
        record = Record(
            chain, ACTION, "read", TYPE, f"{caller}-{number}", subject_id=str(uuid7()), subject_kind="node",
            context={"number": [str(number)]},
        )  # fmt: skip
        while (seq := await self._ask(record, random.choice(replicas))) is None:
            if random.random() < GIVEN_UP:
                self.given_up += 1
                return False
            await asyncio.sleep(random.uniform(0, 2 * AGAIN_S))
        self.acknowledged.append(Row(chain, caller, number, record.idempotency_key, seq))
        if random.random() < REPEATED and (again := await self._ask(record, random.choice(replicas))) is not None:
            self.repeated += 1
            if again != seq:
                self.moved.append(f"{record.object_id}: {seq}, then {again}")
        return True

    async def _ask(self, record: Record, name: str) -> int | None:
        began = asyncio.get_running_loop().time()
        try:
            seq = await self.clients[name].record(record)
        except AuditUnavailable as error:
            self.refused[str(error)] += 1
            return None
        except Exception as error:  # noqa: BLE001 — it is what must not happen
            self.unforeseen.append(repr(error))
            return None
        self.waits.append(asyncio.get_running_loop().time() - began)
        self.by[name] += 1
        return seq

    async def run(self, seconds: float) -> None:
        """Let it all happen for some seconds, then append until every chain takes rows from both replicas again."""
        busy = [self.call(caller) for caller in range(CALLERS)]
        await self.faults.during(seconds, busy, lambda: f"{len(self.acknowledged)} acknowledged")
        async with asyncio.timeout(DRAIN_S):
            for caller, (chain, name) in enumerate(itertools.product(self.chains, self.clients), CALLERS):
                number = 1
                while not await self.append(chain, caller, number, [name]):
                    number += 1

    async def judge(self, report: Report) -> None:
        """Hold what was acknowledged against the chains."""
        dba = await self.deployment.world.superuser()
        try:
            chains = {chain: await self._chain(dba, chain) for chain in self.chains}
            checkpointed = await dba.fetchval(CHECKPOINTED, self.chains)
        finally:
            await dba.close()
        lost = [row for row in self.acknowledged if chains[row.chain].get(row.seq) != (row.name, row.key)]
        rows = Counter(one for found in chains.values() for row in found.values() for one in row)
        report.checks += [
            none(f"acknowledged rows that are not there, of {len(self.acknowledged)}", list(map(str, lost))),
            none("rows of a caller out of order", self._disorder()),
            none("keys and objects with two rows", [f"{one}: {count}" for one, count in rows.items() if count > 1]),
            none("rows that were asked for again and had moved", self.moved),
            none("chains with a gap, a fork or a hash that is not theirs", self.diverged),
            none("alarms, when nobody altered anything", self._alarms()),
            none("answers that are neither a sequence nor AuditUnavailable", self.unforeseen),
            Check("chains with a checkpoint", str(len(chains)), str(checkpointed), checkpointed == len(chains)),
            *[await self._verified(chain) for chain in chains],
            self.faults.check({"acknowledged": dict(self.by), "asked for again": self.repeated}),
        ]
        self._tell_more(report, sum(map(len, chains.values())))

    async def _chain(self, dba: asyncpg.Connection, chain: str) -> dict[int, tuple[str, UUID]]:
        """Recompute a chain from its rows; returns the soak's rows by sequence."""
        rows, head = await dba.fetch(ROWS, chain), await dba.fetchval(HEAD, chain)
        links = (
            Link(row["seq"], row["prev_hash"].hex(), row["entry_hash"].hex(), hashlib.sha256(row["canonical"]).digest())
            for row in rows
        )
        if divergence := verify(links, 1, head):
            self.diverged.append(f"{chain}: {divergence}")
        return {row["seq"]: (row["object_id"], row["key"]) for row in rows if row["object_type"] == TYPE}

    def _disorder(self) -> list[str]:
        last, found = dict[int, Row](), []
        for row in sorted(self.acknowledged, key=lambda one: (one.caller, one.number)):
            before = last.get(row.caller)
            if before is not None and row.seq <= before.seq:
                found.append(f"{row} after {before}")
            last[row.caller] = row
        return found

    def _alarms(self) -> list[str]:
        told = [f"{count} answers {code}" for code, count in self.refused.items() if "diverged" in code]
        for path in (self.deployment.state / "log").glob("audit*.log"):
            told += [line for line in path.read_text(errors="replace").splitlines() if ".diverged" in line]
        return told

    async def _verified(self, chain: str) -> Check:
        answer = await self.operator.edge.call("POST", f"/v1/domains/{chain}/audit/verify", {})
        return Check(
            "the service verifies the chain, and its anchor", "yes", str(answer), answer.json.get("ok") is True
        )

    def _tell_more(self, report: Report, rows: int) -> None:
        report.shares["soak"] = {
            "acknowledged": float(len(self.acknowledged)),
            "not acknowledged and there all the same": float(rows - len(self.acknowledged)),
            "given up": float(self.given_up),
            "asked for again": float(self.repeated),
            **{f"refused, {code}": float(count) for code, count in self.refused.items()},
        }
        report.shares["s to an answer"] = {f"p{share:.0%}": percentile(self.waits, share) for share in (0.5, 0.99, 1.0)}
        report.notes += [
            f"processes that ended by themselves and were started again: {dict(self.faults.ended_alone)}",
            *(f"{count} x in the logs: {error}" for error, count in self.deployment.errors().most_common(8)),
        ]


@contextlib.asynccontextmanager
async def calling(deployment: Replicated) -> AsyncIterator[dict[str, AuditClient]]:
    """Connect to each replica as another service."""
    places = {"audit": deployment.state.port("audit"), deployment.name: deployment.replica.port}
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for service, (name, port) in zip(AS, places.items(), strict=True):
            peer = Peer(address=f"127.0.0.1:{port}", name="audit")
            found[name] = AuditClient(await stack.enter_async_context(connect(peer, deployment.identity(service))))
        yield found


async def main() -> int:
    """Start a stack, soak it, print; returns the exit status."""
    seconds, report = begin("soak-audit", __doc__, 300.0)
    async with deployed() as alone, alone.operator() as operator:
        chains = [await operator.domain(number) for number in range(1, DOMAINS + 1)]
        deployment = await Replicated.beside(alone, "audit")
        victims = ("audit", deployment.name, "postgres")
        faults = Faults(deployment, victims, QUIET_S, DOWN_S, TWO_AT_ONCE)
        async with calling(deployment) as clients:
            console.print(f"{CALLERS} callers append to {DOMAINS} chains through two replicas")
            soak = Soak(deployment, operator, faults, chains, clients)
            await soak.run(seconds)
        # A quarter of an hour is as long as a token lasts.
        async with alone.operator() as again:
            soak.operator = again
            await soak.judge(report)
        await deployment.kill(deployment.name)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
