"""Durable appends through gRPC, against a bare mTLS echo of the same messages that writes nothing.

Both are called from this process with one service's certificate, so many rows at once, each row's message made anew.
Ours is what services do, where rows of the same moment share a call; of the echo each is a call. What a call a row is
like is told beside it; no service does that.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from bench.chains import decision
from bench.deployment import Deployment
from bench.echo import METHOD, SERVICE
from bench.measure import ROUNDS, Bar, Figures, Report, column, console, percentile
from bench.replica import free_port
from devstack.layout import ROOT
from devstack.process import child_setup
from libs.audit import AuditClient
from libs.decision import Record
from libs.ids import uuid7
from libs.rpc.channel import OPTIONS, connect
from libs.rpc.context import Call, bind
from libs.settings import Peer
from plexsphere.audit.v1 import audit_pb2, audit_pb2_grpc

IN_FLIGHT, SECONDS = 64, 3.0
FLOOR, AIM = 0.5, 0.75
AS = "secrets"
Send = Callable[[], Awaitable[object]]


async def recorded(client: AuditClient, chain: str) -> None:
    """Record a decision as a service does while it serves a request."""
    made = decision(chain)
    record = Record(
        chain, made.action, made.relation, made.object_type, made.object_id, made.reason, made.subject_id,
        made.subject_kind, {name: names for name, names in made.context.items() if name != "action"},
        made.idempotency_key,
    )  # fmt: skip
    call = Call(correlation_id=made.correlation_id, client_ip=made.client_ip, user_agent=made.user_agent)
    with bind(call):
        await client.record(record)


def message(chain: str) -> audit_pb2.AppendRequest:
    """Return the same as a message."""
    made = decision(chain)
    packed = audit_pb2.AppendRequest(
        domain_id=chain, idempotency_key=str(made.idempotency_key), action=made.action, subject_id=made.subject_id,
        subject_kind=made.subject_kind, relation=made.relation, object_type=made.object_type, object_id=made.object_id,
        reason=audit_pb2.REASON_GRANTED, correlation_id=made.correlation_id, client_ip=made.client_ip,
        user_agent=made.user_agent,
        caveat_context={
            name: audit_pb2.CaveatNames(names=names) for name, names in made.context.items() if name != "action"
        },
    )  # fmt: skip
    packed.occurred_at.FromDatetime(made.occurred_at)
    return packed


async def round_of(deployment: Deployment, call: Send) -> Figures:
    """Call so many at once for so long."""
    latencies, until = list[float](), time.perf_counter() + SECONDS

    async def worker() -> None:
        while (begun := time.perf_counter()) < until:
            await call()
            latencies.append(time.perf_counter() - begun)

    before, started = await deployment.cpu_s(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    elapsed, after = time.perf_counter() - started, await deployment.cpu_s()
    used = {
        f"{name} ms": (after[name] - before[name]) * 1000 / len(latencies) for name in ("audit", "postgres", "client")
    }
    return {"rate": len(latencies) / elapsed, "p50 ms": percentile(latencies, 0.5) * 1000, **used}


@contextlib.asynccontextmanager
async def echoing(deployment: Deployment) -> AsyncIterator[int]:
    """Run the echo for the block; yields its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.echo", "--port", str(port), "--pki", str(deployment.state / "pki"),
        cwd=ROOT, preexec_fn=child_setup(os.getpid()),
    )  # fmt: skip
    try:
        yield port
    finally:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def calls(deployment: Deployment) -> AsyncIterator[dict[str, Send]]:
    """Open everything that is called, and yield the calls by name."""
    own, chain, port = deployment.identity(AS), str(uuid7()), deployment.state.port("audit")
    files = (own.ca_file, own.key_file, own.certificate_file)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    options = [*OPTIONS, ("grpc.ssl_target_name_override", "audit")]
    async with (
        echoing(deployment) as echo_port,
        grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as audit,
        grpc.aio.secure_channel(f"127.0.0.1:{echo_port}", credentials, options=options) as bare,
        connect(Peer(address=f"127.0.0.1:{port}", name="audit"), own) as peer,
    ):
        stub: audit_pb2_grpc.AuditAppendServiceAsyncStub = audit_pb2_grpc.AuditAppendServiceStub(audit)
        client, one = AuditClient(peer), audit_pb2.AppendRequest
        echo = bare.unary_unary(f"/{SERVICE}/{METHOD}", one.SerializeToString, one.FromString)
        await echo(message(chain), wait_for_ready=True)
        yield {
            "Append": lambda: stub.Append(message(chain)),
            "AuditClient": lambda: recorded(client, chain),
            "echo": lambda: echo(message(chain)),
        }


async def measure(deployment: Deployment, report: Report) -> None:
    """Measure all in turn, and add the bars."""
    async with calls(deployment) as named:
        found: dict[str, list[Figures]] = {name: [] for name in named}
        for turn in range(ROUNDS):
            console.print(f"appends through gRPC, {IN_FLIGHT} in flight, round {turn + 1} …")
            for name, call in named.items():
                found[name].append(await round_of(deployment, call))
    theirs = column(found["echo"], "rate")
    ours = column(found["AuditClient"], "rate")
    report.bars.append(Bar("durable appends through gRPC, by a bare echo", "rows/s", ours, theirs, FLOOR, AIM))
    for name, rounds in found.items():
        report.shares[f"{name}, {IN_FLIGHT} in flight"] = {of: percentile(column(rounds, of), 0.5) for of in rounds[0]}
