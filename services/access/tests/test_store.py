"""Races between replicas on the real backends, and what the schema holds."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from libs.access_policy import AccessPolicy
from libs.clock import SystemClock
from libs.columns import guard_columns
from libs.errors import PlexError
from libs.ids import uuid7
from libs.principal import Principal
from services.access.columns import COLUMNS
from services.access.key_store import PgKeyStore
from services.access.keys import SessionKeys
from services.access.model import Budget
from services.access.service import Access
from services.access.store import HELD_FOR, MOST_REPORTS, RESERVE, PgStore
from services.access.tests.fakes import World
from services.access.vault import BaoVault

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]


def replicas(world: World, pools: Pools, vault: BaoVault) -> list[Access]:
    clock = SystemClock()
    made = []
    for pool in pools:
        keys = SessionKeys(vault, PgKeyStore(pool), world.audit, world.authority, clock, world.doubt)
        made.append(replace(world.access, store=PgStore(pool), keys=keys, clock=clock))
    world.operator = fresh(world, world.operator)
    return made


def fresh(world: World, who: Principal) -> Principal:
    return replace(who, auth_time=int(SystemClock().now().timestamp()))


async def attempt(access: Access, world: World, who: Principal | None = None, **more: Any) -> str:
    try:
        issued = await access.issue(who or world.operator, world.wish(**more))
    except PlexError as error:
        return str(error.extra.get("dimension", error.code))
    return issued.token


@pytest.mark.parametrize(
    ("dimension", "limits"),
    [
        ("identity", {"max_active_per_identity": 7}),
        ("node", {"max_active_per_node": 7}),
        ("issue_rate", {"issue_rate_per_minute": 7}),
    ],
)
async def test_fifty_requests_at_once_on_two_replicas_never_exceed_a_limit(
    pools: Pools, vault: BaoVault, dimension: str, limits: dict[str, Any]
) -> None:
    world = World()
    roomy = AccessPolicy(world.policy.strength, {}, 900, 3600, 1000, 1000, 1000)
    world.directory.resources[world.resource] = world.terms(policy=replace(roomy, **limits))
    accesses = replicas(world, pools, vault)
    people = [world.operator] * 50
    if dimension == "node":
        people = [fresh(world, world.person()) for _ in range(50)]
        for person in people:
            world.admit(person)
    answers = await asyncio.gather(*(attempt(accesses[n % 2], world, who) for n, who in enumerate(people)))
    seen = Counter(answer if answer == dimension else "issued" for answer in answers)
    assert seen == {"issued": 7, dimension: 43}
    count = "SELECT count(*) FROM access.sessions WHERE node_id = $1"
    assert await pools[0].fetchval(count, world.node) == 7
    assert await pools[0].fetchval("SELECT count(*) FROM access.reservations WHERE node_id = $1", world.node) == 0


@pytest.mark.parametrize("same", ["identity", "node"])
async def test_who_asks_for_the_same_person_or_node_waits_until_the_other_is_counted(pools: Pools, same: str) -> None:
    world, now, other = World(), SystemClock().now(), uuid7()
    person, ask = UUID(world.operator.subject), PgStore(pools[1]).reserve
    whom = (person, other) if same == "identity" else (other, world.node)
    async with pools[0].acquire() as held:
        under_way = held.transaction()
        await under_way.start()
        until = now + HELD_FOR
        await held.fetchrow(RESERVE, uuid7(), person, world.node, None, None, now, until, now, 1, 1, 9)
        asking = asyncio.create_task(ask(uuid7(), *whom, world.wish(), Budget(1, 1, 9), now))
        await asyncio.wait([asking], timeout=0.5)
        assert not asking.done()
        await under_way.commit()
    assert (await asking).refused == same


async def test_of_one_request_sent_many_times_there_is_one_session_and_one_token(pools: Pools, vault: BaoVault) -> None:
    world = World()
    accesses = replicas(world, pools, vault)
    answers = await asyncio.gather(*(attempt(accesses[n % 2], world, request=b"k" * 32) for n in range(20)))
    answers += [await attempt(access, world, request=b"k" * 32) for access in accesses]
    tokens = {answer for answer in answers if answer != "idempotent_replay"}
    assert len(tokens) == 1
    assert tokens.pop().count(".") == 2
    assert await pools[0].fetchval("SELECT count(*) FROM access.sessions WHERE node_id = $1", world.node) == 1
    events = "SELECT type, scope FROM access.event_outbox WHERE domain_id = $1"
    assert [tuple(row) for row in await pools[0].fetch(events, world.domain)] == [
        ("session_setup", f"node:{world.node}")
    ]


async def test_no_token_and_no_signature_is_in_the_database(pools: Pools, vault: BaoVault) -> None:
    world = World()
    access = replicas(world, pools, vault)[0]
    token = await attempt(access, world)
    rows: list[str] = []
    for table in ("sessions", "requests", "event_outbox", "signing_keys", "reservations"):
        rows += [row["row"] for row in await pools[0].fetch(f"SELECT t::text AS row FROM access.{table} t")]
    assert len(rows) > 2
    for part in token.split("."):
        assert not any(part in row for row in rows)


async def test_revocations_at_once_announce_one(pools: Pools, vault: BaoVault) -> None:
    world = World()
    accesses = replicas(world, pools, vault)
    session = (await accesses[0].issue(world.operator, world.wish())).session
    await asyncio.gather(
        *(
            accesses[n % 2].revoke(world.operator, world.project, session.id, "operator_request")
            for n in range(10)
        )
    )  # fmt: skip
    rows = await pools[0].fetch(
        "SELECT type, payload FROM access.event_outbox WHERE domain_id = $1 ORDER BY position", world.domain
    )
    assert [row["type"] for row in rows] == ["session_setup", "session_revoked"]
    assert json.loads(rows[1]["payload"])["revoke_reason"] == "operator_request"
    assert await pools[0].fetchval("SELECT count(*) FROM access.denylist WHERE session_id = $1", session.id) == 1
    put_back = "UPDATE access.sessions SET revoked_at = NULL, revoke_reason = '' WHERE id = $1"
    await pools[0].execute(put_back, session.id)
    assert not await PgStore(pools[1]).touch(session.id, world.node, "ssh", {}, SystemClock().now())


async def test_reports_are_kept_up_to_a_bound(pools: Pools, vault: BaoVault) -> None:
    world = World()
    access = replicas(world, pools, vault)[0]
    session, store = (await access.issue(world.operator, world.wish())).session, PgStore(pools[0])
    kept = "SELECT string_agg(report ->> 'exit_code', ',') FROM access.activity WHERE session_id = $1"
    now = SystemClock().now()
    assert await store.touch(session.id, world.node, "ssh", {"exit_code": 1}, now)
    assert not await store.touch(session.id, world.node, "tcp", {"exit_code": 2}, now)
    assert await pools[0].fetchval(kept, session.id) == "1"
    many = "INSERT INTO access.activity SELECT $1, $2, '{}' FROM generate_series(2, $3)"
    await pools[0].execute(many, session.id, now, MOST_REPORTS)
    assert await store.touch(session.id, world.node, "ssh", {}, now)
    count = "SELECT count(*) FROM access.activity WHERE session_id = $1"
    assert await pools[0].fetchval(count, session.id) == MOST_REPORTS


async def test_the_columns_are_the_declared_ones(pools: Pools) -> None:
    await guard_columns(pools[0], "access", COLUMNS)
