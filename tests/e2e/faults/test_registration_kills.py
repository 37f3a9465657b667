"""identity is killed at each step of a registration: before the commit nothing happened, after it all of it did."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.enrolling import Desk
from tests.e2e.freeze import frozen
from tests.e2e.outside import JSON, Answer
from tests.e2e.stories.main_job import action
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

Stopped = Callable[[World], AbstractAsyncContextManager[None]]
# Waits for the DBA at the end of the transaction, when all statements are done and nothing is committed.
AT_COMMIT = """
CREATE FUNCTION identity.wait_at_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
$$ BEGIN PERFORM pg_advisory_xact_lock(20260501); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON identity.nodes DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION identity.wait_at_commit();
"""
WAITING = """
SELECT pid FROM pg_stat_activity WHERE usename = 'identity' AND wait_event_type = 'Lock'
"""


def without(backend: str) -> Stopped:
    """Stop the process that the step asks."""
    return lambda world: frozen(world, backend)


def locked(table: str) -> Stopped:
    """Hold a table against writing, and let go once the killed process's connection is gone."""

    @asynccontextmanager
    async def held(world: World) -> AsyncIterator[None]:
        async with dba_of(world) as dba, dba.transaction():
            await dba.execute(f"LOCK TABLE identity.{table} IN SHARE MODE")
            yield
            await end_waiting(dba)

    return held


@asynccontextmanager
async def at_commit(world: World) -> AsyncIterator[None]:
    """Hold the transaction at its end."""
    async with dba_of(world) as dba:
        await dba.execute(AT_COMMIT)
        try:
            async with dba.transaction():
                await dba.execute("SELECT pg_advisory_xact_lock(20260501)")
                yield
                await end_waiting(dba)
        finally:
            await dba.execute("DROP FUNCTION identity.wait_at_commit CASCADE")


@asynccontextmanager
async def dba_of(world: World) -> AsyncIterator[asyncpg.Connection]:
    dba = await world.superuser()
    try:
        yield dba
    finally:
        await dba.close()


async def end_waiting(dba: asyncpg.Connection) -> None:
    """End the statements of a client that is gone: a backend that waits for a lock does not see that."""
    for row in await dba.fetch(WAITING):
        await dba.execute("SELECT pg_terminate_backend($1)", row["pid"])


BEFORE: dict[str, Stopped] = {
    "wrap": without("openbao"),
    "signing key": without("mesh"),
    "audit": without("audit"),
    "consume": locked("bootstrap_tokens"),
    "node": locked("nodes"),
    "key": locked("node_secret_keys"),
    "tuples": locked("relation_tuples"),
    "event": locked("event_outbox"),
    "before commit": at_commit,
}
AFTER: dict[str, Stopped] = {"deliver, before the answer": without("spicedb")}


async def reached(world: World, desk: Desk, step: str) -> None:
    """Return once identity waits at the step: it waits for a lock, its commit is seen, or time has passed."""
    if step in {"wrap", "signing key", "audit"}:
        await asyncio.sleep(1)
        return
    async with dba_of(world) as dba:

        async def waits() -> bool:
            if step in AFTER:
                return bool(await dba.fetch("SELECT id FROM identity.nodes WHERE domain_id = $1", desk.domain_id))
            return bool(await dba.fetch(WAITING))

        await eventually(waits)


async def counted(world: World, sql: str, *arguments: object) -> int:
    async with dba_of(world) as dba:
        return int(await dba.fetchval(sql, *arguments))


async def insisted(desk: Desk, wish: JSON) -> JSON:
    """Register as an agent that lost its answer does: the same request, until the time is good."""
    answers: list[Answer] = []

    async def registered() -> bool:
        answers.append(await desk.register(wish))
        return answers[-1].status != 503

    await eventually(registered)
    assert answers[-1].status == 201, answers[-1].body
    return answers[-1].json


@pytest.mark.parametrize("step", [*BEFORE, *AFTER])
async def test_a_kill_at_each_step_leaves_all_or_nothing(world: World, scene: Scene, step: str) -> None:
    desk = await Desk.open(scene.operator)
    wish = await desk.wish()
    async with (BEFORE | AFTER)[step](world):
        attempt = asyncio.create_task(desk.register(wish))
        await reached(world, desk, step)
        answered = attempt.done()
        await world.kill("identity")
        status = (await attempt).status
    await world.start("identity")
    assert (answered, status) == (False, 503)
    committed = int(step in AFTER)
    async with dba_of(world) as dba:
        used = "SELECT count(*) FROM identity.bootstrap_tokens WHERE project_id = $1 AND consumed_at IS NOT NULL"
        assert await dba.fetchval(used, desk.project_id) == committed
        for table in ("nodes", "node_secret_keys"):
            found = f"SELECT count(*) FROM identity.{table} WHERE domain_id = $1"
            assert await dba.fetchval(found, desk.domain_id) == committed
        before = await dba.fetchval("SELECT id FROM identity.nodes WHERE domain_id = $1", desk.domain_id)
        node_id = (await insisted(desk, wish))["node_id"]
        assert before in {None, uuid.UUID(node_id)}
        told = "SELECT id FROM mesh.event_log WHERE domain_id = $1 AND type = 'peer_added'"

        async def announced() -> bool:
            return bool(await dba.fetch(told, desk.domain_id))

        await eventually(announced)
        assert len(await dba.fetch(told, desk.domain_id)) == 1
        live = "SELECT count(*) FROM identity.node_secret_keys WHERE node_id = $1 AND revoked_at IS NULL"
        assert await dba.fetchval(live, node_id) == 1
    chain = await scene.operator.call("GET", f"/v1/domains/{desk.domain_id}/audit/entries?limit=100")
    rows = [row["object"]["id"] for row in chain.json["items"] if action(row) == "node.register"]
    # The attempt that was killed before its row has none; an effect never lacks one.
    assert rows.count(node_id) == 1 + committed
    assert len(rows) <= 2
