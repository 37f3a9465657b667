"""S-1 and A-5: what the database may hold, and what it refuses."""

import importlib
import sys
import uuid

import asyncpg
import pytest

from libs.columns import CLASSED_COLUMNS, compare
from tests.e2e.conftest import Scene
from tests.e2e.world import World, run

pytestmark = pytest.mark.e2e

SCHEMAS = ("identity", "access", "secrets", "mesh", "audit")


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_every_schema_is_what_its_service_declares(world: World, schema: str) -> None:
    declared = importlib.import_module(f"services.{schema}.columns").COLUMNS
    connection = await world.superuser()
    try:
        found = await connection.fetch(CLASSED_COLUMNS, schema)
    finally:
        await connection.close()
    assert compare({(row["table"], row["column"]): row["checked"] for row in found}, declared) == []


async def test_a_column_that_nobody_declared_stops_the_service(scene: Scene) -> None:
    world = scene.story.world
    connection = await world.superuser()
    await world.kill("mesh")
    try:
        await connection.execute("ALTER TABLE mesh.signing_keys ADD COLUMN private_key text")
        with pytest.raises(RuntimeError, match=r"signing_keys\.private_key has no class"):
            await world.start("mesh")
    finally:
        await connection.execute("ALTER TABLE mesh.signing_keys DROP COLUMN private_key")
        await connection.close()
        await world.start("mesh")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE identity.node_secret_keys SET wrapped = 'plaintext key'",
        "UPDATE identity.node_secret_keys SET fingerprint = 'short'",
        "UPDATE identity.bootstrap_tokens SET digest = 'secret text'",
        "UPDATE identity.sessions SET digest = 'cookie'",
        "UPDATE identity.idp_bindings SET client_secret_ref = 'hunter2'",
    ],
)
async def test_plaintext_is_refused_by_the_database(scene: Scene, statement: str) -> None:
    connection = await scene.story.world.superuser()
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize(("service", "target"), [("audit", "base"), ("identity", "base")])
async def test_a_downgrade_that_would_lose_audit_data_or_keys_is_refused(
    world: World, service: str, target: str
) -> None:
    command = ["-m", "libs.migrations", "--config", str(world.state / "config/migrate.toml"), "--to", target, service]
    with pytest.raises(RuntimeError, match=r"0A000|FeatureNotSupported"):
        await run(sys.executable, *command)
    connection = await world.superuser()
    try:
        assert await connection.fetchval("SELECT count(*) FROM audit.entries") > 0
        assert await connection.fetchval("SELECT count(*) FROM identity.node_secret_keys") > 0
        assert await connection.fetchval("SELECT count(*) FROM identity.sessions") is not None
    finally:
        await connection.close()


@pytest.mark.parametrize("role", ["secrets", "mesh", "audit", "access"])
async def test_a_services_role_reads_no_other_schema(world: World, role: str) -> None:
    connection = await world.superuser()
    try:
        await connection.execute(f"SET ROLE {role}")
        for other in SCHEMAS:
            if other != role:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"CREATE TABLE {other}.t_{uuid.uuid4().hex} (a int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"CREATE TABLE {role}.own (a int)")
    finally:
        await connection.close()
