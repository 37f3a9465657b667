"""What was restored is found on the real backends: the anchor and the storage in OpenBao, the rows in PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack.layout import State
from libs.bao import Bao
from libs.clock import SystemClock
from libs.errors import AuditDiverged, AuditUnavailable
from services.audit.checkpoints import Checkpoints
from services.audit.guard import Guard
from services.audit.restores import Restores
from services.audit.store import PgStore
from services.audit.tests.test_ports import NAME
from services.audit.tests.test_store import entry, running, whole
from services.audit.tree_store import PgTrees
from services.audit.vault import BaoAnchors, BaoSigner
from services.audit.writer import GroupWriter

pytestmark = pytest.mark.integration


@pytest.fixture
async def dba(backends: State) -> AsyncIterator[asyncpg.Connection]:
    """The superuser, with triggers off."""
    connection = await asyncpg.connect(backends.superuser_url)
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


@pytest.fixture
def restores(pool: asyncpg.Pool, bao: Bao) -> Restores:
    return Restores(Checkpoints(NAME, PgStore(pool), PgTrees(pool), BaoAnchors(bao), BaoSigner(bao), SystemClock()))


@pytest.fixture
def chain() -> str:
    return str(uuid.uuid4())


async def filled(pool: asyncpg.Pool, guard: Guard, chain: str, count: int) -> list[int]:
    async with running(GroupWriter(pool, guard)) as writer:
        return await asyncio.gather(*(writer.append(entry(chain)) for _ in range(count)))


async def test_replicas_of_one_database_doubt_nothing(pool: asyncpg.Pool, restores: Restores, chain: str) -> None:
    one, other = Guard(restores), Guard(restores)
    for _ in range(5):
        await asyncio.gather(*(filled(pool, guard, chain, 20) for guard in (one, other)))
        await restores.checkpoints.turn(chain)
    assert (one.refused, other.refused) == ({}, {})
    assert await whole(PgStore(pool), chain) == list(range(1, 201))


async def test_an_altered_row_is_found_in_a_storage_that_is_new_to_the_chain(
    pool: asyncpg.Pool, restores: Restores, dba: asyncpg.Connection, chain: str
) -> None:
    guard, anchors = Guard(restores), restores.checkpoints.anchors
    await filled(pool, guard, chain, 9)
    await restores.checkpoints.turn(chain)
    assert chain in await restores.chains()
    assert await anchors.storage(chain) == ""
    await restores.check(chain, None)
    assert await anchors.storage(chain) == (await PgStore(pool).storage()).name
    await dba.execute("UPDATE audit.entries SET relation = 'another' WHERE chain = $1 AND seq = 4", chain)
    await restores.check(chain, None)
    await anchors.found_whole(chain, "another storage")
    for _ in range(2):
        with pytest.raises(AuditDiverged, match="entry 4 is not as it was written"):
            await restores.check(chain, None)


async def test_what_is_cut_off_under_the_writer_is_found_in_the_statement_that_would_append(
    pool: asyncpg.Pool, restores: Restores, dba: asyncpg.Connection, chain: str
) -> None:
    guard, other = Guard(restores), str(uuid.uuid4())
    async with running(GroupWriter(pool, guard)) as writer:
        for _ in range(5):
            await writer.append(entry(chain))
        await dba.execute("DELETE FROM audit.entries WHERE chain = $1 AND seq > 3", chain)
        cut = (
            "UPDATE audit.chains c SET seq = 3, entry_hash = e.entry_hash FROM audit.entries e "
            "WHERE c.chain = $1 AND e.chain = c.chain AND e.seq = 3"
        )
        await dba.execute(cut, chain)
        # In one batch with a chain of which nothing is wrong.
        answers = await asyncio.gather(
            *(writer.append(entry(name)) for name in (chain, other, chain, other)), return_exceptions=True
        )
    assert [type(answer) for answer in answers] == [AuditDiverged, int, AuditDiverged, int]
    assert guard.refused == {chain: "entry 5 was there and is not any longer"}
    assert await whole(PgStore(pool), chain) == [1, 2, 3]


async def test_a_table_that_is_swapped_is_another_storage(
    pool: asyncpg.Pool, restores: Restores, dba: asyncpg.Connection, chain: str
) -> None:
    guard = Guard(restores)
    await filled(pool, guard, chain, 3)
    await dba.execute("SET session_replication_role = origin")
    names = [await PgStore(pool).storage()]
    # VACUUM FULL writes the table anew as a restore does; it merely costs one more look.
    await dba.execute("VACUUM FULL audit.entries")
    names.append(await PgStore(pool).storage())
    assert (names[0].server != names[1].server, names[0].name != names[1].name) == (True, True)
    head = await PgStore(pool).head(chain)
    assert not guard.holds(chain, names[1].server, head, head.entry_hash)
    assert await filled(pool, guard, chain, 1) == [4]


async def test_who_cannot_be_sure_appends_nothing(pool: asyncpg.Pool, restores: Restores, chain: str) -> None:
    class Unsure(Guard):
        def holds(self, *_: object) -> bool:
            return False

    with pytest.raises(AuditUnavailable):
        await filled(pool, Unsure(restores), chain, 1)
    assert (await PgStore(pool).head(chain)).seq == 0
