"""Migrations: alembic revisions that hold SQL text, run by one role that owns the schemas.

`python -m libs.migrations --config migrate.toml identity audit …` brings each schema to its newest revision, all in one
transaction, which the column guard sees before it commits; services cannot alter schemas themselves.
"""

import argparse
import asyncio
import importlib.util
import pkgutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg
from alembic import op
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from libs import tls
from libs.columns import Declared, guard_database
from libs.settings import Postgres, Settings, StartRefused, Tls, load

ZERO_A000 = "DO $$ BEGIN RAISE EXCEPTION '{reason}' USING ERRCODE = '0A000'; END $$"


class Migrate(Settings):
    """Settings of the migration job."""

    postgres: Postgres
    tls: Tls


def run(sql: str) -> None:
    """Run SQL text, many statements at once, in the migration's transaction."""
    await_only(_driver(op.get_bind()).execute(sql))


def _driver(connection: Connection) -> asyncpg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, asyncpg.Connection)
    return driver


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


def declared() -> dict[str, Declared]:
    """Return what each service of this installation declares of its schema."""
    found = {}
    for module in pkgutil.iter_modules(importlib.import_module("services").__path__):
        name = f"services.{module.name}.columns"
        if importlib.util.find_spec(name):
            found[module.name] = importlib.import_module(name).COLUMNS
    return found


async def migrate(settings: Migrate, services: list[str], target: str) -> None:
    """Bring schemas to a revision: "heads", or for one service an older one by its id, "base" for none."""
    postgres = settings.postgres

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(
            host=postgres.host,
            port=postgres.port,
            database=postgres.database,
            user=postgres.user,
            ssl=tls.client(settings.tls),
        )

    await migrate_over(connect, {service: scripts(service) for service in services}, target)


async def migrate_over(
    connect: Callable[[], Awaitable[asyncpg.Connection]], services: Mapping[str, ScriptDirectory], target: str
) -> None:
    """Do so over a connection of the caller's, with the caller's revisions."""
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
    try:
        # All schemas or none: the guard sees them as they would be, and what it refuses is never committed.
        async with engine.begin() as connection:
            for service, directory in services.items():
                await connection.run_sync(_migrate, service, directory, target)
            await connection.run_sync(_guard, services, target)
    finally:
        await engine.dispose()


def _migrate(connection: Connection, service: str, directory: ScriptDirectory, target: str) -> None:
    def steps(revision: Any, _: Any) -> Any:
        current = revision or ()
        known = [script.revision for script in directory.walk_revisions()]
        if target != "heads" and current and (target == "base" or known.index(target) > known.index(current[0])):
            return directory._downgrade_revs(target, current)  # noqa: SLF001 — alembic's own commands call it so
        return directory._upgrade_revs(target, current)  # type: ignore[arg-type]  # noqa: SLF001 — as above

    connection.execute(text("SELECT set_config('search_path', :service, true)"), {"service": service})
    options = {"fn": steps, "version_table": "alembic_version", "version_table_schema": service}
    context = MigrationContext.configure(connection, opts=options)
    with context.begin_transaction(), Operations.context(context):
        context.run_migrations()


def _guard(connection: Connection, services: Mapping[str, ScriptDirectory], target: str) -> None:
    complete = [name for name, directory in services.items() if target in {"heads", directory.get_current_head()}]
    await_only(guard_database(_driver(connection), declared(), complete))


def main() -> None:
    """Run the migration job."""
    parser = argparse.ArgumentParser(description="Bring schemas to their newest revision.")
    parser.add_argument("--config", type=Path, required=True, help="settings file (TOML)")
    parser.add_argument("--to", default="heads", help="revision to go to")
    parser.add_argument("services", nargs="+")
    arguments = parser.parse_args()
    try:
        asyncio.run(migrate(load(arguments.config, Migrate), arguments.services, arguments.to))
    except StartRefused as error:
        raise SystemExit(f"nothing was migrated: {error}") from None
    for service in arguments.services:
        sys.stdout.write(f"{service}: {arguments.to}\n")


if __name__ == "__main__":
    main()
