"""The promises of the ports, on the fake and on the real backend alike."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from libs.custody import Secret
from libs.errors import PreconditionFailed, SecretVersionNotFound
from libs.ids import uuid7
from services.secrets.model import SecretRow
from services.secrets.ports import Store, Vault
from services.secrets.store import PgStore
from services.secrets.tests.fakes import FakeStore, FakeVault
from services.secrets.vault import BaoVault

pytestmark = pytest.mark.integration

NOW = timedelta()


@pytest.fixture(params=["fake", "PostgreSQL"])
def store(request: pytest.FixtureRequest, pools: tuple[asyncpg.Pool, asyncpg.Pool]) -> Store:
    return FakeStore() if request.param == "fake" else PgStore(pools[0])


@pytest.fixture(params=["fake", "OpenBao"])
def values(request: pytest.FixtureRequest, vault: BaoVault) -> Vault:
    return FakeVault() if request.param == "fake" else vault


def fresh(name: str = "db", project: UUID | None = None) -> SecretRow:
    return SecretRow(uuid7(), uuid7(), project or uuid7(), name)


async def stored(store: Store, row: SecretRow) -> SecretRow:
    found = await store.find(row.project_id, row.name)
    assert found is not None
    return found


async def test_a_row_is_found_as_it_was_begun_and_only_there(store: Store) -> None:
    row = fresh()
    assert await store.begin_put(row, 0)
    assert await stored(store, row) == replace(row, pending_version=1)
    assert await store.find(uuid7(), row.name) is None
    assert await store.find(row.project_id, "other") is None


async def test_a_write_begins_only_on_the_version_that_it_expects(store: Store) -> None:
    row = fresh()
    assert not await store.begin_put(row, 1)
    assert await store.begin_put(row, 0)
    # The same row again: a creation that is tried once more. Another id: somebody else's creation.
    assert await store.begin_put(row, 0)
    assert not await store.begin_put(fresh(row.name, row.project_id), 0)
    await store.settle(row, 1, [])
    assert not await store.begin_put(row, 0)
    assert not await store.begin_put(row, 2)
    assert await store.begin_put(row, 1)
    assert await stored(store, row) == replace(row, current_version=1, pending_version=2)


async def test_settling_never_goes_back_and_ends_what_it_covers(store: Store) -> None:
    row = fresh()
    await store.begin_put(row, 0)
    await store.settle(row, 0, [])
    assert await stored(store, row) == replace(row, pending_version=1)
    await store.settle(row, 3, [])
    await store.settle(row, 2, [])
    assert await stored(store, row) == replace(row, current_version=3)
    await store.settle(fresh(), 1, [])


async def test_what_was_begun_is_listed_until_it_is_finished(store: Store) -> None:
    row = fresh()
    await store.begin_put(row, 0)
    assert await store.unsettled(row.project_id, NOW) == [replace(row, pending_version=1)]
    assert await store.unsettled(uuid7(), NOW) == []
    await store.settle(row, 1, [])
    assert await store.unsettled(row.project_id, NOW) == []


async def test_a_destroyed_row_is_out_of_sight_at_once_and_its_name_is_free_when_it_is_gone(store: Store) -> None:
    row = fresh()
    await store.begin_put(row, 0)
    await store.settle(row, 1, [])
    await store.remove(row.id)
    assert (await stored(store, row)).visible
    await store.begin_destroy(row, [])
    assert not (await stored(store, row)).visible
    assert await store.page(row.project_id, "", 9) == []
    assert not await store.begin_put(row, 1)
    assert [found.destroying for found in await store.unsettled(row.project_id, NOW)] == [True]
    await store.remove(row.id)
    assert await store.find(row.project_id, row.name) is None
    assert await store.begin_put(fresh(row.name, row.project_id), 0)


async def test_pages_hold_visible_rows_by_name(store: Store) -> None:
    project = uuid7()
    for name in ("b_1", "a", "b-1", "c", "b"):
        row = fresh(name, project)
        await store.begin_put(row, 0)
        if name != "c":
            await store.settle(row, 1, [])
    assert [row.name for row in await store.page(project, "", 3)] == ["a", "b", "b-1"]
    assert [row.name for row in await store.page(project, "b-1", 3)] == ["b_1"]


async def test_a_value_comes_back_as_it_went_in(values: Vault) -> None:
    row = fresh()
    for value in (b"\0\xff binary", b"x" * (1024 * 1024 - 28)):
        version = await values.current_version(row)
        assert await values.write(row, Secret(value), version) == version + 1
        assert bytes((await values.read(row, version + 1)).reveal()) == value
    assert bytes((await values.read(row, 1)).reveal()) == b"\0\xff binary"


async def test_only_the_expected_version_is_written_over(values: Vault) -> None:
    row = fresh()
    assert await values.current_version(row) == 0
    for wrong in (1, 7):
        with pytest.raises(PreconditionFailed):
            await values.write(row, Secret(b"x"), wrong)
    await values.write(row, Secret(b"one"), 0)
    with pytest.raises(PreconditionFailed):
        await values.write(row, Secret(b"x"), 0)
    assert await values.current_version(row) == 1


async def test_a_version_that_is_not_there_is_not_read(values: Vault) -> None:
    row = fresh()
    with pytest.raises(SecretVersionNotFound):
        await values.read(row, 1)
    await values.write(row, Secret(b"one"), 0)
    await values.write(row, Secret(b"two"), 1)
    with pytest.raises(SecretVersionNotFound):
        await values.read(row, 3)
    await values.destroy_version(row, 2)
    await values.destroy_version(row, 2)
    with pytest.raises(SecretVersionNotFound):
        await values.read(row, 2)
    # The number of a destroyed version is not used again.
    assert await values.current_version(row) == 2
    assert bytes((await values.read(row, 1)).reveal()) == b"one"


async def test_what_was_destroyed_is_gone_for_good(values: Vault) -> None:
    row = fresh()
    await values.write(row, Secret(b"one"), 0)
    await values.destroy(row)
    await values.destroy(row)
    with pytest.raises(SecretVersionNotFound):
        await values.read(row, 1)
    assert await values.current_version(row) == 0
