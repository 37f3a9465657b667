"""What is there when a call is measured: nodes, Domains, keys, chains, planted and weighed."""

import asyncio
import functools
import json
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from uuid import UUID

import asyncpg
import grpc
from nats.aio.client import Client

from bench.chains import decision, plant
from bench.deployment import AGENTS, Deployment, Operator, memory_bytes
from bench.measure import Report, console
from bench.secrets import Call, Shelf
from libs.archive import Segment, pack
from libs.chain import GENESIS
from libs.custody import Secret
from libs.ids import uuid7
from libs.rpc.channel import OPTIONS
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from services.audit.entry import draft, link
from services.audit.model import Head
from services.identity.authority import Gate
from services.identity.drift_store import PgDriftStore
from services.identity.reconcile import Reconcile
from services.identity.relation_store import PgTupleStore
from services.identity.relations import Relations
from services.identity.spicedb import SENTINEL, SpiceDb
from services.mesh.bus import STREAM
from tests.e2e.outside import Node
from tests.e2e.planting import insert_nodes

if TYPE_CHECKING:
    from bench.scaling import Costs

DOMAINS = (1, 100, 1000)
# A Domain of the size that the arithmetic is made for, and how many of them come before each measurement.
LARGE = 10_000
STEPS = ((1_000, 0), (10_000, 1), (100_000, 9))
ROWS, SEGMENT = 100_000, 1000
AT_ONCE, SIGNING_S = 16, 30.0
WITHIN_S = 180.0
READERS = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
SELECT uuidv7(), 'secret', $2, 'reader', 'node', id, 'live' FROM unnest($1::text[]) AS one (id)
"""
SIZE = "SELECT sum(pg_total_relation_size(one::regclass))::float8 FROM unnest($1::text[]) AS one"
FLEET = ["identity.resources", "identity.nodes", "identity.node_secret_keys", "identity.relation_tuples"]
RECORD = ["audit.entries", "audit.idempotency", "audit.personal", "audit.tree"]
LOG = """
SELECT (SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('mesh.event_log'))::float8
    + pg_total_relation_size('mesh.event_positions'), (SELECT count(*) FROM mesh.event_log)
"""
SIGNED = "SELECT count(*) FROM audit.checkpoints"


async def readers(shelf: Shelf, count: int) -> list[Node]:
    """Plant nodes in a shelf's Domain that may read its secret; SpiceDB is restarted, and so refilled."""
    dba = await shelf.deployment.world.superuser()
    try:
        nodes = await insert_nodes(dba, shelf.domain, shelf.path.split("/")[3], count)
        ids = [node.node_id for node in nodes]
        await dba.execute(AGENTS, ids)
        await dba.execute(READERS, ids, shelf.secret_id)
    finally:
        await dba.close()
    await shelf.deployment.restart("spicedb")
    return nodes


async def refilled(call: Call) -> float:
    """Wait until SpiceDB has everything again; returns how long that took."""
    begun = time.monotonic()
    # Identity looks every second whether SpiceDB was emptied.
    await asyncio.sleep(2.0)
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await call()
            except AssertionError:
                await asyncio.sleep(0.2)
            else:
                return time.monotonic() - begun


@dataclass
class Place:
    """Where thousands of nodes are planted, ten thousand a Domain."""

    deployment: Deployment
    operator: Operator
    made: int = 0

    async def plant(self, domains: int) -> list[Node]:
        """Plant so many Domains full of nodes; returns those of the last. SpiceDB is restarted, and so refilled."""
        nodes: list[Node] = []
        dba = await self.deployment.world.superuser()
        try:
            for _ in range(domains):
                self.made += 1
                domain = await self.operator.domain(100 + self.made)
                nodes = await insert_nodes(dba, domain, await self.operator.project(domain), LARGE)
                await dba.execute(AGENTS, [node.node_id for node in nodes])
            await dba.execute("ANALYZE")
        finally:
            await dba.close()
        if nodes:
            await self.deployment.restart("spicedb")
        return nodes

    async def weigh(self) -> tuple[float, float]:
        """Return the bytes of identity's rows, and SpiceDB's memory."""
        (pid,) = (await self.deployment.pids())["spicedb"]
        dba = await self.deployment.world.superuser()
        try:
            return await dba.fetchval(SIZE, FLEET), memory_bytes(pid)
        finally:
            await dba.close()


async def keys_of(costs: "Costs", count: int) -> list[UUID]:
    """Make the event keys of Domains that have nothing else."""
    deployment = costs.deployment
    own = deployment.identity("identity")
    files = (own.ca_file, own.key_file, own.certificate_file)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    options = [*OPTIONS, ("grpc.ssl_target_name_override", "mesh")]
    found = [uuid7() for _ in range(count)]
    waiting = iter(found)
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{deployment.state.port('mesh')}", credentials, options=options
    ) as channel:
        stub: mesh_pb2_grpc.SigningKeysServiceAsyncStub = mesh_pb2_grpc.SigningKeysServiceStub(channel)

        async def worker() -> None:
            for domain_id in waiting:
                wanted = mesh_pb2.EnsureSigningKeyRequest(domain_id=str(domain_id))
                await costs.patiently(functools.partial(stub.EnsureSigningKey, wanted, timeout=30))

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return found


async def events(deployment: Deployment, report: Report, publishing: Callable[[], Awaitable[None]]) -> None:
    """Publish, and note what an event takes in mesh's log and in the stream."""
    dba, broker = await deployment.world.superuser(), await deployment.broker()
    try:
        before = [*(await dba.fetch(LOG))[0], *await _stream(broker)]
        await publishing()
        after = [*(await dba.fetch(LOG))[0], *await _stream(broker)]
        size, count, stream, messages = (more - less for more, less in zip(after, before, strict=True))
        report.shares["bytes of an event"] = {"log": round(size / count), "stream": round(stream / messages)}
    finally:
        await dba.close()
        await broker.close()


async def _stream(broker: Client) -> tuple[int, int]:
    answer = json.loads((await broker.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout=5)).data)
    return answer["state"]["bytes"], answer["state"]["messages"]


async def checkpoints(costs: "Costs", chains: list[UUID]) -> None:
    """Note what a checkpoint takes while many chains are due; audit takes one after the other."""
    console.print(f"checkpoints of {len(chains):,} chains …")
    dba = await costs.deployment.world.superuser()
    try:
        done = await dba.fetchval(SIGNED)
        before, started = await costs.deployment.cpu_s(), time.perf_counter()
        await asyncio.sleep(SIGNING_S)
        count = await dba.fetchval(SIGNED) - done
        elapsed, after = time.perf_counter() - started, await costs.deployment.cpu_s()
    finally:
        await dba.close()
    used = {f"cpu_ms.{name}": (after[name] - before[name]) * 1000 / count for name in before}
    figures = {"rate": count / elapsed, "p50_ms": elapsed / count * 1000, **used}
    costs.report.shares[f"checkpoint, {len(chains):,} chains"] = costs.beyond(figures)


async def drift(costs: "Costs") -> None:
    """Note what it takes to compare identity's tuples with SpiceDB's, as each identity does every five minutes."""
    deployment, state, found = costs.deployment, costs.deployment.state, dict[str, float]()
    key, ca = state / "secrets/spicedb.key", state / "pki/ca.crt"
    spicedb = SpiceDb(f"127.0.0.1:{state.port('spicedb')}", "spicedb", key, ca)
    async with deployment.pool_as("identity", 2) as pool:
        # Nobody asks whether it may be measured.
        gate = cast("Gate", None)
        comparing = Reconcile(Relations(spicedb, PgTupleStore(pool), SENTINEL), PgDriftStore(pool), gate)
        count = await pool.fetchval("SELECT count(*) FROM identity.relation_tuples")

        async def compare() -> None:
            before, started, own = await deployment.cpu_s(), time.perf_counter(), time.process_time()
            await comparing.measure()
            found["s"], own = time.perf_counter() - started, time.process_time() - own
            after = await deployment.cpu_s()
            found["µs a tuple: identity"] = own / count * 1e6
            found["µs a tuple: spicedb"] = (after["spicedb"] - before["spicedb"]) / count * 1e6

        async def weigh() -> None:
            tracemalloc.start()
            try:
                await comparing.measure()
                found["bytes a tuple"] = tracemalloc.get_traced_memory()[1] / count
            finally:
                tracemalloc.stop()

        await costs.patiently(compare)
        await costs.patiently(weigh)
    costs.report.shares[f"comparison of {count:,} tuples"] = found


async def rows(deployment: Deployment, report: Report) -> None:
    """Note what a row of the record takes, with its indexes, and in the archive."""
    console.print(f"bytes of {ROWS:,} rows …")
    # It would checkpoint what is planted here.
    await deployment.kill("audit")
    pepper, chain = Secret(b"p" * 32), str(uuid7())
    dba = await deployment.world.superuser()
    try:
        before = await _sizes(dba)
        await plant(dba, deployment.world.env["PLEX_PG_SUPERUSER"], chain, pepper, ROWS)
        after = await _sizes(dba)
    finally:
        await dba.close()
    made = list(link((draft(decision(chain), pepper) for _ in range(SEGMENT)), Head(0, GENESIS)))
    note = "x" * 300
    packed = pack(Segment(chain, 1, GENESIS, tuple(row.canonical for row in made), note))
    report.shares["bytes of a row"] = {
        **{name.removeprefix("audit."): round((after[name] - before[name]) / ROWS) for name in RECORD},
        "canonical": round(sum(len(row.canonical) for row in made) / SEGMENT),
        "archive": round(len(packed) / SEGMENT),
    }


async def _sizes(dba: asyncpg.Connection) -> dict[str, float]:
    return {name: await dba.fetchval(SIZE, [name]) for name in RECORD}
