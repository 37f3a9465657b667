"""`make bench-access`: sessions issued with step-up satisfied, against the relation check through identity alone.

Both are called as the gateway calls them, over mTLS with the caller's assertion, so many at once. The share of each hop
comes from the spans of one more round, which writes them to a file.
"""

import asyncio
import itertools
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from bench.deployment import Deployment, Operator, deployed
from bench.measure import ROUNDS, Bar, Figures, Report, alternate, column, console, percentile
from libs.rpc.channel import OPTIONS
from libs.rpc.context import PRINCIPAL_KEY
from plexsphere.access.v1 import access_pb2 as pb
from plexsphere.access.v1 import access_pb2_grpc as stubs
from plexsphere.identity.v1 import relations_pb2, relations_pb2_grpc, sign_in_pb2, sign_in_pb2_grpc

IN_FLIGHT = 16
SECONDS = 3.0
FLOOR, AIM = 0.4, 0.7
ACR = "urn:plexsphere:acr:mfa"
POLICY = {
    "required_acr": [ACR], "max_auth_age_seconds": 3600, "max_active_per_identity": 10_000,
    "max_active_per_node": 10_000, "issue_rate_per_minute": 10_000,
}  # fmt: skip
HOPS = {
    "relation": "RelationsService/Check", "terms": "ListSessionTerms", "audit": "AuditAppendService/Append",
    "sign": "bao.transit-access", "reserve": "pg.reserve", "keys": "pg.session_keys", "open": "pg.open_session",
}  # fmt: skip
Call = Callable[[], Awaitable[object]]


class Desk:
    """A resource with its node, and the operator's assertion for access, which lasts a minute."""

    def __init__(self, deployment: Deployment, operator: Operator) -> None:
        self.deployment, self.operator = deployment, operator
        self.project = self.resource = self.subject = ""

    async def open(self) -> None:
        """Make the resource and let its Domain ask for what the operator has."""
        domain = await self.operator.domain(201)
        self.project = await self.operator.project(domain)
        handle = f"bench-{uuid.uuid4().hex[:8]}"
        await self.operator.node(self.project, handle)
        listed = await self.operator.edge.call("GET", f"/v1/projects/{self.project}/resources")
        self.resource = listed.json["items"][0]["id"]
        put = await self.operator.edge.call("PUT", f"/v1/domains/{domain}/access-policy", POLICY)
        assert put.status == 200, put.body
        self.subject = (await self.operator.edge.call("GET", "/v1/auth/whoami")).json["subject"]

    def channel(self, to: str) -> grpc.aio.Channel:
        """Return a channel as the gateway has it."""
        own = self.deployment.identity("gateway")
        files = (own.ca_file, own.key_file, own.certificate_file)
        credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
        options = [*OPTIONS, ("grpc.ssl_target_name_override", to)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.deployment.state.port(to)}", credentials, options=options)

    async def forget(self) -> None:
        """Begin a round without the sessions of the one before: their number is not what is measured."""
        dba = await self.deployment.world.superuser()
        try:
            await dba.execute("TRUNCATE access.sessions, access.reservations, access.requests CASCADE")
        finally:
            await dba.close()

    async def issuing(self, access: grpc.aio.Channel, identity: grpc.aio.Channel) -> Call:
        """Return one request for a session, with a fresh assertion."""
        bearer = self.operator.edge.caller["Authorization"].removeprefix("Bearer ")
        kind = sign_in_pb2.CREDENTIAL_KIND_OPERATOR_BEARER
        asked = sign_in_pb2.AuthenticateRequest(kind=kind, credential=bearer, audience="access")
        answer = await sign_in_pb2_grpc.AuthenticationServiceStub(identity).Authenticate(asked)
        stub: stubs.AccessServiceAsyncStub = stubs.AccessServiceStub(access)
        wish = pb.IssueSessionRequest(
            project_id=self.project, resource_id=self.resource, kind="tcp",
            target=pb.Target(tcp=pb.TcpTarget(host="db.internal", port=5432)),
        )  # fmt: skip
        metadata = ((PRINCIPAL_KEY, answer.assertion),)

        async def issue() -> object:
            return await stub.IssueSession(wish, metadata=metadata, timeout=10)

        return issue

    def checking(self, identity: grpc.aio.Channel) -> Call:
        """Return the relation check of that request alone."""
        stub: relations_pb2_grpc.RelationsServiceAsyncStub = relations_pb2_grpc.RelationsServiceStub(identity)
        asked = relations_pb2.CheckRequest(
            subject=f"user:{self.subject}", permission="act", resource=f"resource:{self.resource}"
        )

        async def check() -> object:
            return await stub.Check(asked, timeout=10)

        return check


async def round_of(deployment: Deployment, call: Call) -> Figures:
    """Call so many at once for so long."""
    latencies, until = list[float](), time.perf_counter() + SECONDS

    async def worker() -> None:
        while (begun := time.perf_counter()) < until:
            await call()
            latencies.append(time.perf_counter() - begun)

    before, started = await deployment.cpu_s(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    elapsed, after = time.perf_counter() - started, await deployment.cpu_s()
    used = {f"cpu_ms.{name}": (after[name] - before[name]) * 1000 / len(latencies) for name in before}
    return {"rate": len(latencies) / elapsed, "p50_ms": percentile(latencies, 0.5) * 1000, **used}


def shares(path: Path) -> Figures:
    """Return the median milliseconds of each hop of an issue, and of the whole."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in path.read_text().splitlines():
        span = json.loads(line)
        for hop, name in {**HOPS, "whole": "AccessService/IssueSession"}.items():
            if name in span["name"]:
                found[hop].append((span["end"] - span["start"]) / 1e6)
    return {hop: percentile(values, 0.5) for hop, values in found.items()}


async def main() -> int:
    """Measure and print; returns the exit status."""
    settings = (
        f"{IN_FLIGHT} in flight, {SECONDS:.0f} s, {ROUNDS} rounds A B A B; fsync and synchronous_commit on, TLS 1.3 on "
        "every hop, no span exporter but in the round of the shares, log level info"
    )
    report, turn = Report("access", {"settings": settings}), itertools.count()
    async with deployed() as deployment, deployment.operator() as operator:
        desk = Desk(deployment, operator)
        await desk.open()
        await deployment.without_traces("identity", "mesh", "audit", "gateway", "access")
        async with desk.channel("access") as access, desk.channel("identity") as identity:

            async def ours() -> Figures:
                console.print(f"round {next(turn) + 1} …")
                await desk.forget()
                return await round_of(deployment, await desk.issuing(access, identity))

            check = desk.checking(identity)
            a, b = await alternate(ours, lambda: round_of(deployment, check))
        name = f"sessions issued, {IN_FLIGHT} in flight, by the relation check alone"
        report.bars.append(Bar(name, "1/s", column(a, "rate"), column(b, "rate"), FLOOR, AIM))
        p50 = {"session": percentile(column(a, "p50_ms"), 0.5), "relation check": percentile(column(b, "p50_ms"), 0.5)}
        report.shares["p50, ms"] = p50
        for side, rounds in (("a session", a), ("a relation check", b)):
            used = {of[7:]: percentile(column(rounds, of), 0.5) for of in rounds[0] if of.startswith("cpu_ms.")}
            report.shares[f"processor of {side}, ms"] = {of: value for of, value in used.items() if value >= 0.05}
        spans = await deployment.with_traces("access")
        async with desk.channel("access") as access, desk.channel("identity") as identity:
            await desk.forget()
            await round_of(deployment, await desk.issuing(access, identity))
        report.shares["hops of an issue, ms"] = shares(spans)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
