"""Backups of the record with the tools of PostgreSQL: dumped, altered in a database beside it, restored over it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from devstack.layout import StackError, State
from plexsphere.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.e2e.attacker import eventually, peer
from tests.e2e.ledger import Ledger
from tests.e2e.world import PLEXCTL, World, client_program, run

BEHIND = """
SELECT count(*) FROM audit.chains c
WHERE c.seq <> coalesce((SELECT max(size) FROM audit.checkpoints k WHERE k.chain = c.chain), 0)
"""


@dataclass(frozen=True)
class Backups:
    """Dumps of schema `audit`, in a folder."""

    world: World
    folder: Path

    @property
    def live(self) -> str:
        """The database that the service uses."""
        return self.world.env["PLEX_PG_SUPERUSER"]

    async def dump(self, name: str, url: str = "") -> Path:
        """Dump the schema."""
        path = self.folder / f"{name}.sql"
        await run(client_program("pg_dump"), "--schema=audit", "--file", path, url or self.live)
        return path

    async def restore(self, path: Path, url: str = "") -> None:
        """Replace the schema by a dump, all at once."""
        await run(
            client_program("psql"), "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1",
            "--command=DROP SCHEMA IF EXISTS audit CASCADE", f"--file={path}", url or self.live,
        )  # fmt: skip

    async def altered(self, ledger: Ledger, name: str, change: Any) -> Path:
        """Dump a copy of the present state in which one chain was changed."""
        present, scratch = await self.dump("present"), self.live.replace("/plexsphere?", "/scratch?")
        await ledger.dba.execute("CREATE DATABASE scratch")
        try:
            await self.restore(present, scratch)
            dba = await asyncpg.connect(scratch)
            try:
                await dba.execute("SET session_replication_role = replica")
                await change(replace(ledger, dba=dba))
            finally:
                await dba.close()
            return await self.dump(name, scratch)
        finally:
            await ledger.dba.execute("DROP DATABASE scratch")


async def settled(ledger: Ledger) -> None:
    """Wait until every chain is checkpointed as it is."""

    async def done() -> bool:
        return not await ledger.dba.fetchval(BEHIND)

    await eventually(done)


async def ready(world: World) -> bool:
    """Say whether audit is ready."""
    async with peer(world, "audit", "probe") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with contextlib.suppress(Exception):
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return False


@contextlib.asynccontextmanager
async def stopped(world: World) -> AsyncIterator[None]:
    """Have audit stopped for the block, and started after it whether or not it gets ready."""
    await world.kill("audit")
    try:
        yield
    finally:
        starting = asyncio.create_task(world.start("audit"))
        starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        await eventually(lambda: serving(world))


async def serving(world: World) -> bool:
    """Say whether audit answers at all."""
    async with peer(world, "audit", "probe") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with contextlib.suppress(Exception):
            await stub.Check(health_pb2.HealthCheckRequest(service="live"), timeout=2)
            return True
    return False


async def plexctl(world: World, *arguments: str | Path) -> tuple[int, str]:
    """Run a command as the operator; returns its status and what it said."""
    process = await asyncio.create_subprocess_exec(
        *PLEXCTL, "audit", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=world.env,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def acknowledge(world: World, note: str, caller: str = "operator") -> list[str]:
    """Send a note with the certificate of a process."""
    async with peer(world, "audit", caller) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        stub = audit_pb2_grpc.AuditRestoreServiceStub(channel)
        answer = await stub.Acknowledge(audit_pb2.AcknowledgeRequest(note=note), timeout=20)
        return list(answer.chains)


async def mend(world: World, folder: Path) -> None:
    """Acknowledge whatever is refused: a chain that stays refused would keep audit from being ready for good."""
    for _ in range(3):
        status, _ = await plexctl(world, "check-restore", "--statement", folder / "mend.txt")
        if status == 0:
            break
        await plexctl(world, "acknowledge-restore", folder / "mend.txt")
    with contextlib.suppress(StackError):
        await world.start("audit")
    assert State(world.state).control.exists()
