"""A-5 over the wire: the service's own role, and the owner of its tables."""

import asyncpg
import pytest

from libs.pg import create_pool
from libs.settings import Postgres, Tls
from tests.e2e.conftest import Scene

pytestmark = pytest.mark.e2e


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
