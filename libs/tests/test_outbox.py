"""The outbox: in order per scope, once a success, and one bad event holds up nobody."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import pytest

from devstack.layout import State
from devstack.process import until
from libs.errors import EventBusUnavailable, EventExpired, EventTooLarge, PlexError
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
)
"""
DOMAIN = uuid7()


@dataclass
class Mesh:
    """Takes events; `refusals` says which types it refuses, and with what."""

    refusals: dict[str, PlexError] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    ids: list[UUID] = field(default_factory=list)

    async def publish(self, event: Outgoing) -> None:
        await asyncio.sleep(0)
        if event.type in self.refusals:
            raise self.refusals[event.type]
        self.seen.append((event.scope, event.type))
        self.ids.append(event.id)


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


async def test_what_went_stale_gets_another_id(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"old": EventExpired()})
    before = await put(pool, "a", "old")
    async with relaying(pool, mesh):
        await asyncio.sleep(0.3)
        mesh.refusals.clear()
        await until(lambda: mesh.seen == [("a", "old")], 5)
    assert mesh.ids != [before]


async def test_many_that_cannot_be_published_starve_nobody(pool: asyncpg.Pool) -> None:
    mesh = Mesh({"stuck": EventBusUnavailable()})
    for _ in range(600):
        await put(pool, "a", "stuck")
    await put(pool, "b", "free")
    async with relaying(pool, mesh):
        await until(lambda: mesh.seen == [("b", "free")], 5)
