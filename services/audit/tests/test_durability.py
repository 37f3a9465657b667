"""An acknowledged row is on disk: PostgreSQL is durable wherever audit runs, or audit does not start."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack.layout import ROOT, State
from libs.pg import DURABLE, NotDurable, check_durable, create_pool
from services.audit.settings import AuditSettings

pytestmark = pytest.mark.integration

SERVER = [name for name in DURABLE if name != "synchronous_commit"]
OFF = {
    "the role": "ALTER ROLE audit SET synchronous_commit = off",
    "the role in the database": "ALTER ROLE audit IN DATABASE plexsphere SET synchronous_commit = off",
    "the database": "ALTER DATABASE plexsphere SET synchronous_commit = off",
    "the server": "ALTER SYSTEM SET synchronous_commit = off",
}


@contextlib.asynccontextmanager
async def said(backends: State, statement: str) -> AsyncIterator[None]:
    """Have a superuser set something for the block."""
    dba = await asyncpg.connect(backends.superuser_url)

    async def execute(sql: str) -> None:
        await dba.execute(sql)
        await dba.execute("SELECT pg_reload_conf()")
        # The server takes it at its leisure; who connects then has it.
        await asyncio.sleep(0.3)

    await execute(statement)
    try:
        yield
    finally:
        await execute(statement.replace("= off", "= on"))
        if "SYSTEM" not in statement:
            await execute(statement.replace("SET synchronous_commit = off", "RESET synchronous_commit"))
        await dba.close()


@pytest.mark.parametrize("where", OFF)
async def test_a_session_waits_for_the_disk_whatever_is_set_elsewhere(
    backends: State, settings: AuditSettings, where: str
) -> None:
    async with said(backends, OFF[where]), create_pool(settings.postgres, settings.tls) as pool:
        assert await pool.fetchval("SHOW synchronous_commit") == "on"
        await check_durable(pool)


@pytest.mark.parametrize("name", SERVER)
async def test_it_does_not_start_where_a_crash_could_lose_what_was_acknowledged(backends: State, name: str) -> None:
    async with said(backends, f"ALTER SYSTEM SET {name} = off"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.audit", "--config", backends / "config/audit.toml",
            cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                _, told = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert (process.returncode, told.decode()) == (
        2, f"refused to start: PostgreSQL runs with {name} = off; it must be on\n",
    )  # fmt: skip


@pytest.mark.parametrize("name", SERVER)
async def test_what_is_turned_off_later_is_found(backends: State, pool: asyncpg.Pool, name: str) -> None:
    await check_durable(pool)
    async with said(backends, f"ALTER SYSTEM SET {name} = off"):
        with pytest.raises(NotDurable, match=name):
            await check_durable(pool)
    await check_durable(pool)
