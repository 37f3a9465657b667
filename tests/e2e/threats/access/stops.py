"""Stops an issue at each of its steps: by a lock in the database, or by freezing whom it asks there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from tests.e2e.attacker import eventually
from tests.e2e.freeze import frozen
from tests.e2e.outside import Answer
from tests.e2e.sessions import Person
from tests.e2e.threats.access.conftest import Stage
from tests.e2e.world import World

WAITING = "SELECT pid FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"
GONE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclass(frozen=True)
class Step:
    """Where an issue waits: for a process that is frozen, or as a role of the database for a lock."""

    frozen: str = ""
    role: str = ""
    lock: str = ""


STEPS = {
    "before the relation": Step(frozen="spicedb"),
    "before its place": Step(
        role="access", lock="SELECT pg_advisory_xact_lock(hashtextextended('access.identity:{person}', 0))"
    ),
    "before its row": Step(role="audit", lock="LOCK TABLE audit.entries IN SHARE MODE"),
    "before the signature": Step(frozen="openbao"),
    "before the session": Step(role="access", lock="LOCK TABLE access.sessions IN SHARE MODE"),
}


@asynccontextmanager
async def stopped(world: World, step: Step, person: str, *, finishes: bool = False) -> AsyncIterator[None]:
    """Hold a step for the block; what waits in the database then is undone at its end, unless it finishes."""
    if step.frozen:
        async with frozen(world, step.frozen):
            yield
        return
    dba = await world.superuser()
    try:
        await dba.execute("BEGIN")
        await dba.execute(step.lock.format(person=person))
        yield
        # The database itself may have been killed.
        with contextlib.suppress(*GONE):
            if not finishes:
                for row in await dba.fetch(WAITING, step.role):
                    await dba.execute("SELECT pg_terminate_backend($1, 5000)", row["pid"])
            await dba.execute("ROLLBACK")
    finally:
        with contextlib.suppress(*GONE):
            await dba.close(timeout=2)


async def reached(stage: Stage, step: Step, granted: set[str]) -> None:
    """Return once an issue waits at a step."""
    if step.frozen == "spicedb":
        await asyncio.sleep(0.4)
        return

    async def waits() -> bool:
        if step.role:
            return bool(await stage.dba.fetch(WAITING, step.role))
        # It has its row, and that is all.
        return set(await stage.granted()) > granted

    await eventually(waits)


@asynccontextmanager
async def attempted(
    stage: Stage, step: Step, person: Person, key: str, *, finishes: bool = False
) -> AsyncIterator[asyncio.Task[Answer]]:
    """Ask for a session on node B, and hold it at a step for the block."""
    granted = set(await stage.granted())
    async with stopped(stage.world, step, person.subject, finishes=finishes):
        asking = stage.issue(person.edge, idempotency_key=key, resource_id=stage.resources[1])
        attempt = asyncio.create_task(asking)
        await reached(stage, step, granted)
        assert not attempt.done()
        yield attempt
