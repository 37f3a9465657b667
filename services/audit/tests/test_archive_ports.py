"""The promises of the archive's ports, on the fake and on the real backend alike."""

import asyncio
import datetime
import uuid
from dataclasses import replace
from pathlib import Path

import asyncpg
import obstore
import pytest
from obstore.store import LocalStore, ObjectStore, from_url

from libs.archive import LARGEST, name_of
from libs.clock import SystemClock
from libs.errors import ArchiveUnavailable
from services.audit.archive import Archive
from services.audit.archive_store import ObjectArchive, PgSegments
from services.audit.checkpoints import Checkpoints
from services.audit.model import Note
from services.audit.ports import Objects, Segments
from services.audit.store import PgStore
from services.audit.tests.fakes import FakeAnchors, FakeObjects, FakeSegments, FakeSigner, trusting
from services.audit.tests.test_ports import NAME
from services.audit.tests.test_store import entry, running
from services.audit.tree_store import PgTrees
from services.audit.writer import GroupWriter

pytestmark = pytest.mark.integration

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(params=["fake", "PostgreSQL"])
def segments(request: pytest.FixtureRequest, pool: asyncpg.Pool) -> Segments:
    return FakeSegments() if request.param == "fake" else PgSegments(pool)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def blocked(folder: Path) -> Path:
    folder.write_bytes(b"in the way")
    return folder


@pytest.fixture(params=["folder", "S3"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    return f"file://{folder}" if request.param == "folder" else str(request.getfixturevalue("bucket"))


@pytest.fixture(params=["fake", "folder", "S3"])
def objects(request: pytest.FixtureRequest, folder: Path) -> Objects:
    if request.param == "fake":
        return FakeObjects()
    return ObjectArchive(f"file://{folder}" if request.param == "folder" else request.getfixturevalue("bucket"))


@pytest.fixture
def chain() -> str:
    return str(uuid.uuid4())


async def test_segments_are_planned_then_archived_and_stay_as_they_were(segments: Segments, chain: str) -> None:
    first, second = Note(1, 3, 7), Note(4, 7, 7)
    assert (await segments.open(chain, 0), await segments.end(chain, 0)) == (None, 0)
    await segments.plan(chain, 0, first)
    await segments.plan(chain, 0, Note(1, 9, 9))
    assert (await segments.open(chain, 0), await segments.end(chain, 0)) == (first, 3)
    assert [note async for note in segments.walk(chain, 0)] == []
    await segments.archived(chain, 0, 1, '"a"', NOW)
    await segments.archived(chain, 0, 1, '"b"', NOW)
    assert await segments.open(chain, 0) is None
    await segments.plan(chain, 0, second)
    assert (await segments.open(chain, 0), await segments.end(chain, 0)) == (second, 7)
    assert [note async for note in segments.walk(chain, 0)] == [first]
    assert await segments.end(str(uuid.uuid4()), 0) == 0
    assert chain in await segments.chains()
    # Another epoch begins from the first entry on.
    assert (await segments.open(chain, 1), await segments.end(chain, 1)) == (None, 0)
    await segments.plan(chain, 1, first)
    await segments.archived(chain, 1, 1, '"c"', NOW)
    assert [note async for note in segments.walk(chain, 1)] == [note async for note in segments.walk(chain, 0)]


async def test_a_chain_that_goes_on_shorter_than_it_was_archived_is_due(pool: asyncpg.Pool, chain: str) -> None:
    segments, before = PgSegments(pool), NOW + datetime.timedelta(hours=1)
    checkpoints = Checkpoints(NAME, PgStore(pool), PgTrees(pool), FakeAnchors(), FakeSigner(), SystemClock())
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        for _ in range(3):
            await writer.append(entry(chain))
        await checkpoints.turn(chain)
    for epoch, last in ((0, 9), (1, 3)):
        assert chain in await segments.due(1000, before)
        await segments.plan(chain, epoch, Note(1, last, last))
        await segments.archived(chain, epoch, 1, '"a"', NOW)
    assert chain not in await segments.due(1000, before)


async def test_an_object_is_created_once(objects: Objects, chain: str) -> None:
    name = name_of(chain, 1)
    assert await objects.read(name) is None
    etag = await objects.create(name, b"content")
    assert etag
    assert await objects.create(name, b"other") is None
    found = await objects.read(name)
    assert found is not None
    assert found[1] == b"content"
    await objects.create(name_of(chain, 1_000_000), b"more")
    await objects.create(name_of(str(uuid.uuid4()), 7), b"another chain's")
    assert {first async for first in objects.firsts(chain, 0)} == {1, 1_000_000}
    assert chain in await objects.chains()
    assert await objects.create(name_of(chain, 7, 12), b"another epoch's")
    assert [first async for first in objects.firsts(chain, 12)] == [7]
    assert {first async for first in objects.firsts(chain, 0)} == {1, 1_000_000}
    assert [first async for first in objects.firsts(str(uuid.uuid4()), 0)] == []


def attacker(url: str) -> ObjectStore:
    """Who holds the archive, and may do in it whatever the store lets."""
    return LocalStore(url.removeprefix("file://"), mkdir=True) if url.startswith("file://") else from_url(url)


async def test_what_is_not_a_segment_is_not_listed_and_what_is_too_large_not_read(url: str, chain: str) -> None:
    objects, store = ObjectArchive(url), attacker(url)
    await objects.create(name_of(chain, 1), b"content")
    for name in ("1.zst", "x.zst", "0000000000000002.txt"):
        await obstore.put_async(store, f"{chain}/{name}", b"x")
    assert [first async for first in objects.firsts(chain, 0)] == [1]
    await obstore.put_async(store, name_of(chain, 3), bytes(LARGEST + 1))
    assert (await objects.read(name_of(chain, 3)) or ("", b"?"))[1] == b""


async def test_a_listing_has_all_of_its_pages(url: str, chain: str) -> None:
    store, count = attacker(url), 1005
    chains = {str(uuid.uuid4()) for _ in range(count)}
    names = [name_of(chain, first) for first in range(1, count + 1)] + [name_of(other, 1) for other in chains]
    for begin in range(0, len(names), 100):
        await asyncio.gather(*(obstore.put_async(store, name, b"x") for name in names[begin : begin + 100]))
    objects = ObjectArchive(url)
    assert {first async for first in objects.firsts(chain, 0)} == set(range(1, count + 1))
    assert set(await objects.chains()) == chains | {chain}


async def test_a_folder_that_cannot_be_written_is_unavailable_until_it_can(blocked: Path, chain: str) -> None:
    objects = ObjectArchive(f"file://{blocked}")
    with pytest.raises(ArchiveUnavailable):
        await objects.create(name_of(chain, 1), b"content")
    await asyncio.to_thread(blocked.unlink)
    assert await objects.create(name_of(chain, 1), b"content")


class Crashing(PgSegments):
    """Ends before it notes what was uploaded."""

    async def archived(self, *_: object) -> None:
        raise ConnectionAbortedError


async def test_two_replicas_archive_a_chain_once_and_a_comparison_finds_the_replaced_object(
    pool: asyncpg.Pool, url: str, chain: str
) -> None:
    store, trees, segments, clock = PgStore(pool), PgTrees(pool), PgSegments(pool), SystemClock()
    signer = FakeSigner()
    checkpoints = Checkpoints(NAME, store, trees, FakeAnchors(), signer, clock)
    one, other = (Archive(store, trees, checkpoints.anchors, segments, ObjectArchive(url), clock) for _ in range(2))
    soon = datetime.timedelta(hours=1)
    async with running(GroupWriter(pool, trusting(pool))) as writer:
        for count in (3, 4):
            for _ in range(count):
                await writer.append(entry(chain))
            await checkpoints.turn(chain)
            assert chain in await segments.due(1, NOW - soon)
            with pytest.raises(ConnectionAbortedError):
                await replace(one, segments=Crashing(pool)).turn(chain)
            assert chain in await segments.due(1, NOW - soon)
            for archive in (one, other):
                await archive.turn(chain)
            assert chain not in await segments.due(1, NOW - soon)
    keys = await checkpoints.keys(chain)
    found = await one.compare(chain, keys)
    assert (found.entries, found.difference, found.database_ok, found.archive_ok) == (7, 0, True, True)
    first = await one.objects.read(name_of(chain, 1))
    assert first is not None
    await obstore.put_async(attacker(url), name_of(chain, 4), first[1])
    found = await other.compare(chain, keys)
    assert (found.difference, found.database_ok, found.archive_ok) == (4, True, False)
