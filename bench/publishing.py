"""Signed publish through mesh, against the same log insert and stream write without anything of ours."""

import asyncio
import base64
import datetime
import hashlib
import itertools
import json
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
import grpc
from nats.aio.client import Client
from nats.js import JetStreamContext

from bench.deployment import Deployment
from bench.measure import Bar, Figures, Report, alternate, column, percentile
from bench.streams import publisher
from libs.errors import PlexError
from libs.ids import uuid7
from plexsphere.mesh.v1 import mesh_pb2 as pb

IN_FLIGHT = 64
SECONDS = 4.0
WARM_UP_S = 1.0
DOMAINS = (1, 100)
FLOOR, AIM = 0.35, 0.6
# As services/mesh/bus.py sets the stream up; the server has `sync_interval: always` for both.
RAW_STREAM = {
    "name": "BENCH",
    "subjects": ["bench.>"],
    "retention": "limits",
    "storage": "file",
    "num_replicas": 1,
    "max_age": 15 * 60 * 1_000_000_000,
    "max_bytes": 2 * 1024**3,
    "discard": "old",
    "max_msg_size": 65_536,
    "duplicate_window": 120 * 1_000_000_000,
    "allow_direct": True,
}
INSERT = """
INSERT INTO mesh.event_log (id, domain_id, scope, type, envelope, digest, issued_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
# As many connections as mesh's own pool may open.
RAW_CONNECTIONS = 20
TYPE = "node_state_updated"
Send = Callable[[UUID], Awaitable[None]]


def payload() -> str:
    """Return the payload of the most frequent event, JSON text."""
    return json.dumps({"node_id": str(uuid7()), "revision": str(uuid7()), "reason": "secret_granted"})


def imitation(identifier: UUID, domain_id: UUID, now: datetime.datetime) -> bytes:
    """Return bytes of an envelope's form and length; nobody signed them."""
    members = {
        "id": str(identifier),
        "type": TYPE,
        "scope": f"domain:{domain_id}",
        "key_id": "evk_" + "0" * 32,
        "issued_at": now.isoformat().replace("+00:00", "Z"),
        "payload": json.loads(payload()),
        "signature": base64.b64encode(secrets.token_bytes(64)).decode(),
    }
    return json.dumps(members, separators=(",", ":")).encode()


@dataclass
class Load:
    """Keeps a number of sends in flight for some seconds, over Domains in turn."""

    deployment: Deployment
    domains: list[UUID]
    seconds: float = SECONDS
    refused: int = 0
    shares: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def run(self, send: Send) -> Figures:
        """Return publishes a second, latencies in milliseconds, and processor milliseconds a publish by process."""
        await self._drive(send, WARM_UP_S)
        before, started = await self.deployment.cpu_s(), time.perf_counter()
        latencies = await self._drive(send, self.seconds)
        elapsed, after = time.perf_counter() - started, await self.deployment.cpu_s()
        used = {f"cpu_ms.{name}": (after[name] - before[name]) * 1000 / len(latencies) for name in before}
        return {
            "rate": len(latencies) / elapsed,
            "p50_ms": percentile(latencies, 0.5) * 1000,
            "p99_ms": percentile(latencies, 0.99) * 1000,
            **used,
        }

    async def _drive(self, send: Send, seconds: float) -> list[float]:
        until, latencies, turn = time.perf_counter() + seconds, list[float](), itertools.cycle(self.domains)

        async def worker() -> None:
            while (begun := time.perf_counter()) < until:
                try:
                    await send(next(turn))
                except (PlexError, grpc.aio.AioRpcError):
                    self.refused += 1
                else:
                    latencies.append(time.perf_counter() - begun)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(worker())
        return latencies


@asynccontextmanager
async def signed(deployment: Deployment) -> AsyncIterator[Send]:
    """Publish through mesh as identity does, over gRPC with its certificate."""
    async with publisher(deployment) as stub:

        async def send(domain_id: UUID) -> None:
            request = pb.PublishRequest(
                domain_id=str(domain_id),
                id=str(uuid7()),
                type=TYPE,
                scope=f"domain:{domain_id}",
                payload_json=payload(),
            )
            await stub.Publish(request, timeout=10)

        yield send


@asynccontextmanager
async def raw(deployment: Deployment) -> AsyncIterator[Send]:
    """Insert one row into mesh's log as mesh, then publish the same bytes to a stream of the same settings."""
    broker = await deployment.broker()
    try:
        await _make_stream(broker)
        async with deployment.pool_as("mesh", RAW_CONNECTIONS) as pool:
            yield _raw_send(pool, broker.jetstream())
    finally:
        await broker.close()


async def _make_stream(broker: Client) -> None:
    answer = await broker.request("$JS.API.STREAM.CREATE.BENCH", json.dumps(RAW_STREAM).encode(), timeout=5)
    made = json.loads(answer.data)
    assert "error" not in made, made


def _raw_send(pool: asyncpg.Pool, stream: JetStreamContext) -> Send:
    async def send(domain_id: UUID) -> None:
        now, identifier = datetime.datetime.now(datetime.UTC), uuid7()
        envelope = imitation(identifier, domain_id, now)
        digest = hashlib.sha256(envelope).digest()
        await pool.execute(INSERT, identifier, domain_id, f"domain:{domain_id}", TYPE, envelope, digest, now)
        subject = f"bench.{domain_id}.domain.{domain_id}.{TYPE}"
        await stream.publish(subject, envelope, timeout=10, headers={"Nats-Msg-Id": str(identifier)})

    return send


async def measure(deployment: Deployment, domains: list[UUID], report: Report) -> None:
    """Add the bars of signed publish with one Domain and with many."""
    # Nobody reads what the raw path writes, so nobody reads ours either; how it is with a reader is noted at the end.
    await deployment.kill("gateway")
    async with signed(deployment) as ours, raw(deployment) as theirs:
        for count in DOMAINS:
            load = Load(deployment, domains[:count])
            a, b = await alternate(lambda: load.run(ours), lambda: load.run(theirs))  # noqa: B023 — awaited in this turn
            name = f"signed publish, {count} Domain{'s' if count > 1 else ''}"
            report.bars.append(Bar(name, "publishes/s", column(a, "rate"), column(b, "rate"), FLOOR, AIM))
            for side, rounds in (("mesh", a), ("raw", b)):
                report.shares[f"{name}, {side}: ms"] = {
                    figure.removeprefix("cpu_ms."): percentile(column(rounds, figure), 0.5)
                    for figure in rounds[0]
                    if figure != "rate" and percentile(column(rounds, figure), 0.5) >= 0.01
                }
            if load.refused:
                report.notes.append(f"{name}: {load.refused} publishes were refused")
        await _hops(deployment, domains[:1], ours, report)
        await deployment.start("gateway")
        read = await Load(deployment, domains[:1]).run(ours)
        report.notes.append(f"signed publish, 1 Domain, while a gateway reads along: {read['rate']:,.0f} publishes/s")


async def _hops(deployment: Deployment, domains: list[UUID], send: Send, report: Report) -> None:
    """Run once more with spans and add how long each hop of a batch takes; not part of any bar."""
    spans_file = await deployment.with_traces("mesh")
    figures = await Load(deployment, domains, 2.0).run(send)
    await deployment.without_traces("mesh")
    took = spans(spans_file)
    report.shares[f"hops of mesh with spans on ({figures['rate']:,.0f}/s): mean ms a call"] = {
        name: sum(times) / len(times) for name, times in took.items() if len(times) > 50
    }
    report.shares["hops of mesh with spans on: calls"] = {
        name: float(len(times)) for name, times in took.items() if len(times) > 50
    }


def spans(path: Path) -> dict[str, list[float]]:
    """Return how long spans took in milliseconds, by name."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found[row["name"]].append((row["end"] - row["start"]) / 1e6)
    return found
