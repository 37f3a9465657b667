"""Relations on the real PostgreSQL and SpiceDB: what a revoke, a refill and a lost sentinel promise."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import REGISTRY

from libs.clock import SystemClock, rfc3339
from libs.decision import Decision
from libs.errors import AuthzUnavailable, RelationNotAllowed, Unavailable, UnknownPermission
from libs.ids import uuid7
from libs.rpc.context import Call, bind
from services.identity.model import Caveat, Tuple
from services.identity.relation_store import PgTupleStore
from services.identity.relations import Feed, Question, Relations, Revocation, SentinelMissing
from services.identity.revocation_feed import follow
from services.identity.spicedb import SpiceDb

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
TIMES = 100
Answer = TypeVar("Answer")


@dataclass
class Held:
    """SpiceDB whose writes wait to be let through."""

    spicedb: SpiceDb
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    let: asyncio.Event = field(default_factory=asyncio.Event)

    async def touch(self, rows: list[Tuple]) -> None:
        self.reached.set()
        await self.let.wait()
        await self.spicedb.touch(rows)

    async def check(self, questions: list[Question]) -> list[bool | None]:
        return await self.spicedb.check(questions)

    async def resources(self, question: Question, most: int) -> list[str]:
        return await self.spicedb.resources(question, most)

    async def subjects(self, question: Question, most: int) -> list[str]:
        return await self.spicedb.subjects(question, most)

    async def read_all(self) -> list[Tuple]:
        return await self.spicedb.read_all()

    async def delete(self, rows: list[Tuple]) -> None:
        await self.spicedb.delete(rows)

    async def write_schema(self) -> None:
        await self.spicedb.write_schema()


class Away(Held):
    """SpiceDB that takes no writes."""

    async def touch(self, rows: list[Tuple]) -> None:
        raise AuthzUnavailable(f"away for {len(rows)}")

    async def delete(self, rows: list[Tuple]) -> None:
        raise AuthzUnavailable(f"away for {len(rows)}")


def reader(secret: UUID, node: UUID) -> Tuple:
    return Tuple(f"secret:{secret}", "reader", f"node:{node}")


async def reason(relations: Relations, row: Tuple) -> str:
    return (await relations.decide(row.subject, "read", row.resource)).reason


async def test_no_check_finds_a_relation_once_its_revoke_has_answered(relations: Relations) -> None:
    row = reader(uuid7(), uuid7())
    for _ in range(TIMES):
        await relations.grant(row)
        assert await reason(relations, row) == "granted"
        assert await relations.remove(row.resource, row.relation, row.subject) == 1
        assert await reason(relations, row) == "out_of_scope"
    assert await relations.remove(row.resource, row.relation, row.subject) == 0


async def test_concurrent_grants_and_revokes_leave_spicedb_as_the_table_has_it(
    relations: Relations, pools: Pools
) -> None:
    other = replace(relations, tuples=PgTupleStore(pools[1]))
    row = reader(uuid7(), uuid7())
    for _ in range(20):
        await asyncio.gather(
            relations.grant(row), other.remove(row.resource, row.relation, row.subject), other.grant(row)
        )
        await relations.deliver()
        there = await pools[0].fetchval(
            "SELECT count(*) FROM identity.relation_tuples WHERE resource_id = $1", row.resource.split(":")[1]
        )
        assert (await reason(relations, row) == "granted") is bool(there)
        await relations.remove(row.resource, row.relation, row.subject)


async def test_what_is_revoked_during_a_refill_stays_revoked(relations: Relations, spicedb: SpiceDb) -> None:
    row = reader(uuid7(), uuid7())
    await relations.grant(row)
    held = Held(spicedb)
    refilling = asyncio.create_task(replace(relations, checker=held).refill())
    await held.reached.wait()
    revoking = asyncio.create_task(relations.remove(row.resource, row.relation, row.subject))
    await asyncio.wait([revoking], timeout=0.3)
    held.let.set()
    await asyncio.gather(refilling, revoking)
    assert await reason(relations, row) == "out_of_scope"


async def test_without_the_sentinel_every_check_is_unavailable_until_it_was_refilled(
    relations: Relations, spicedb: SpiceDb, sentinel: Tuple
) -> None:
    row = reader(uuid7(), uuid7())
    await relations.grant(row)
    # A SpiceDB that lost everything: neither the tuple nor the sentinel is there.
    await spicedb.delete([row, sentinel])
    with pytest.raises(SentinelMissing):
        await reason(relations, row)
    with pytest.raises(AuthzUnavailable):
        await relations.visible(row.subject, "read", "secret", f"domain:{uuid7()}")
    with pytest.raises(AuthzUnavailable):
        await relations.ready()
    async with running(relations):
        await soon(relations.ready)
    assert await reason(relations, row) == "granted"
    await relations.remove(row.resource, row.relation, row.subject)


async def test_a_grant_that_could_not_be_delivered_is_delivered_later(relations: Relations, spicedb: SpiceDb) -> None:
    row = reader(uuid7(), uuid7())
    await replace(relations, checker=Away(spicedb)).grant(row)
    await relations.deliver()
    assert await reason(relations, row) == "granted"
    await relations.remove(row.resource, row.relation, row.subject)


@pytest.mark.parametrize(("kind", "permission"), [("node", "node-agent"), ("secret", "read")])
async def test_a_node_is_not_denied_what_was_granted_and_has_not_arrived(
    relations: Relations, spicedb: SpiceDb, kind: str, permission: str
) -> None:
    node = uuid7()
    row = Tuple(f"node:{node}", "agent", f"node:{node}") if kind == "node" else reader(uuid7(), node)

    async def decided() -> str:
        return (await relations.decide(row.subject, permission, row.resource)).reason

    assert await decided() == "out_of_scope"
    await replace(relations, checker=Away(spicedb)).grant(row)
    with pytest.raises(AuthzUnavailable):
        await decided()
    await relations.deliver()
    assert await decided() == "granted"
    # Once it is decided that it goes, it is no grant on its way, whoever removed it from SpiceDB.
    with pytest.raises(AuthzUnavailable):
        await replace(relations, checker=Away(spicedb)).remove(row.resource, row.relation, row.subject)
    await spicedb.delete([row])
    assert await decided() == "out_of_scope"
    await relations.deliver()
    assert await decided() == "out_of_scope"


async def test_what_spicedb_refuses_is_kept_aside_and_holds_nobody_up(
    relations: Relations, pools: Pools, spicedb: SpiceDb
) -> None:
    """A row that got past our own check, as a migration or a schema taken back could leave it."""
    bad = uuid7()
    rows = [reader(uuid7(), uuid7()) for _ in range(5)]
    sql = """
    INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
    VALUES ($1, 'secret', $2, 'reader', 'user', $3, 'pending')
    """
    # Its id is older than theirs, so it stands before them.
    await pools[0].execute(sql, bad, str(bad), str(bad))
    before = refused_so_far()
    await replace(relations, checker=Away(spicedb)).tuples.add(rows)
    await relations.deliver()
    assert {await reason(relations, row) for row in rows} == {"granted"}
    assert await code_of(pools, bad) == "INVALID_ARGUMENT"
    assert refused_so_far() == before + 1
    # It is no grant on its way, nor does a refill stumble over it; a schema with a place for it would be given a try.
    assert not await relations.tuples.held([Tuple(f"secret:{bad}", "reader", f"user:{bad}")])
    await relations.refill()
    await relations.tuples.retry_refused()
    assert await code_of(pools, bad) == ""
    await relations.deliver()
    assert await code_of(pools, bad) == "INVALID_ARGUMENT"
    assert await relations.remove(f"secret:{bad}", "", "") == 1
    for row in rows:
        await relations.remove(row.resource, row.relation, row.subject)


def refused_so_far() -> float:
    return (
        REGISTRY.get_sample_value("plexsphere_refusals_total", {"control": "relations", "reason": "INVALID_ARGUMENT"})
        or 0.0
    )


async def code_of(pools: Pools, resource: UUID) -> str:
    sql = "SELECT refused_code FROM identity.relation_tuples WHERE resource_id = $1"
    return str(await pools[0].fetchval(sql, str(resource)))


async def test_a_spicedb_without_its_sentinel_refuses_no_tuple_for_good(
    relations: Relations, pools: Pools, spicedb: SpiceDb, sentinel: Tuple
) -> None:
    bad = uuid7()
    sql = """
    INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
    VALUES ($1, 'secret', $2, 'reader', 'user', $2, 'pending')
    """
    await pools[0].execute(sql, bad, str(bad))
    await spicedb.delete([sentinel])
    with pytest.raises(SentinelMissing):
        await relations.tuples.deliver(spicedb)
    assert await code_of(pools, bad) == ""
    await spicedb.touch([sentinel])
    await relations.remove(f"secret:{bad}", "", "")


@pytest.mark.parametrize(
    "row",
    [
        Tuple(f"secret:{uuid7()}", "reader", f"user:{uuid7()}"),
        Tuple(f"secret:{uuid7()}", "admin", f"node:{uuid7()}"),
        Tuple(f"group:{uuid7()}", "admin", f"user:{uuid7()}"),
        Tuple("secret:../platform", "reader", f"node:{uuid7()}"),
        Tuple(f"secret:{uuid7()}", "reader", "node:*"),
        Tuple("platform:sentinel", "admin", f"user:{uuid7()}"),
        Tuple(f"secret:{uuid7()}", "reader", f"node:{'a' * 9000}"),
        Tuple(f"secret:{uuid7()}", "reader", f"node:{uuid7()}", Caveat("expires", {})),
    ],
    ids=["subject type", "relation", "type", "id", "wildcard", "sentinel", "length", "caveat"],
)
async def test_what_the_schema_has_no_place_for_is_not_even_stored(relations: Relations, row: Tuple) -> None:
    with pytest.raises(RelationNotAllowed):
        await relations.grant(row)


async def test_a_permission_that_its_type_does_not_have_is_the_askers_mistake(relations: Relations) -> None:
    node = uuid7()
    for permission, kind in [
        ("fly", "node"),
        ("any", "node"),
        ("deploy", "node"),
        ("manage", "user"),
        ("agent", "node"),
    ]:
        with pytest.raises(UnknownPermission):
            await relations.decide(f"user:{node}", permission, f"{kind}:{node}")


async def test_a_caveat_decides_and_says_so(relations: Relations) -> None:
    project = f"project:{uuid7()}"
    now = SystemClock().now()
    soon, past = (rfc3339(now + timedelta(seconds=shift)) for shift in (3600, -1))
    near = Caveat("from_network", {"network": "192.0.2.0/24"})
    cases = [
        (Caveat("expires", {"until": soon}), "granted", "granted"),
        (Caveat("expires", {"until": past}), "caveat_violation", "caveat_violation"),
        (near, "caveat_violation", "granted"),
    ]
    for caveat, bare, from_near in cases:
        row = Tuple(project, "admin", f"user:{uuid7()}", caveat)
        await relations.grant(row)
        # Only what the absence of the address leaves open is left open.
        assert await relations.decide(row.subject, "manage", project) == Decision(bare, conditional=caveat is near)
        with bind(Call(client_ip="198.51.100.1")):
            assert not (await relations.decide(row.subject, "manage", project)).conditional
        with bind(Call(client_ip="192.0.2.7")):
            assert (await relations.decide(row.subject, "manage", project)).reason == from_near
            shown = await relations.visible(row.subject, "read", "project", f"domain:{uuid7()}")
            assert shown == ([project.partition(":")[2]] if from_near == "granted" else [])
        asked, addresses = [(row.subject, "manage", project)] * 3, ["198.51.100.1", "192.0.2.7", ""]
        answers = await relations.decide_from(asked, addresses)
        assert [one.reason for one in answers] == [bare, from_near, bare]
        # A refill keeps the condition.
        await relations.refill()
        assert (await relations.decide(row.subject, "manage", project)).reason == bare
        await relations.remove(project, "", "")
        assert (await relations.decide(row.subject, "manage", project)).reason == "out_of_scope"


async def test_a_revoke_does_not_answer_while_spicedb_is_away(relations: Relations, spicedb: SpiceDb) -> None:
    row = reader(uuid7(), uuid7())
    await relations.grant(row)
    with pytest.raises(AuthzUnavailable):
        await replace(relations, checker=Away(spicedb)).remove(row.resource, row.relation, row.subject)
    # It was decided, and whoever delivers next brings it about.
    await relations.deliver()
    assert await reason(relations, row) == "out_of_scope"


async def test_a_revocation_reaches_the_streams_of_every_replica(relations: Relations, pools: Pools) -> None:
    row = reader(uuid7(), uuid7())
    await relations.grant(row)
    feed = Feed()
    with pytest.raises(Unavailable):
        await anext(feed.listen())
    following = asyncio.create_task(follow(pools[1], feed))
    try:
        stream = await soon(lambda: first(feed))
        await relations.remove(row.resource, row.relation, row.subject)
        # Told when it was decided, and again when no check finds it: who asked in between was still granted.
        async with asyncio.timeout(5):
            told = 0
            while told < 2:
                told += (await anext(stream)).relation == row
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    # Without the connection nobody may believe that nothing was revoked.
    async with asyncio.timeout(5):
        assert [seen async for seen in stream if seen.kind] == []


async def first(feed: Feed) -> AsyncIterator[Revocation]:
    stream = feed.listen()
    assert await anext(stream) == Revocation()
    return stream


async def test_a_lost_connection_ends_the_streams_and_is_made_again(pools: Pools) -> None:
    feed = Feed()
    following = asyncio.create_task(follow(pools[1], feed))
    try:
        stream = await soon(lambda: first(feed))
        await pools[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND usename = 'identity' "
            "AND query IN ('SELECT ''beat''', 'LISTEN \"revocations\"')"
        )
        async with asyncio.timeout(5):
            assert [seen async for seen in stream if seen.kind] == []
        await soon(lambda: first(feed))
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


@asynccontextmanager
async def running(relations: Relations) -> AsyncIterator[None]:
    task = asyncio.create_task(relations.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def soon(attempt: Callable[[], Awaitable[Answer]], within_s: float = 5.0) -> Answer:
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await attempt()
            except Unavailable:
                await asyncio.sleep(0.05)
