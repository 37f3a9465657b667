"""Registrations through identity, against one raw transaction with the same rows."""

import asyncio
import datetime
import hashlib
import itertools
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import asyncpg
import grpc
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from bench.deployment import Deployment, Operator
from bench.measure import Bar, Figures, Report, alternate, column, percentile
from libs.ids import uuid7
from libs.rpc.channel import OPTIONS
from plexsphere.identity.v1 import enrolment_pb2 as pb
from plexsphere.identity.v1 import enrolment_pb2_grpc as stubs

IN_FLIGHT = 32
# A node is told of all its peers, so a round is a Domain of a size that exists.
NODES = 320
FLOOR, AIM = 0.3, 0.6
# As many connections as identity's own pool may open.
RAW_CONNECTIONS = 20
RESOURCES = """
INSERT INTO identity.resources (id, project_id, domain_id, kind, external_ref, origin, created_at, updated_at)
SELECT id, $2, $3, 'server', '', 'adopted', now(), now() FROM unnest($1::uuid[]) AS one (id)
"""
TOKENS = """
INSERT INTO identity.bootstrap_tokens
    (id, project_id, kind, env_prefix, selector, digest, issued_by, issued_at, expires_at)
SELECT uuidv7(), $1, 'node', 'dev', selector, digest, $1, now(), now() + interval '1 hour'
FROM unnest($2::text[], $3::bytea[]) AS one (selector, digest)
"""
CONSUME = """
UPDATE identity.bootstrap_tokens SET consumed_at = $2, nonce = $3, public_key = $4, node_id = $5
WHERE selector = $1 AND consumed_at IS NULL RETURNING id
"""
NODE = """
INSERT INTO identity.nodes (id, resource_id, project_id, domain_id, mesh_ip, public_key, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
KEY = """
INSERT INTO identity.node_secret_keys (kid, node_id, domain_id, wrapped, fingerprint, created_at)
VALUES ($1, $2, $3, $4, $5, $6)
"""
# Live and refused from the start, so that nobody takes up what the raw side writes.
RELATIONS = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
SELECT uuidv7(), kind, id, relation, of, subject, 'live'
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) AS one (kind, id, relation, of, subject)
"""
EVENT = """
INSERT INTO identity.event_outbox (id, domain_id, type, scope, payload, created_at, refused_code)
VALUES ($1, $2, 'peer_added', $3, $4, $5, 'bench')
"""
Register = Callable[["Machine"], Awaitable[object]]


@dataclass(frozen=True)
class Machine:
    """Something that may register once."""

    number: int
    domain_id: uuid.UUID
    project_id: uuid.UUID
    resource_id: uuid.UUID
    selector: str
    secret: str
    public_key: bytes


@dataclass
class Fleet:
    """Makes a Domain with machines for each round; the tokens and resources are inserted as superuser."""

    deployment: Deployment
    operator: Operator
    made: int = 0

    async def machines(self) -> list[Machine]:
        """Return as many as a round has, in a fresh Domain."""
        self.made += 1
        domain_id = await self.operator.domain(self.made)
        project_id = await self.operator.project(domain_id)
        alphabet = "abcdefghijklmnopqrstuvwxyz234567"
        found = [
            Machine(
                number, uuid.UUID(domain_id), uuid.UUID(project_id), uuid7(),
                selector="".join(alphabet[byte % 32] for byte in os.urandom(16)),
                secret="".join(alphabet[byte % 32] for byte in os.urandom(32)),
                public_key=X25519PrivateKey.generate().public_key().public_bytes_raw(),
            )
            for number in range(NODES)
        ]  # fmt: skip
        dba = await self.deployment.world.superuser()
        try:
            await dba.execute(RESOURCES, [one.resource_id for one in found], project_id, domain_id)
            digests = [hashlib.sha256(one.secret.encode()).digest() for one in found]
            await dba.execute(TOKENS, project_id, [one.selector for one in found], digests)
        finally:
            await dba.close()
        return found

    async def round_of(self, register: Register) -> Figures:
        """Register a fresh Domain's machines, so many at once."""
        machines = await self.machines()
        waiting, latencies = iter(machines), list[float]()

        async def worker() -> None:
            for machine in waiting:
                begun = time.perf_counter()
                await register(machine)
                latencies.append(time.perf_counter() - begun)

        before, started = await self.deployment.cpu_s(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(worker())
        elapsed, after = time.perf_counter() - started, await self.deployment.cpu_s()
        used = {f"cpu_ms.{name}": (after[name] - before[name]) * 1000 / len(latencies) for name in before}
        return {"rate": len(machines) / elapsed, "p50_ms": percentile(latencies, 0.5) * 1000, **used}


def through_identity(stub: "stubs.EnrolmentServiceAsyncStub") -> Register:
    """Return a registration as the gateway asks for it."""

    async def register(machine: Machine) -> object:
        request = pb.RegisterRequest(
            project_id=str(machine.project_id),
            resource_handle=str(machine.resource_id),
            bootstrap_token=f"psb_dev_{machine.selector}_node_{machine.secret}",
            nonce=str(uuid.uuid4()),
            public_key=machine.public_key,
        )
        answer: pb.RegisterResponse = await stub.Register(request, timeout=20)
        return answer

    return register


def raw(pool: asyncpg.Pool, turn: "itertools.count[int]") -> Register:
    """Return one transaction that leaves the rows of a registration."""

    async def register(machine: Machine) -> object:
        node_id, now, nonce = uuid7(), datetime.datetime.now(datetime.UTC), uuid.uuid4()
        this, project, at = str(node_id), str(machine.project_id), f"domain:{machine.domain_id}"
        address = f"10.250.{machine.number // 250}.{machine.number % 250 + 1}"
        payload = f'{{"peer":{{"node_id":"{this}","mesh_ip":"{address}","public_key":"{"A" * 43}="}}}}'
        kinds = ["node", "node", "project", "resource"]
        ids = [this, this, project, str(machine.resource_id)]
        async with pool.acquire() as lent, lent.transaction():
            assert await lent.fetchval(CONSUME, machine.selector, now, nonce, machine.public_key, node_id)
            await lent.execute(
                NODE, node_id, machine.resource_id, machine.project_id, machine.domain_id, address,
                machine.public_key, now,
            )  # fmt: skip
            kid, wrapped = f"nsk_{uuid7().hex}", "vault:v1:" + "A" * 80
            await lent.execute(KEY, kid, node_id, machine.domain_id, wrapped, os.urandom(32), now)
            await lent.execute(
                RELATIONS, kinds, ids, ["project", "agent", "agent", "agent"], ["project", "node", "node", "node"],
                [project, this, this, this],
            )  # fmt: skip
            await lent.execute(EVENT, uuid7(), machine.domain_id, at, payload, now)
        return next(turn)

    return register


async def measure(deployment: Deployment, operator: Operator, report: Report) -> None:
    """Add the bar of registrations."""
    own = deployment.identity("gateway")
    files = (own.ca_file, own.key_file, own.certificate_file)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    options = [*OPTIONS, ("grpc.ssl_target_name_override", "identity")]
    address = f"127.0.0.1:{deployment.state.port('identity')}"
    fleet = Fleet(deployment, operator)
    async with (
        grpc.aio.secure_channel(address, credentials, options=options) as channel,
        deployment.pool_as("identity", RAW_CONNECTIONS) as pool,
    ):
        ours = through_identity(stubs.EnrolmentServiceStub(channel))
        theirs = raw(pool, itertools.count())
        a, b = await alternate(lambda: fleet.round_of(ours), lambda: fleet.round_of(theirs))
    name = f"registrations, {IN_FLIGHT} in flight"
    report.bars.append(Bar(name, "registrations/s", column(a, "rate"), column(b, "rate"), FLOOR, AIM))
    for side, rounds in (("identity", a), ("raw", b)):
        report.shares[f"{name}, {side}: ms"] = _shares(rounds)


def _shares(rounds: Sequence[Figures]) -> Figures:
    middle = {of: percentile(column(rounds, of), 0.5) for of in rounds[0] if of != "rate"}
    return {of.removeprefix("cpu_ms."): value for of, value in middle.items() if value >= 0.01}
