"""The outbox: in order per scope, once a success, and one bad event holds up nobody."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import pytest

from devstack.layout import State
from devstack.process import until
from libs.errors import EventBusUnavailable, EventExpired, EventTooLarge, InvalidRequest, PlexError
from libs.ids import uuid7
from libs.outbox import Outgoing, Relay, add_event

pytestmark = pytest.mark.integration

SCHEMA = "outbox_test"
TABLE = f"""
DROP SCHEMA IF EXISTS {SCHEMA} CASCADE;
CREATE SCHEMA {SCHEMA};
CREATE TABLE {SCHEMA}.event_outbox (
    id uuid PRIMARY KEY, domain_id uuid NOT NULL, type text NOT NULL, scope text NOT NULL, payload jsonb NOT NULL,
    created_at timestamptz NOT NULL, position bigint GENERATED ALWAYS AS IDENTITY,
    refused_code text NOT NULL DEFAULT ''
);
CREATE INDEX event_outbox_waiting ON {SCHEMA}.event_outbox (domain_id, scope, position) WHERE refused_code = ''
"""
DOMAIN = uuid7()


@dataclass
class Mesh:
    """Takes events; `refusals` says which types it refuses, and with what."""

    refusals: dict[str, PlexError] = field(default_factory=dict)
    # What all are refused with when they come together, as when one cannot be read.
    unreadable: PlexError | None = None
    refuses_after_s: float = 0
    refused: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    ids: list[UUID] = field(default_factory=list)

    async def publish(self, events: Sequence[Outgoing]) -> int:
        if (refusal := self.unreadable) and len(events) > 1:
            raise refusal
        for done, event in enumerate(events):
            await asyncio.sleep(0)
            if refusal := self.refusals.get(event.type):
                if done:
                    return done
                await asyncio.sleep(self.refuses_after_s)
                self.refused += 1
                raise refusal
            self.seen.append((event.scope, event.type))
            self.ids.append(event.id)
        return len(events)


@pytest.fixture
async def pool(backends: State) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(backends.superuser_url, min_size=1, max_size=4) as opened:
        await opened.execute(TABLE)
        yield opened


async def put(pool: asyncpg.Pool, scope: str, kind: str) -> UUID:
    async with pool.acquire() as lent, lent.transaction():
        # The pool lends a proxy that does all that a connection does.
        return await add_event(lent, SCHEMA, DOMAIN, kind, scope, {"a": 1}, datetime.datetime.now(datetime.UTC))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def relaying(pool: asyncpg.Pool, mesh: Mesh, replicas: int = 1) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(Relay(pool, SCHEMA, mesh.publish).run()) for _ in range(replicas)]
    try:
        yield
        # What was published is removed a moment later.
        await asyncio.sleep(0.5)
    finally:
        assert not any(task.done() for task in tasks), "a relay does not die"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def left(pool: asyncpg.Pool) -> list[tuple[str, str]]:
    rows = await pool.fetch(f"SELECT type, refused_code FROM {SCHEMA}.event_outbox ORDER BY position")
    return [(row["type"], row["refused_code"]) for row in rows]


async def test_events_go_out_in_order_and_once_with_two_replicas(pool: asyncpg.Pool) -> None:
    mesh, wanted = Mesh(), list[UUID]()
    async with relaying(pool, mesh, 2):
        wanted += [await put(pool, f"s{number % 3}", f"t{number:02}") for number in range(40)]
        await until(lambda: len(mesh.seen) == 40, 10)
    assert sorted(mesh.ids) == sorted(wanted)
    for scope in ("s0", "s1", "s2"):
        kinds = [kind for of, kind in mesh.seen if of == scope]
        assert kinds == sorted(kinds)
    assert await left(pool) == []


async def test_what_cannot_be_published_now_waits_with_its_scope_and_others_go_on(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"a1": EventBusUnavailable()})
    await put(pool, "a", "a1")
    await put(pool, "a", "a2")
    await put(pool, "b", "b1")
    async with relaying(pool, mesh):
        await until(lambda: mesh.seen == [("b", "b1")], 5)
        mesh.refusals.clear()
        await until(lambda: mesh.seen == [("b", "b1"), ("a", "a1"), ("a", "a2")], 5)


async def test_what_mesh_never_takes_is_kept_for_people_and_holds_nobody_up(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"bad": EventTooLarge()})
    for kind in ("bad", "good"):
        await put(pool, "a", kind)
    async with relaying(pool, mesh):
        await until(lambda: mesh.seen == [("a", "good")], 5)
    assert await left(pool) == [("bad", "event_too_large")]


async def test_one_that_cannot_be_read_is_found_among_those_that_it_comes_with(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"bad": InvalidRequest()}, unreadable=InvalidRequest())
    for kind in ("a1", "bad", "a2"):
        await put(pool, "a", kind)
    async with relaying(pool, mesh):
        await until(lambda: mesh.seen == [("a", "a1"), ("a", "a2")], 5)
    assert await left(pool) == [("bad", InvalidRequest().code)]


async def test_a_mesh_that_publishes_nothing_and_refuses_nothing_is_asked_again_later(pool: asyncpg.Pool) -> None:
    asked = 0

    async def publish(_: Sequence[Outgoing]) -> int:
        nonlocal asked
        asked += 1
        return 0

    await put(pool, "a", "a1")
    relay = asyncio.create_task(Relay(pool, SCHEMA, publish).run())
    await asyncio.sleep(1)
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    assert 1 <= asked <= 4
    assert await left(pool) == [("a1", "")]


async def test_what_went_stale_gets_another_id(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"old": EventExpired()})
    before = await put(pool, "a", "old")
    async with relaying(pool, mesh):
        await asyncio.sleep(0.3)
        mesh.refusals.clear()
        await until(lambda: mesh.seen == [("a", "old")], 5)
    assert mesh.ids != [before]


async def fill(pool: asyncpg.Pool, kind: str, scopes: int, each: int) -> None:
    """Add events of many scopes, whose names all come before any other of a test."""
    await pool.execute(
        f"INSERT INTO {SCHEMA}.event_outbox (id, domain_id, type, scope, payload, created_at) "
        "SELECT gen_random_uuid(), $1, $2, '0' || (n % $3), '{}', now() FROM generate_series(1, $3::int * $4) n",
        DOMAIN, kind, scopes, each,
    )  # fmt: skip


async def test_many_events_of_one_scope_that_cannot_be_published_starve_nobody(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"stuck": EventBusUnavailable()})
    for _ in range(600):
        await put(pool, "a", "stuck")
    await put(pool, "b", "free")
    async with relaying(pool, mesh):
        await until(lambda: mesh.seen == [("b", "free")], 5)


async def test_many_scopes_that_cannot_be_published_starve_nobody(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"stuck": EventBusUnavailable()}, refuses_after_s=0.2)
    await fill(pool, "stuck", scopes=600, each=20)
    await put(pool, "b", "free")
    async with relaying(pool, mesh):
        await until(lambda: mesh.seen == [("b", "free")], 15)
        for turn in range(5):
            await put(pool, "b", f"free{turn}")
            await until(lambda turn=turn: mesh.seen[-1] == ("b", f"free{turn}"), 2)  # type: ignore[misc]
        mesh.refusals.clear()
        await until(lambda: len(mesh.seen) == 6 + 600 * 20, 60)


async def test_a_scope_that_fails_is_left_alone_for_longer_each_time(pool: asyncpg.Pool) -> None:
    mesh, now = Mesh({"stuck": EventBusUnavailable()}), 0.0
    relay = Relay(pool, SCHEMA, mesh.publish, lambda: now)
    await put(pool, "a", "stuck")
    tried = []
    async with pool.acquire() as lent:
        for tick in range(90):
            now, before = tick / 4, mesh.refused
            await relay.step(lent)  # type: ignore[arg-type]  # as above
            tried += [now] * (mesh.refused - before)
    assert tried == [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5]


@pytest.mark.parametrize(("scopes", "each"), [(1, 200_000), (200_000, 1)])
async def test_a_step_takes_no_longer_the_more_waits(
    backends: State, pool: asyncpg.Pool, scopes: int, each: int
) -> None:
    mesh = Mesh()
    await fill(pool, "t", scopes, each)
    waiting = [row["id"] for row in await pool.fetch(f"SELECT id FROM {SCHEMA}.event_outbox ORDER BY position")]
    hurried = await asyncpg.connect(backends.superuser_url, server_settings={"statement_timeout": "200"})
    try:
        relay = Relay(pool, SCHEMA, mesh.publish)
        for _ in range(3):
            assert await relay.step(hurried)
    finally:
        await hurried.close()
    assert len(mesh.seen) == (3 * 16 if scopes == 1 else 3 * 512)
    assert len(await left(pool)) == 200_000 - len(mesh.seen)
    assert scopes > 1 or mesh.ids == waiting[: 3 * 16]


@pytest.mark.parametrize("owner", ["identity", "mesh", "secrets"])
async def test_every_owner_has_the_index_that_a_step_looks_into(pool: asyncpg.Pool, owner: str) -> None:
    sql = "SELECT replace(indexdef, schemaname, '') FROM pg_indexes WHERE indexname = $1 AND schemaname = $2"
    wanted, found = [await pool.fetchval(sql, "event_outbox_waiting", schema) for schema in (SCHEMA, owner)]
    assert found == wanted is not None
