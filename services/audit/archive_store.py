"""Where the archive is: its segments in PostgreSQL, its objects in an object store or a folder."""

import asyncio
import datetime
import functools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from libs.archive import LARGEST, name_of
from libs.errors import ArchiveUnavailable
from libs.pg import connection
from services.audit.model import Note

# A call, or a page of a listing; a store that takes longer is one that hangs.
WITHIN_S = 30.0
# Few: the next turn tries again.
RETRIES = 3

OPEN = """
SELECT s.first, s.last, s.size FROM audit.segments s
WHERE s.chain = $1 AND s.epoch = $2 AND NOT EXISTS (
    SELECT FROM audit.archived a WHERE a.chain = s.chain AND a.epoch = s.epoch AND a.first = s.first
)
ORDER BY s.first LIMIT 1
"""
END = "SELECT last FROM audit.segments WHERE chain = $1 AND epoch = $2 ORDER BY first DESC LIMIT 1"
PLAN = """
INSERT INTO audit.segments (chain, epoch, first, last, size) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
"""
ARCHIVED = """
INSERT INTO audit.archived (chain, epoch, first, etag, archived_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
"""
PAGE = """
SELECT s.first, s.last, s.size FROM audit.segments s JOIN audit.archived a USING (chain, epoch, first)
WHERE s.chain = $1 AND s.epoch = $2 AND s.first > $3 ORDER BY s.first LIMIT 1000
"""
# By the newest epoch that is here; the one that begins is due by the entry that began it, and by being shorter.
DUE = """
SELECT c.chain FROM audit.chains c
JOIN LATERAL (SELECT size FROM audit.checkpoints k WHERE k.chain = c.chain ORDER BY size DESC LIMIT 1) k ON true
LEFT JOIN LATERAL (
    SELECT s.last, a.archived_at FROM audit.segments s LEFT JOIN audit.archived a USING (chain, epoch, first)
    WHERE s.chain = c.chain ORDER BY s.epoch DESC, s.first DESC LIMIT 1
) s ON true
WHERE (k.size <> coalesce(s.last, 0) OR s.archived_at IS NULL)
  AND (s.archived_at IS NULL OR k.size >= s.last + $1 OR s.archived_at <= $2)
ORDER BY c.chain
"""


@dataclass(frozen=True)
class PgSegments:
    """Segments in PostgreSQL."""

    pool: asyncpg.Pool

    async def open(self, chain: str, epoch: int) -> Note | None:
        """Return the oldest segment that is planned and not archived."""
        async with connection(self.pool, "open_segment") as lent:
            row = await lent.fetchrow(OPEN, chain, epoch)
        return Note(**row) if row else None

    async def end(self, chain: str, epoch: int) -> int:
        """Return the last entry that is planned, 0 for none."""
        async with connection(self.pool, "end_of_segments") as lent:
            return await lent.fetchval(END, chain, epoch) or 0

    async def plan(self, chain: str, epoch: int, note: Note) -> None:
        """Plan a segment; one that begins at the same entry stays."""
        async with connection(self.pool, "plan_segment") as lent:
            await lent.execute(PLAN, chain, epoch, note.first, note.last, note.size)

    async def archived(self, chain: str, epoch: int, first: int, etag: str, at: datetime.datetime) -> None:
        """Note that a segment is archived; the first note stays."""
        async with connection(self.pool, "archived_segment") as lent:
            await lent.execute(ARCHIVED, chain, epoch, first, etag, at)

    async def walk(self, chain: str, epoch: int) -> AsyncIterator[Note]:
        """Yield the segments that are archived, in order."""
        first = 0
        while True:
            async with connection(self.pool, "page_segments") as lent:
                rows = await lent.fetch(PAGE, chain, epoch, first)
            if not rows:
                return
            for row in rows:
                yield Note(**row)
            first = rows[-1]["first"]

    async def chains(self) -> list[str]:
        """Return the chains of which something is archived."""
        async with connection(self.pool, "archived_chains") as lent:
            return [row["chain"] for row in await lent.fetch("SELECT DISTINCT chain FROM audit.archived")]

    async def due(self, entries: int, before: datetime.datetime) -> list[str]:
        """Return the chains with checkpointed entries of which none was archived since then, or with so many."""
        async with connection(self.pool, "archive_due") as lent:
            return [row["chain"] for row in await lent.fetch(DUE, entries, before)]


class ObjectArchive:
    """Objects by URL: `file:///…` for a folder, `s3://bucket/prefix` with the usual AWS_* variables for S3."""

    def __init__(self, url: str, within_s: float = WITHIN_S) -> None:
        self._url, self._within_s = url, within_s
        self._folder = Path(url.removeprefix("file://")) if url.startswith("file://") else None

    @functools.cached_property
    def _store(self) -> ObjectStore:
        # Not before it is used: without its mirror the chain goes on.
        if self._folder:
            return LocalStore(self._folder, mkdir=True)
        return S3Store.from_url(
            self._url,
            # A bucket with object lock takes nothing without a checksum.
            config={"checksum_algorithm": "SHA256"},
            client_options={"allow_http": False},
            retry_config={"max_retries": RETRIES},
        )

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[ObjectStore]:
        """Bound what is done in the block, and say of all that goes wrong in it that the archive cannot be used."""
        try:
            async with asyncio.timeout(self._within_s):
                yield self._store
        except (BaseError, OSError) as error:
            raise ArchiveUnavailable(type(error).__name__) from error

    async def create(self, name: str, content: bytes) -> str | None:
        """Store an object durably and return its etag, or None when there is one of this name, which stays."""
        async with self._reached() as store:
            try:
                answer = await obstore.put_async(store, name, content, mode="create")
            except AlreadyExistsError:
                return None
            if self._folder:
                await asyncio.to_thread(_make_durable, self._folder / name, self._folder)
        return str(answer["e_tag"])

    async def read(self, name: str) -> tuple[str, bytes] | None:
        """Return the etag and the content of an object; None when there is none."""
        async with self._reached() as store:
            try:
                answer = await obstore.get_async(store, name)
            except FileNotFoundError:
                return None
            content = bytes(await answer.bytes_async()) if answer.meta["size"] <= LARGEST else b""
        return str(answer.meta["e_tag"]), content

    async def chains(self) -> list[str]:
        """Return the chains of which something is there."""
        async with self._reached() as store:
            found = await obstore.list_with_delimiter_async(store)
        return [prefix.rstrip("/") for prefix in found["common_prefixes"]]

    async def firsts(self, chain: str, epoch: int) -> AsyncIterator[int]:
        """Yield the first entry of each segment of an epoch that is there, in no order."""
        async with self._reached() as store:
            pages = aiter(obstore.list(store, f"{chain}/{epoch}/" if epoch else f"{chain}/"))
        while True:
            async with self._reached():
                page = await anext(pages, None)
            if page is None:
                return
            for entry in page:
                number = Path(entry["path"]).stem
                if number.isdecimal() and entry["path"] == name_of(chain, int(number), epoch):
                    yield int(number)


def _make_durable(path: Path, folder: Path) -> None:
    """Bring a file and its name to the disk, which the library leaves to the system."""
    for one in (path, *path.parents):
        handle = os.open(one, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if one == folder:
            return
