"""A database of its own in the cluster of the backends, as the shipped `roles.sql` sets one up."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from devstack.layout import State
from devstack.postgres import ROLES


@dataclass(frozen=True)
class Scratch:
    """Where the database is."""

    name: str
    host: str
    port: int

    async def connect(self) -> asyncpg.Connection:
        """Connect as the migration job's role."""
        opened = await asyncpg.connect(user="postgres", database=self.name, host=self.host, port=self.port)
        await opened.execute("SET ROLE migrator")
        return opened


@contextlib.asynccontextmanager
async def scratch(backends: State) -> AsyncIterator[Scratch]:
    """Make the database, with every schema and no table, and drop it after the block."""
    made = Scratch(f"scratch_{uuid.uuid4().hex}", str(backends / "postgres/run"), backends.port("postgres"))
    owner = await asyncpg.connect(user="postgres", database="postgres", host=made.host, port=made.port)
    try:
        await owner.execute(f"CREATE DATABASE {made.name}")
        inside = await asyncpg.connect(user="postgres", database=made.name, host=made.host, port=made.port)
        # Roles belong to the cluster and are there.
        statements = [
            one for one in ROLES.read_text().replace("plexsphere", made.name).split(";") if " ROLE " not in one
        ]
        await inside.execute(";".join(statements))
        await inside.close()
        yield made
        await owner.execute(f"DROP DATABASE {made.name} WITH (FORCE)")
    finally:
        await owner.close()
