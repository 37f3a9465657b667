"""`make bench-secrets`: granted reads through the edge, against the slowest of the backend calls that each is made of.

Those are the relation check through identity, the read at OpenBao and the append to the chain, called from here with
the secrets service's own certificate, so many at once, in the same run.
"""

import asyncio
import itertools
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import asyncpg
import grpc

from bench.deployment import Deployment, Operator, deployed
from bench.measure import ROUNDS, Bar, Check, Figures, Report, column, console, percentile
from libs.access_policy import HIGHEST_LIMITS
from libs.bao import open_bao
from libs.clock import SystemClock
from libs.ids import uuid7
from libs.rpc.channel import OPTIONS
from libs.settings import OpenBao
from plexsphere.audit.v1 import audit_pb2, audit_pb2_grpc
from plexsphere.identity.v1 import relations_pb2, relations_pb2_grpc
from tests.e2e.outside import Node

AT_ONCE, ALONE = 32, 1
# As many as their limits allow to read all the time.
NODES = 32
SECONDS = 3.0
FLOOR, AIM, MOST = 0.5, 0.8, 2.0
# Revocations, and how many of them at once.
REVOKED, LANES = 1000, 20
OK = 200
NAME, VALUE = "db-password", b"correct horse battery staple"
SERVICES = ("identity", "audit", "gateway", "secrets")
Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Shelf:
    """A Domain's secret and the nodes that may read it."""

    deployment: Deployment
    operator: Operator
    domain: str
    path: str
    nodes: Sequence[Node]
    secret_id: str

    @classmethod
    async def fill(cls, deployment: Deployment, operator: Operator) -> "Shelf":
        """Make a secret, nodes and their grants, with limits as high as the platform lets a Domain have them."""
        domain = await operator.domain(202)
        project = await operator.project(domain)
        nodes = await deployment.plant_nodes(domain, project, NODES)
        path = f"/v1/projects/{project}/secrets/{NAME}"
        put = await operator.edge.call("PUT", path, VALUE, headers={"If-Match": "0"})
        assert put.status == 201, put.body
        policy = {"required_acr": ["urn:plexsphere:acr:mfa"], **HIGHEST_LIMITS}
        put = await operator.edge.call("PUT", f"/v1/domains/{domain}/access-policy", policy)
        assert put.status == 200, put.body
        for node in nodes:
            granted = await operator.edge.call("PUT", f"{path}/readers/{node.node_id}")
            assert granted.status == 204, granted.body
        dba = await deployment.world.superuser()
        try:
            secret_id = str(await dba.fetchval("SELECT id FROM secrets.secrets WHERE domain_id = $1", domain))
        finally:
            await dba.close()
        return cls(deployment, operator, domain, path, nodes, secret_id)

    async def rows(self, dba: asyncpg.Connection) -> int:
        """Return how many granted reads the Domain's chain has."""
        sql = "SELECT count(*) FROM audit.entries WHERE chain = $1 AND object_id = $2 AND reason = 'granted'"
        return int(await dba.fetchval(sql + " AND relation = 'read'", self.domain, self.secret_id))

    async def revoked(self, http: aiohttp.ClientSession) -> tuple[int, int]:
        """Revoke and read at once, again and again with reads of others beside it; returns reads before and after."""
        before, after = Counter[int](), Counter[int]()

        async def lane(node: Node) -> None:
            for _ in range(REVOKED // LANES):
                revoked = await self.operator.edge.call("DELETE", f"{self.path}/readers/{node.node_id}")
                assert revoked.status == 204, revoked.body
                after[await self.read(http, node)] += 1
                granted = await self.operator.edge.call("PUT", f"{self.path}/readers/{node.node_id}")
                assert granted.status == 204, granted.body
                before[await self.read(http, node)] += 1

        await asyncio.gather(*(lane(node) for node in self.nodes[:LANES]))
        assert set(before) | set(after) <= {200, 403}, (before, after)
        return before[200], after[200]

    async def read(self, http: aiohttp.ClientSession, node: Node) -> int:
        """Read the secret as a node, and return the status."""
        headers = {"Authorization": f"Bearer {node.bearer}"}
        url = f"{self.deployment.world.edge_url}/v1/nodes/{node.node_id}/secrets/{NAME}"
        async with http.get(url, headers=headers) as answer:
            await answer.read()
            return answer.status

    def reading(self, http: aiohttp.ClientSession, released: "itertools.count[int]") -> Call:
        """Return a granted read through the edge, of one node after the other."""
        turn = itertools.cycle(self.nodes)

        async def read() -> None:
            status = await self.read(http, next(turn))
            assert status == OK, status
            next(released)

        return read

    def checking(self, identity: grpc.aio.Channel) -> Call:
        """Return the relation check of such a read alone."""
        stub: relations_pb2_grpc.RelationsServiceAsyncStub = relations_pb2_grpc.RelationsServiceStub(identity)
        turn = itertools.cycle(self.nodes)

        async def check() -> None:
            asked = relations_pb2.CheckRequest(
                subject=f"node:{next(turn).node_id}", permission="read", resource=f"secret:{self.secret_id}"
            )
            answer = await stub.Check(asked, timeout=10)
            assert answer.verdict == relations_pb2.VERDICT_GRANTED

        return check

    def appending(self, audit: grpc.aio.Channel) -> Call:
        """Return the append of such a read's row alone, to a chain as its own."""
        stub: audit_pb2_grpc.AuditAppendServiceAsyncStub = audit_pb2_grpc.AuditAppendServiceStub(audit)
        chain, turn, clock = str(uuid7()), itertools.cycle(self.nodes), SystemClock()

        async def append() -> None:
            row = audit_pb2.AppendRequest(
                domain_id=chain, idempotency_key=str(uuid7()), action="secret.read", subject_id=next(turn).node_id,
                subject_kind="node", relation="read", object_type="secret", object_id=self.secret_id,
                reason=audit_pb2.REASON_GRANTED, correlation_id=str(uuid7()), client_ip="127.0.0.1",
                user_agent="plexd/1.0",
                caveat_context={
                    name: audit_pb2.CaveatNames(names=[value])
                    for name, value in (("version", "1"), ("kid", f"nsk_{uuid7()}"), ("limiter", "within_limits"))
                },
            )  # fmt: skip
            row.occurred_at.FromDatetime(clock.now())
            await stub.Append(row, timeout=10)

        return append


async def round_of(deployment: Deployment, call: Call, at_once: int) -> Figures:
    """Call so many at once for so long."""
    latencies, until = list[float](), time.perf_counter() + SECONDS

    async def worker() -> None:
        while (begun := time.perf_counter()) < until:
            await call()
            latencies.append(time.perf_counter() - begun)

    before, started = await deployment.cpu_s(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    elapsed, after = time.perf_counter() - started, await deployment.cpu_s()
    used = {f"cpu_ms.{name}": (after[name] - before[name]) * 1000 / len(latencies) for name in before}
    return {"rate": len(latencies) / elapsed, "p50_ms": percentile(latencies, 0.5) * 1000, **used}


@asynccontextmanager
async def calls(
    shelf: Shelf, http: aiohttp.ClientSession, released: "itertools.count[int]"
) -> AsyncIterator[dict[str, Call]]:
    """Open everything that is called, and yield the calls by name; the read comes first."""
    deployment, own = shelf.deployment, shelf.deployment.identity("secrets")
    files = (own.ca_file, own.key_file, own.certificate_file)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))

    def channel(to: str) -> grpc.aio.Channel:
        options = [*OPTIONS, ("grpc.ssl_target_name_override", to)]
        return grpc.aio.secure_channel(f"127.0.0.1:{deployment.state.port(to)}", credentials, options=options)

    settings = OpenBao(address=f"https://127.0.0.1:{deployment.state.port('openbao')}", role="secrets")
    async with (
        channel("identity") as identity,
        channel("audit") as audit,
        open_bao(settings, own) as bao,
    ):
        yield {
            "read": shelf.reading(http, released),
            "relation check": shelf.checking(identity),
            "OpenBao read": lambda: bao.read_kv(f"secrets/{shelf.domain}/{shelf.secret_id}", 1),
            "audit append": shelf.appending(audit),
        }


async def measure(shelf: Shelf, http: aiohttp.ClientSession, report: Report) -> None:
    """Measure the read and its parts in turn, at once and alone, and fill the report."""
    released = itertools.count()
    found: dict[int, dict[str, list[Figures]]] = {}
    async with calls(shelf, http, released) as named:
        for at_once in (AT_ONCE, ALONE):
            found[at_once] = {name: [] for name in named}
            for turn in range(ROUNDS):
                console.print(f"{at_once} in flight, round {turn + 1} …")
                for name, call in named.items():
                    found[at_once][name].append(await round_of(shelf.deployment, call, at_once))
    busy, alone = found[AT_ONCE], found[ALONE]
    parts = [name for name in busy if name != "read"]
    slowest = min(parts, key=lambda name: percentile(column(busy[name], "rate"), 0.5))
    name = f"granted reads, {AT_ONCE} in flight, by the {slowest} alone"
    report.bars.append(Bar(name, "1/s", column(busy["read"], "rate"), column(busy[slowest], "rate"), FLOOR, AIM))
    together = [sum(times) for times in zip(*(column(alone[part], "p50_ms") for part in parts), strict=True)]
    name = f"a granted read, {ALONE} in flight, by the sum of its calls"
    report.bars.append(Bar(name, "ms p50", column(alone["read"], "p50_ms"), together, MOST, at_most=True))
    for at_once, rounds in found.items():
        report.shares[f"1/s, {at_once} in flight"] = {of: percentile(column(rounds[of], "rate"), 0.5) for of in rounds}
        p50 = {of: percentile(column(rounds[of], "p50_ms"), 0.5) for of in rounds}
        report.shares[f"ms p50, {at_once} in flight (audit append: what the row costs)"] = p50
    used = {of[7:]: percentile(column(busy["read"], of), 0.5) for of in busy["read"][0] if of.startswith("cpu_ms.")}
    report.shares["processor of a read, ms"] = {of: value for of, value in used.items() if value >= 0.05}
    dba = await shelf.deployment.world.superuser()
    try:
        rows, reads = await shelf.rows(dba), next(released)
    finally:
        await dba.close()
    report.checks.append(Check("granted rows in the chain", f"{reads}, one a read", str(rows), rows == reads))


async def main() -> int:
    """Measure and print; returns the exit status."""
    settings = (
        f"{NODES} nodes, {SECONDS:.0f} s a round, {ROUNDS} rounds in turn; fsync and synchronous_commit on, TLS 1.3 on "
        "every hop, no span exporter, log level info"
    )
    report = Report("secrets", {"settings": settings})
    async with deployed() as deployment, deployment.operator() as operator:
        shelf = await Shelf.fill(deployment, operator)
        await deployment.without_traces(*SERVICES)
        trust = ssl.create_default_context(cafile=deployment.world.ca_file)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=AT_ONCE)) as http:
            await measure(shelf, http, report)
            before, after = await shelf.revoked(http)
        name = f"granted reads after each of {REVOKED} revocations, and before the next one"
        report.checks.append(Check(name, f"0 and {REVOKED}", f"{after} and {before}", (after, before) == (0, REVOKED)))
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
