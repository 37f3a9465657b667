"""The migration job on the real database: what it must not commit, and where it never goes back."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from devstack.layout import State
from devstack.services import WITH_SCHEMA
from libs.columns import ColumnMismatch
from libs.migrations import declared, migrate_over, scripts
from libs.tests.scratch import Scratch, scratch

pytestmark = pytest.mark.integration

ADD = "ALTER TABLE identity.nodes ADD COLUMN "
HASH = "identity.bootstrap_tokens DROP CONSTRAINT bootstrap_tokens_digest_check, ADD CONSTRAINT c CHECK "
WRAPPED = "identity.node_secret_keys DROP CONSTRAINT node_secret_keys_wrapped_check, ADD CONSTRAINT c CHECK "
BAD = {
    "a key in plain text": (ADD + "nsk text", "identity.nodes.nsk"),
    "a key in a form of its own": (ADD + "nsk text CHECK (nsk ~ '^[0-9a-f]{64}$')", "identity.nodes.nsk"),
    "a secret in an array": (ADD + "client_secret integer[]", "identity.nodes.client_secret"),
    "a token as a UUID": (ADD + "token uuid", "identity.nodes.token"),
    "bits": (ADD + "blob bit varying", "identity.nodes.blob"),
    "a domain over a harmless type": (
        "CREATE DOMAIN identity.small AS integer; " + ADD + "n identity.small",
        "nodes.n",
    ),
    "a range": (ADD + "span int8range", "identity.nodes.span"),
    "any check on a hash": (f"ALTER TABLE {HASH} (digest <> '')", "identity.bootstrap_tokens.digest"),
    "a check of two columns": (f"ALTER TABLE {HASH} (length(digest) = 32 OR nonce IS NULL)", "bootstrap_tokens.digest"),
    "a check that old rows need not pass": (f"ALTER TABLE {HASH} (length(digest) = 32) NOT VALID", "tokens.digest"),
    "a check that nobody enforces": (f"ALTER TABLE {HASH} (length(digest) = 32) NOT ENFORCED", "tokens.digest"),
    "room for a plaintext key": (
        f"ALTER TABLE {WRAPPED} (wrapped ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{{60,}}=*$')",
        "identity.node_secret_keys.wrapped",
    ),
    "a table of another schema": ("CREATE TABLE audit.notes (note text)", "audit.notes.note"),
    "a copy that nothing checks": (
        "CREATE MATERIALIZED VIEW identity.copy AS SELECT digest FROM identity.sessions",
        "identity.copy.digest",
    ),
    "a view": ("CREATE VIEW identity.look AS SELECT digest FROM identity.sessions", "identity.look.digest"),
    "a large object": ("SELECT lo_from_bytea(0, 'key')", "large objects"),
    "a column that is gone": ("ALTER TABLE identity.nodes DROP COLUMN public_key", "nodes.public_key"),
}
SHAPE = """
SELECT c.oid::regclass || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = to_regnamespace($1) AND c.relkind IN ('r', 'p', 'm', 'f', 'v') AND a.attnum > 0
UNION ALL SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = to_regnamespace($1)
UNION ALL SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = to_regnamespace($1) AND NOT t.tgisinternal
"""


@pytest.fixture
async def database(backends: State) -> AsyncIterator[Scratch]:
    async with scratch(backends) as made:
        yield made


def with_revision(folder: Path, service: str, sql: str) -> ScriptDirectory:
    """Return the revisions of a service and one more."""
    known = scripts(service)
    (folder / "9999_go_on.py").write_text(
        f"from libs.migrations import run\nrevision = '9999'\ndown_revision = {known.get_current_head()!r}\n"
        f"def upgrade():\n    run({sql!r})\n"
    )
    return ScriptDirectory(known.dir, version_locations=[*(known.version_locations or []), str(folder)])


@pytest.mark.parametrize("name", BAD)
async def test_the_job_commits_no_bad_migration(database: Scratch, tmp_path: Path, name: str) -> None:
    sql, where = BAD[name]
    services = {service: scripts(service) for service in WITH_SCHEMA}
    with pytest.raises(ColumnMismatch, match=where):
        await migrate_over(database.connect, services | {"identity": with_revision(tmp_path, "identity", sql)}, "heads")
    lent = await database.connect()
    assert await lent.fetchval("SELECT to_regclass('identity.nodes')") is None, "nothing of it was committed"
    await lent.close()


async def test_a_good_migration_is_committed(database: Scratch, tmp_path: Path) -> None:
    good = with_revision(tmp_path, "identity", ADD + "seen_count integer")
    await migrate_over(database.connect, {"identity": good}, "heads")
    lent = await database.connect()
    assert await lent.fetchval("SELECT version_num FROM identity.alembic_version") == "9999"
    await lent.close()


@pytest.mark.parametrize("schema", ["public", "spare"])
async def test_what_lies_in_a_schema_of_nobody_stops_the_job(database: Scratch, schema: str) -> None:
    lent = await database.connect()
    await lent.execute(f"RESET ROLE; CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE {schema}.t (a integer)")
    await lent.close()
    with pytest.raises(ColumnMismatch, match=rf"{schema}\.t\.a: no service owns schema {schema}"):
        await migrate_over(database.connect, {"access": scripts("access")}, "heads")


def test_every_schema_has_declarations() -> None:
    assert set(declared()) == set(WITH_SCHEMA)


@pytest.mark.parametrize("service", WITH_SCHEMA)
async def test_no_downgrade_takes_a_column_a_check_or_a_trigger_away(database: Scratch, service: str) -> None:
    """A revision that changes one of them is found by what it does, so none can be forgotten."""
    directory = scripts(service)
    lent = await database.connect()
    below, refused = "base", []
    for script in reversed(list(directory.walk_revisions())):
        await migrate_over(database.connect, {service: directory}, script.revision)
        shape = {row[0] for row in await lent.fetch(SHAPE, service)}
        try:
            await migrate_over(database.connect, {service: directory}, below)
        except asyncpg.FeatureNotSupportedError:
            refused.append(script.revision)
        left = {row[0] for row in await lent.fetch(SHAPE, service)}
        assert left == shape, f"{service} {script.revision}: use libs.migrations.refuse in its downgrade"
        await migrate_over(database.connect, {service: directory}, script.revision)
        below = script.revision
    assert refused or service == "access"
    await lent.close()
