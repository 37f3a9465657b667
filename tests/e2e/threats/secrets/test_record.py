"""F-2: no byte leaves without its row, whatever happens to audit; a row without its byte is the price of that."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
import pytest

from tests.e2e.faults.test_legs import gone
from tests.e2e.freeze import frozen
from tests.e2e.outside import Answer
from tests.e2e.threats.secrets.conftest import AT_ONCE, READERS, Stage, counted
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

UNRECORDED = "503 audit_unavailable"
# A database that a busy machine keeps waiting is missed before audit is.
MISSED = {UNRECORDED, "503 limiter_unavailable"}
ALL = READERS * AT_ONCE
# The edge waits for ten seconds; whoever misses audit says so long before.
ANSWERED_WITHIN_S = 6.0
DISCONNECT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'audit'"


@asynccontextmanager
async def read_only(world: World) -> AsyncIterator[None]:
    """Let audit read its database and not write to it."""
    dba = await world.superuser()
    try:
        await dba.execute("ALTER ROLE audit SET default_transaction_read_only = on")
        await dba.execute(DISCONNECT)
        yield
    finally:
        await dba.execute("ALTER ROLE audit RESET default_transaction_read_only")
        await dba.execute(DISCONNECT)
        await dba.close()


@asynccontextmanager
async def held(world: World, table: str = "audit.entries") -> AsyncIterator[None]:
    """Hold a lock that every write to a table waits for."""
    dba = await world.superuser()
    try:
        async with dba.transaction():
            await dba.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            yield
    finally:
        await dba.close()


def audit(away: Callable[[World, str], AbstractAsyncContextManager[None]]) -> Callable[[World], "Away"]:
    """Return what takes audit away."""
    return lambda world: away(world, "audit")


Away = AbstractAsyncContextManager[None]
WAYS: dict[str, Callable[[World], Away]] = {
    "killed": audit(gone),
    "stopped": audit(frozen),
    "its database is read-only": read_only,
    "its database hangs": held,
}


@pytest.mark.parametrize("way", WAYS)
async def test_without_audit_nothing_is_released(stage: Stage, way: str) -> None:
    await stage.back()
    async with stage.accounted() as answers:
        async with WAYS[way](stage.world):
            await stage.rest()
            began = time.monotonic()
            answers.extend(await stage.burst())
            assert time.monotonic() - began < ANSWERED_WITHIN_S
            assert counted(answers).keys() <= MISSED
            assert counted(answers)[UNRECORDED]
        answers.extend(await settled(stage))


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_released_while_audit_goes_has_its_rows_to_the_unit(stage: Stage, way: str) -> None:
    await stage.back()
    async with stage.accounted() as answers:
        async with stage.bursting() as asking, WAYS[way](stage.world):
            late = await stage.burst(1)
            answers.extend(await asking)
        assert counted(answers).total() == ALL
        assert counted(answers).keys() <= {"200", *MISSED}
        assert counted(late).keys() <= MISSED
        answers.extend([*late, *await settled(stage)])


async def settled(stage: Stage) -> list[Answer]:
    """Read until all is well again: whatever audit was asked before then has its row or never gets one."""
    answers = await stage.back()
    await asyncio.sleep(0.3)
    return answers


async def test_slow_audit_delays_every_byte_and_loses_none(stage: Stage) -> None:
    await stage.back()
    async with stage.accounted() as answers:
        await stage.rest()
        async with frozen(stage.world, "audit"):
            reads = [asyncio.create_task(stage.read(node)) for node in stage.readers]
            await asyncio.sleep(1)
            assert not any(read.done() for read in reads)
        answers.extend(await asyncio.gather(*reads))
        assert counted(answers) == {"200": READERS}


async def test_who_hangs_up_has_its_row_and_no_byte(stage: Stage) -> None:
    """Asked, decided, recorded, and nobody there any more: the row stands, one too many and never one too few."""
    await stage.back()
    before = await stage.rows()
    await stage.rest()
    async with held(stage.world):
        reads = [asyncio.create_task(stage.read(node)) for node in stage.readers]
        await asyncio.sleep(0.3)
        for read in reads:
            read.cancel()
        seen = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(one) for one in seen} == {asyncio.CancelledError}
    await settled(stage)
    # The second eight are those that see that all is well.
    assert before + READERS <= await stage.rows() <= before + 2 * READERS


async def test_the_chain_of_all_that_verifies(stage: Stage) -> None:
    verified = await stage.operate("POST", f"/v1/domains/{stage.story.domain_id}/audit/verify", {})
    assert verified.json["ok"] is True
    with pytest.raises(asyncpg.FeatureNotSupportedError):
        await stage.dba.execute("UPDATE audit.entries SET reason = 'granted' WHERE chain = $1", stage.story.domain_id)
