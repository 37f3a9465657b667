"""A-4 over the wire: who holds the archive alters it, who holds the database alters that behind the archive."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from libs.archive import pack, unpack
from tests.e2e.attacker import eventually
from tests.e2e.ledger import Ledger

pytestmark = pytest.mark.e2e

COMPARISON = "archive_comparison"
DATABASE_IS_RIGHT = "the database is as it was signed, the archive is not as it was signed"
ARCHIVE_IS_RIGHT = "the database is not as it was signed, the archive is as it was signed"


async def told(ledger: Ledger) -> str:
    """Wait for a comparison that finds something, and return what it says."""

    async def found() -> bool:
        return bool(ledger.alarms(COMPARISON))

    await eventually(found)
    return ledger.alarms(COMPARISON)[0]


async def two_segments(ledger: Ledger) -> list[Path]:
    """Have more than one object archived."""
    await ledger.archived()
    await ledger.fill(5)
    objects = await ledger.archived()
    assert len(objects) >= 2
    return objects


def altered(path: Path) -> None:
    segment = unpack(path.read_bytes())
    path.write_bytes(pack(type(segment)(**vars(segment) | {"entries": (*segment.entries[:-1], b"{}")})))


def older(path: Path) -> None:
    path.write_bytes(min(path.parent.iterdir()).read_bytes())


def swapped(path: Path) -> None:
    first, aside = min(path.parent.iterdir()), path.with_suffix(".aside")
    path.replace(aside)
    first.replace(path)
    aside.replace(first)


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "altered": (altered, "last"),
    "deleted": (Path.unlink, "first"),
    "an older one in its place": (older, "first"),
    "reordered": (swapped, "1"),
    "truncated": (lambda path: os.truncate(path, 10), "first"),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_object_that_is_not_what_was_archived_is_named(ledger: Ledger, name: str) -> None:
    objects = await two_segments(ledger)
    segment = unpack(objects[-1].read_bytes())
    attack, where = ATTACKS[name]
    attack(objects[-1])
    entry = {"first": segment.first, "last": segment.last, "1": 1}[where]
    assert await told(ledger) == f"entry {entry} differs; {DATABASE_IS_RIGHT}"


@pytest.mark.parametrize("notes", ["kept", "deleted"])
async def test_a_database_that_is_rewritten_behind_an_intact_archive_is_named(ledger: Ledger, notes: str) -> None:
    await two_segments(ledger)
    await ledger.rewrite(4)
    await ledger.rewrite_tree()
    if notes == "deleted":
        await ledger.dba.execute("DELETE FROM audit.archived WHERE chain = $1", ledger.chain)
        await ledger.dba.execute("DELETE FROM audit.segments WHERE chain = $1", ledger.chain)
    assert await told(ledger) == f"entry 4 differs; {ARCHIVE_IS_RIGHT}"


async def test_what_is_intact_raises_no_alarm_and_is_shown_with_its_etag(ledger: Ledger) -> None:
    await two_segments(ledger)
    first = (await ledger.ask("entries/1")).json["entry"]
    assert first["archive_etag"]
    assert first["archived_at"] > first["occurred_at"]
    listed = (await ledger.ask("entries?limit=200")).json["items"]
    assert listed[-1] == first
    assert "archive_etag" not in listed[0]
    assert not ledger.alarms(COMPARISON)
    assert not ledger.alarms("archive")


@pytest.mark.parametrize(
    "change", ["DELETE FROM audit.{}", "UPDATE audit.{} SET first = 7", "TRUNCATE audit.{} CASCADE"]
)
@pytest.mark.parametrize("table", ["segments", "archived"])
async def test_even_the_owner_forgets_nothing_that_is_archived(ledger: Ledger, table: str, change: str) -> None:
    await ledger.archived()
    await ledger.dba.execute("SET session_replication_role = origin")
    with pytest.raises(Exception, match="audit") as refused:
        await ledger.dba.execute(change.format(table))
    assert getattr(refused.value, "sqlstate", "") == "0A000"
