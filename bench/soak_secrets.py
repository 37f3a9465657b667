"""`make soak-secrets`: nodes read their secrets while audit, secrets, OpenBao, SpiceDB and PostgreSQL are killed.

One after the other, again and again. At the end every release must have its row in the chain, every value must have
gone to its node, and every answer must be one of the contract. Each node has a secret of its own, and asks now and then
for what it must not get: another node's, under its own path and under the other's, and one that there is not.
"""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from cryptography.exceptions import InvalidTag

from bench.deployment import Deployment, Operator, deployed
from bench.measure import Check, Report, console, percentile
from bench.soak import Faults, begin, none
from tests.e2e.outside import Answer, Node, random_secret

VICTIMS = ("audit", "secrets", "openbao", "spicedb", "postgres")
NODES = 12
# As often as one node asks, and how often it asks for what it must not get.
PAUSE_S = 0.15
ASTRAY = 0.2
QUIET_S, DOWN_S, DRAIN_S = (0.5, 3.0), (0.2, 2.0), 60.0
# Far above what is asked here, so that what is refused is refused by a fault.
LIMITS = {"node_rate_per_minute": 6000, "node_burst": 100, "domain_rate_per_minute": 60_000, "domain_burst": 6000}
REFUSED = {
    f"503 {code}unavailable" for code in ("", "audit_", "authz_", "datastore_", "limiter_", "openbao_")
} | {"429 per_node_rate_limited", "429 per_domain_rate_limited"}  # fmt: skip
ROWS = """
SELECT correlation_id, reason, object_id FROM audit.entries
WHERE chain = $1 AND context -> 'action' ->> 0 = 'secret.read'
"""
NAMES = "SELECT name, id::text AS id FROM secrets.secrets WHERE domain_id = $1"


@dataclass(frozen=True)
class Reader:
    """A node, the name of its own secret, and the value that it must get."""

    node: Node
    name: str
    value: bytes


@dataclass(frozen=True)
class Release:
    """Bytes that left: who got them, and the request's id."""

    reader: Reader
    correlation_id: str


@dataclass
class Soak:
    """Everything that happens, and what was seen of it."""

    deployment: Deployment
    operator: Operator
    faults: Faults
    domain_id: str
    readers: list[Reader]
    codes: Counter[str] = field(default_factory=Counter)
    releases: list[Release] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    uncoded: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    async def read(self, reader: Reader) -> None:
        """Ask for the own secret and for others, as one node."""
        while not self.faults.stop.is_set():
            other = random.choice([one for one in self.readers if one is not reader])
            if random.random() > ASTRAY:
                await self.ask(reader, reader.node.node_id, reader.name, "200")
            else:
                node_id, name, said = random.choice([
                    (reader.node.node_id, other.name, "403 permission_denied"),
                    (other.node.node_id, other.name, "403 node_id_mismatch"),
                    (reader.node.node_id, "no-such-secret", "404 secret_not_found"),
                ])  # fmt: skip
                await self.ask(reader, node_id, name, said)
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))

    async def ask(self, reader: Reader, node_id: str, name: str, said: str) -> bool:
        """Send one request and keep account of its answer; says whether it was the one without a fault."""
        began = asyncio.get_running_loop().time()
        try:
            answer = await reader.node.read(self.operator.edge, name, node_id)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.codes[type(error).__name__] += 1
            self.uncoded.append(f"{type(error).__name__} instead of an answer")
            return False
        self.waits.append(asyncio.get_running_loop().time() - began)
        self.codes[str(answer)] += 1
        if str(answer) not in {said, *REFUSED}:
            self.uncoded.append(f"{answer} instead of {said}")
        if answer.status == 200 or "json" not in answer.headers.get("Content-Type", ""):
            self._released(reader, answer, said)
        return str(answer) == said

    def _released(self, reader: Reader, answer: Answer, said: str) -> None:
        self.releases.append(Release(reader, answer.headers.get("X-Correlation-Id", "")))
        try:
            opened = reader.node.open(answer.body)
        except (InvalidTag, ValueError):
            opened = b""
        if said != "200" or opened != reader.value:
            self.wrong.append(f"{reader.name}: {len(answer.body)} bytes as {answer}")

    async def run(self, seconds: float) -> None:
        """Let it all happen for some seconds, then read until every node has its own once more."""
        busy = [self.read(reader) for reader in self.readers]
        await self.faults.during(seconds, busy, lambda: f"{len(self.releases)} released")
        async with asyncio.timeout(DRAIN_S):
            for reader in self.readers:
                while not await self.ask(reader, reader.node.node_id, reader.name, "200"):  # noqa: ASYNC110 — another process answers
                    await asyncio.sleep(0.3)

    async def judge(self, report: Report) -> None:
        """Hold what was seen against the chain."""
        rows, names = await self._chain()
        wanted = [(one.correlation_id, ["granted", names[one.reader.name]]) for one in self.releases]
        unrecorded = [identifier for identifier, row in wanted if rows.get(identifier) != row]
        verified = await self.operator.edge.call("POST", f"/v1/domains/{self.domain_id}/audit/verify", {})
        found: dict[str, list[str]] = {
            "released bytes without an audit row": unrecorded,
            "wrong-node bytes": self.wrong,
            "answers without a contract code": self.uncoded,
        }
        report.checks += [none(name, what) for name, what in found.items()]
        report.checks += [
            Check("the chain verifies", "yes", verified.body.decode()[:100], verified.json.get("ok") is True),
            self.faults.check({"released": len(self.releases)}),
        ]
        report.shares["answers"] = dict(sorted(self.codes.items()))
        report.shares["ms to an answer"] = {
            f"p{share:.0%}": percentile(self.waits, share) * 1000 for share in (0.5, 0.99, 1.0)
        }
        granted = sum(1 for row in rows.values() if row[0] == "granted")
        report.notes.append(f"rows that grant a read whose bytes did not leave: {granted - len(self.releases)}")
        line = {name: len(what) for name, what in found.items()} | {"released": len(self.releases), "codes": self.codes}
        print(json.dumps(line))

    async def _chain(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Return reason and secret of each row by the request's id, and the ids of the secrets by name."""
        dba = await self.deployment.world.superuser()
        try:
            rows: dict[str, list[str]] = {}
            for row in await dba.fetch(ROWS, self.domain_id):
                # Two rows of one request are four words, which no release is content with.
                rows.setdefault(row["correlation_id"], []).extend([row["reason"], row["object_id"]])
            names = {row["name"]: row["id"] for row in await dba.fetch(NAMES, self.domain_id)}
        finally:
            await dba.close()
        return rows, names


async def prepare(deployment: Deployment, operator: Operator) -> Soak:
    """Register nodes over HTTPS, and give each a secret that it alone reads."""
    for name, value in LIMITS.items():
        deployment.configure("secrets", rf"(?m)^{name} = \d+$", f"{name} = {value}")
    await deployment.restart("secrets")
    domain_id = await operator.domain(1)
    project_id, readers = await operator.project(domain_id), []
    for number in range(NODES):
        node, _ = await operator.node(project_id, f"soak-{number}")
        reader = Reader(node, f"own-{number}", random_secret())
        path = f"/v1/projects/{project_id}/secrets/{reader.name}"
        headers = {"If-Match": "0", "Content-Type": "application/octet-stream"}
        put = await operator.edge.call("PUT", path, reader.value, headers=headers)
        granted = await operator.edge.call("PUT", f"{path}/readers/{node.node_id}")
        assert (put.status, granted.status) == (201, 204), (put.body, granted.body)
        readers.append(reader)
    return Soak(deployment, operator, Faults(deployment, VICTIMS, QUIET_S, DOWN_S), domain_id, readers)


async def main() -> int:
    """Start a stack, soak it, print; returns the exit status."""
    seconds, report = begin("soak-secrets", __doc__, 600.0)
    async with deployed() as deployment, deployment.operator() as operator:
        soak = await prepare(deployment, operator)
        console.print(f"{len(soak.readers)} nodes read")
        await soak.run(seconds)
        # A quarter of an hour is as long as a token lasts.
        async with deployment.operator() as again:
            soak.operator = again
            await soak.judge(report)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
