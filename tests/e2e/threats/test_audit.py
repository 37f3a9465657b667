"""A-1 and A-5 over the wire: a hostile DBA with superuser rights, and the service's own role."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from libs.pg import create_pool
from libs.settings import Postgres, Tls
from tests.e2e.conftest import Scene
from tests.e2e.stories.main_job import entries, verify

pytestmark = pytest.mark.e2e

WHERE = "WHERE chain = $1 AND seq = $2"


@pytest.fixture
async def dba(scene: Scene) -> AsyncIterator[asyncpg.Connection]:
    """The superuser, with triggers off."""
    connection = await scene.story.world.superuser()
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


REWRITES = {
    "relation": "'write'",
    "object_id": "'somebody-else'",
    "object_type": "'node'",
    "reason": "CASE WHEN reason = 'granted' THEN 'unknown' ELSE 'granted' END",
    "pseudonym": "repeat('0', 64)",
    "correlation_id": "'another'",
    "occurred_at": "occurred_at - interval '1 hour'",
    "context": "'{}'::jsonb",
    "canonical": "canonical || ' '::bytea",
    "entry_hash": "sha256('other')",
    "prev_hash": "sha256('other')",
}


@pytest.mark.parametrize("column", REWRITES)
async def test_a_rewritten_column_is_found_at_its_sequence(scene: Scene, dba: asyncpg.Connection, column: str) -> None:
    scene.story.operator = scene.operator
    chain, seq = scene.story.domain_id, (await entries(scene.story))[3]["seq"]
    before = await dba.fetchval(f"SELECT {column} FROM audit.entries {WHERE}", chain, seq)
    await dba.execute(f"UPDATE audit.entries SET {column} = {REWRITES[column]} {WHERE}", chain, seq)
    try:
        verdict = await verify(scene.story)
    finally:
        await dba.execute(f"UPDATE audit.entries SET {column} = $3 {WHERE}", chain, seq, before)
    assert (verdict["ok"], verdict.get("divergent_seq")) == (False, seq)
    assert (await verify(scene.story))["ok"] is True


async def test_a_deleted_row_is_found(scene: Scene, dba: asyncpg.Connection) -> None:
    scene.story.operator = scene.operator
    chain, seq = scene.story.domain_id, (await entries(scene.story))[3]["seq"]
    transaction = dba.transaction()
    await dba.execute(f"CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM audit.entries {WHERE}", chain, seq)
    await dba.execute(f"DELETE FROM audit.entries {WHERE}", chain, seq)
    try:
        verdict = await verify(scene.story)
    finally:
        await transaction.start()
        await dba.execute("INSERT INTO audit.entries SELECT * FROM kept")
        await dba.execute("DROP TABLE kept")
        await transaction.commit()
    assert verdict["ok"] is False
    assert verdict["divergent_seq"] in {seq, seq + 1}
    assert (await verify(scene.story))["ok"] is True


async def test_a_rewritten_personal_record_is_found(scene: Scene, dba: asyncpg.Connection) -> None:
    scene.story.operator = scene.operator
    chain, seq = scene.story.domain_id, (await entries(scene.story))[3]["seq"]
    before = await dba.fetchval(f"SELECT subject_id FROM audit.personal {WHERE}", chain, seq)
    await dba.execute(f"UPDATE audit.personal SET subject_id = 'framed' {WHERE}", chain, seq)
    try:
        verdict = await verify(scene.story)
    finally:
        await dba.execute(f"UPDATE audit.personal SET subject_id = $3 {WHERE}", chain, seq, before)
    assert (verdict["ok"], verdict.get("divergent_seq")) == (False, seq)


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("UPDATE audit.entries SET reason = 'granted'", {"42501", "0A000"}),
        ("DELETE FROM audit.entries", {"42501", "0A000"}),
        ("TRUNCATE audit.entries", {"42501", "0A000"}),
        ("DROP TABLE audit.entries", {"42501"}),
        ("ALTER TABLE audit.entries DISABLE TRIGGER ALL", {"42501"}),
        ("UPDATE audit.idempotency SET seq = 1", {"42501", "0A000"}),
        ("SELECT * FROM identity.node_secret_keys", {"42501"}),
    ],
)
async def test_the_services_own_role_cannot_change_the_record(scene: Scene, statement: str, state: set[str]) -> None:
    world = scene.story.world
    pki = world.state / "pki"
    tls = Tls(certificate_file=pki / "audit.crt", key_file=pki / "audit.key", ca_file=pki / "ca.crt")
    port = int(world.env["PLEX_PG_SUPERUSER"].rsplit("port=", 1)[1])
    at = Postgres(host="127.0.0.1", port=port, database="plexsphere", user="audit", min_size=1)
    async with create_pool(at, tls) as pool:
        with pytest.raises(asyncpg.PostgresError) as refused:
            await pool.execute(statement)
    assert refused.value.sqlstate in state


@pytest.mark.parametrize("statement", ["UPDATE audit.entries SET reason = reason", "DELETE FROM audit.entries"])
async def test_even_the_owner_is_refused_by_the_table(scene: Scene, statement: str) -> None:
    connection = await scene.story.world.superuser()
    try:
        await connection.execute("SET ROLE migrator")
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_who_is_no_auditor_learns_nothing(scene: Scene) -> None:
    node = scene.edge.as_bearer(scene.story.node_a.bearer)
    assert (await node.call("GET", f"/v1/domains/{scene.story.domain_id}/audit/entries")).status == 401
    missing = await scene.operator.call("GET", f"/v1/domains/{scene.story.domain_id}/audit/entries/999999")
    assert missing.status == 404
