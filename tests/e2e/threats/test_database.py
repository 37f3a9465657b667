"""S-1 and A-5: what the database may hold, and what it refuses."""

import sys
import uuid

import asyncpg
import pytest

from devstack.layout import StackError
from libs.columns import guard_database
from libs.migrations import declared
from tests.e2e.conftest import Scene
from tests.e2e.world import World, run

pytestmark = pytest.mark.e2e

SCHEMAS = ("identity", "access", "secrets", "mesh", "audit")


async def test_every_schema_is_what_its_service_declares(world: World) -> None:
    connection = await world.superuser()
    try:
        await guard_database(connection, declared(), SCHEMAS)
    finally:
        await connection.close()


async def test_a_column_that_nobody_declared_stops_the_service(scene: Scene) -> None:
    world = scene.story.world
    connection = await world.superuser()
    await world.kill("mesh")
    try:
        await connection.execute("ALTER TABLE mesh.signing_keys ADD COLUMN private_key text")
        with pytest.raises(StackError, match=r"signing_keys\.private_key \(text\) has no class"):
            await world.start("mesh")
    finally:
        await connection.execute("ALTER TABLE mesh.signing_keys DROP COLUMN private_key")
        await connection.close()
        await world.start("mesh")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE identity.node_secret_keys SET wrapped = 'plaintext key'",
        "UPDATE identity.node_secret_keys SET wrapped = 'vault:v1:' || encode(sha256('key'), 'hex')",
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


async def test_a_services_role_reads_no_other_schema_and_makes_no_table(world: World) -> None:
    connection = await world.superuser()
    tables = [
        (row["nspname"], row["relname"])
        for row in await connection.fetch(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'S')",
            list(SCHEMAS),
        )
    ]
    try:
        for role in SCHEMAS:
            await connection.execute(f"SET ROLE {role}")
            for schema, table in tables:
                if schema != role:
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(f"SELECT FROM {schema}.{table}")
            for schema in (*SCHEMAS, "public"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"CREATE TABLE {schema}.t_{uuid.uuid4().hex} (a int)")
            await connection.execute("RESET ROLE")
    finally:
        await connection.close()
    assert {schema for schema, _ in tables} == set(SCHEMAS)
