"""Migrations: alembic revisions that hold SQL text, run by one role that owns the schemas.

`python -m libs.migrations --config migrate.toml identity audit …` brings each schema to its newest revision; services
cannot alter schemas themselves.
"""

import argparse
import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import asyncpg
from alembic import op
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from libs import tls
from libs.settings import Postgres, Settings, Tls, load

ZERO_A000 = "DO $$ BEGIN RAISE EXCEPTION '{reason}' USING ERRCODE = '0A000'; END $$"


class Migrate(Settings):
    """Settings of the migration job."""

    postgres: Postgres
    tls: Tls


def run(sql: str) -> None:
    """Run SQL text, many statements at once, in the migration's transaction."""
    connection = op.get_bind().connection.driver_connection
    assert isinstance(connection, asyncpg.Connection)
    await_only(connection.execute(sql))


def refuse(reason: str) -> None:
    """Refuse a downgrade that would lose audit data or keys: SQLSTATE 0A000."""
    run(ZERO_A000.format(reason=reason))


def scripts(service: str) -> ScriptDirectory:
    """Return the revisions of a service."""
    found = importlib.util.find_spec(f"services.{service}")
    if found is None or found.origin is None:
        raise SystemExit(f"there is no service {service}")
    folder = Path(found.origin).parent / "migrations"
    return ScriptDirectory(str(folder.parent), version_locations=[str(folder)])


async def migrate(settings: Migrate, service: str, target: str) -> None:
    """Bring one service's schema to a revision: "heads", or an older one by its id, "base" for none."""
    postgres = settings.postgres

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(
            host=postgres.host,
            port=postgres.port,
            database=postgres.database,
            user=postgres.user,
            ssl=tls.client(settings.tls),
            server_settings={"search_path": service},
        )

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate, service, target)
    finally:
        await engine.dispose()


def _migrate(connection: Connection, service: str, target: str) -> None:
    directory = scripts(service)

    def steps(revision: Any, _: Any) -> Any:
        current = revision or ()
        known = [script.revision for script in directory.walk_revisions()]
        if target != "heads" and current and (target == "base" or known.index(target) > known.index(current[0])):
            return directory._downgrade_revs(target, current)  # noqa: SLF001 — alembic's own commands call it so
        return directory._upgrade_revs(target, current)  # type: ignore[arg-type]  # noqa: SLF001 — as above

    options = {"fn": steps, "version_table": "alembic_version", "version_table_schema": service}
    context = MigrationContext.configure(connection, opts=options)
    with context.begin_transaction(), Operations.context(context):
        context.run_migrations()
    connection.commit()


def main() -> None:
    """Run the migration job."""
    parser = argparse.ArgumentParser(description="Bring schemas to their newest revision.")
    parser.add_argument("--config", type=Path, required=True, help="settings file (TOML)")
    parser.add_argument("--to", default="heads", help="revision to go to")
    parser.add_argument("services", nargs="+")
    arguments = parser.parse_args()
    settings = load(arguments.config, Migrate)

    async def all_of_them() -> None:
        for service in arguments.services:
            await migrate(settings, service, arguments.to)
            sys.stdout.write(f"{service}: {arguments.to}\n")

    asyncio.run(all_of_them())


if __name__ == "__main__":
    main()
