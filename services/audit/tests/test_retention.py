"""A-5 on the real database: nothing of the record is changed, deleted or migrated away, by any hand that SQL can hold.

Revisions and tables are those that there are, so that a new one is tried by itself.
"""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack.layout import State
from libs.migrations import migrate_over, scripts
from libs.pg import connection
from libs.tests.scratch import Scratch, scratch
from services.audit.tests.fakes import trusting
from services.audit.tests.test_store import entry, running
from services.audit.writer import GroupWriter

pytestmark = pytest.mark.integration

DIRECTORY = scripts("audit")
REVISIONS = [script.revision for script in DIRECTORY.walk_revisions()]
TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'audit'::regnamespace AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
"""
GUARDED = """
SELECT EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = $1::regclass AND tgfoid = 'audit.refuse_change'::regproc
    AND tgenabled <> 'D' AND tgtype::int & CASE $2 WHEN 'DELETE' THEN 8 WHEN 'UPDATE' THEN 16 ELSE 32 END > 0
)
"""
# What the service itself does: heads move on, personal records are erased.
ITS_OWN = {("chains", "UPDATE"), ("personal", "DELETE")}
ATTEMPTS = {
    "UPDATE": "UPDATE audit.{} SET chain = chain",
    "DELETE": "DELETE FROM audit.{}",
    "TRUNCATE": "TRUNCATE audit.{} CASCADE",
    "DROP": "DROP TABLE audit.{} CASCADE",
    "RENAME": "ALTER TABLE audit.{} RENAME TO gone",
    "DISABLE": "ALTER TABLE audit.{} DISABLE TRIGGER ALL",
    "DROP TRIGGER": "DROP TRIGGER refuse_change ON audit.{}",
    "RULE": "CREATE RULE hide AS ON INSERT TO audit.{} DO INSTEAD NOTHING",
    "DETACH": "ALTER TABLE audit.{} DETACH PARTITION audit.chains",
    "INHERIT": "ALTER TABLE audit.{} INHERIT audit.chains",
    "COLUMN": "ALTER TABLE audit.{} DROP COLUMN chain",
    "POLICY": "ALTER TABLE audit.{} ENABLE ROW LEVEL SECURITY",
    "OWNER": "ALTER TABLE audit.{} OWNER TO audit",
}
DENIED = {"42501", "0A000"}


@pytest.fixture
async def database(backends: State) -> AsyncIterator[Scratch]:
    async with scratch(backends) as made:
        yield made


@pytest.fixture
async def owner(backends: State, pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """The owner of the tables, who holds the migrations, with a chain to lose."""
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        await writer.append(entry("01990000-0000-7000-8000-00000000a005"))
    opened = await asyncpg.connect(backends.superuser_url)
    await opened.execute("SET ROLE migrator")
    yield opened
    await opened.close()


async def state_of(lent: asyncpg.Connection, statement: str) -> str:
    """Return the SQLSTATE that a statement is refused with, and undo it when it is not."""
    transaction = lent.transaction()
    await transaction.start()
    try:
        return await lent.execute(statement)
    except asyncpg.PostgresError as refused:
        return str(refused.sqlstate)
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("revision", REVISIONS)
async def test_no_downgrade_goes_below_a_revision(database: Scratch, revision: str) -> None:
    below = DIRECTORY.get_revision(revision).down_revision or "base"
    assert isinstance(below, str)
    for start in dict.fromkeys((revision, "heads")):
        await migrate_over(database.connect, {"audit": DIRECTORY}, start)
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await migrate_over(database.connect, {"audit": DIRECTORY}, below)


async def test_the_services_own_role_changes_nothing_but_what_it_must(
    owner: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    for (table,) in await owner.fetch(TABLES):
        async with connection(pool, "attempts") as lent:
            found = {name: await state_of(lent, sql.format(table)) for name, sql in ATTEMPTS.items()}
        allowed = {name for name, state in found.items() if state not in DENIED}
        assert allowed == {name for own, name in ITS_OWN if own == table}, (table, found)


async def test_the_owner_is_refused_by_the_tables(owner: asyncpg.Connection) -> None:
    for (table,) in await owner.fetch(TABLES):
        refused = {"UPDATE", "DELETE", "TRUNCATE"} - {name for own, name in ITS_OWN if own == table}
        for name in refused:
            guarded = await owner.fetchval(GUARDED, f"audit.{table}", name)
            assert guarded, f"nothing refuses {name} on audit.{table}"
            if name == "TRUNCATE" or await owner.fetchval(f"SELECT EXISTS (SELECT FROM audit.{table})"):
                assert await state_of(owner, ATTEMPTS[name].format(table)) == "0A000", (table, name)


async def test_a_head_goes_on_and_never_back(owner: asyncpg.Connection) -> None:
    for change in ("seq = seq - 1", "chain = chain || 'x'"):
        assert await state_of(owner, f"UPDATE audit.chains SET {change} WHERE seq > 0") == "0A000"
    assert (await state_of(owner, "UPDATE audit.chains SET seq = seq + 1 WHERE seq > 0")).startswith("UPDATE")
