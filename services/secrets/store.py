"""All SQL about secrets' metadata; each method is one transaction."""

import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import asyncpg
from opentelemetry import trace

from libs.ids import uuid7
from libs.outbox import add_event
from libs.pg import connection, transaction
from libs.telemetry import hop
from libs.together import Together
from services.secrets.model import SecretRow

COLUMNS = "id, domain_id, project_id, name, current_version, pending_version, destroying_at IS NOT NULL AS destroying"

FIND = f"""
SELECT {COLUMNS}, at FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS wanted (of, called, at)
JOIN secrets.secrets ON project_id = of AND name = called
"""

# A row that is there already is taken only when it is the very one that the caller has seen: the rest of a creation
# that did not come to its end.
CREATE = """
INSERT INTO secrets.secrets AS s (id, domain_id, project_id, name, reference, pending_version, pending_at)
VALUES ($1, $2, $3, $4, $5, 1, now())
ON CONFLICT (project_id, name) DO UPDATE SET pending_version = 1, pending_at = now(), updated_at = now()
WHERE s.id = excluded.id AND s.current_version = 0 AND s.destroying_at IS NULL
RETURNING s.id
"""

BEGIN_PUT = """
UPDATE secrets.secrets SET pending_version = $2 + 1, pending_at = now(), updated_at = now()
WHERE id = $1 AND current_version = $2 AND destroying_at IS NULL
RETURNING id
"""

# The note of a write goes once the write has come, or is so old that nobody can be writing it any more.
SETTLE = """
WITH seen AS (
    SELECT id, current_version AS before, pending_version <= $2 OR pending_at < now() - interval '1 minute' AS over
    FROM secrets.secrets WHERE id = $1 FOR UPDATE
)
UPDATE secrets.secrets s
SET current_version = greatest(s.current_version, $2),
    pending_version = CASE WHEN seen.over THEN NULL ELSE s.pending_version END,
    pending_at = CASE WHEN seen.over THEN NULL ELSE s.pending_at END,
    updated_at = now()
FROM seen WHERE s.id = seen.id
RETURNING seen.before < $2
"""

UNSETTLED = f"""
SELECT {COLUMNS} FROM secrets.secrets
WHERE (pending_at IS NOT NULL OR destroying_at IS NOT NULL)
  AND ($1::uuid IS NULL OR project_id = $1)
  AND coalesce(destroying_at, pending_at) <= now() - $2::interval
ORDER BY id LIMIT 200
"""

PAGE = f"""
SELECT {COLUMNS} FROM secrets.secrets
WHERE project_id = $1 AND name > $2 COLLATE "C" AND current_version > 0 AND destroying_at IS NULL
ORDER BY name COLLATE "C" LIMIT $3
"""

BEGIN_DESTROY = """
UPDATE secrets.secrets SET destroying_at = now() WHERE id = $1 AND destroying_at IS NULL RETURNING true
"""
NOTE = "INSERT INTO secrets.untold (id, domain_id, node_ids, reason) VALUES ($1, $2, $3, $4)"
TAKE = "DELETE FROM secrets.untold WHERE id = $1 RETURNING domain_id, node_ids, reason"
UNTOLD = "SELECT id FROM secrets.untold WHERE noted_at <= now() - $1::interval ORDER BY noted_at LIMIT 200"
REMOVE = "DELETE FROM secrets.secrets WHERE id = $1 AND destroying_at IS NOT NULL"


tracer = trace.get_tracer("services.secrets")


@dataclass(frozen=True)
class PgStore:
    """Secrets' metadata in PostgreSQL."""

    pool: asyncpg.Pool

    @functools.cached_property
    def _finding(self) -> Together[tuple[UUID, str], SecretRow | None]:
        return Together(self._find)

    async def find(self, project_id: UUID, name: str) -> SecretRow | None:
        """Return the row of a name, in whatever state it is."""
        with hop(tracer, "pg.find_secret"):
            return await self._finding.ask((project_id, name))

    async def _find(self, wanted: list[tuple[UUID, str]]) -> list[SecretRow | None]:
        found: list[SecretRow | None] = [None] * len(wanted)
        async with connection(self.pool, "find_secrets") as lent:
            for row in await lent.fetch(FIND, *zip(*wanted, strict=True)):
                found[row["at"] - 1] = SecretRow(**{name: value for name, value in row.items() if name != "at"})
        return found

    async def begin_put(self, row: SecretRow, expected_version: int) -> bool:
        """Note that a version is about to be written; False when the row is another by now."""
        async with connection(self.pool, "begin_put") as lent:
            if expected_version:
                begun = await lent.fetchval(BEGIN_PUT, row.id, expected_version)
            else:
                begun = await lent.fetchval(CREATE, row.id, row.domain_id, row.project_id, row.name, row.reference)
        return begun is not None

    async def settle(self, row: SecretRow, version: int, readers: Sequence[UUID]) -> None:
        """Make what OpenBao holds the current version, and tell the readers when it has risen."""
        async with transaction(self.pool, "settle") as lent:
            if await lent.fetchval(SETTLE, row.id, version):
                await _tell(lent, row.domain_id, readers, "secret_updated")

    async def note(self, row: SecretRow, readers: Sequence[UUID], reason: str) -> UUID:
        """Note that nodes are to be told of a change that is about to be made; returns the note."""
        identifier = uuid7()
        async with connection(self.pool, "note_readers") as lent:
            await lent.execute(NOTE, identifier, row.domain_id, list(readers), reason)
        return identifier

    async def tell(self, note: UUID) -> None:
        """Tell the nodes of a note, once."""
        async with transaction(self.pool, "tell_readers") as lent:
            if taken := await lent.fetchrow(TAKE, note):
                await _tell(lent, taken["domain_id"], taken["node_ids"], taken["reason"])

    async def untold(self, idle: timedelta) -> list[UUID]:
        """Return notes that were made at least `idle` ago."""
        async with connection(self.pool, "untold") as lent:
            return [row["id"] for row in await lent.fetch(UNTOLD, idle)]

    async def unsettled(self, project_id: UUID | None, idle: timedelta) -> list[SecretRow]:
        """Return rows with a step that was begun at least `idle` ago."""
        async with connection(self.pool, "unsettled") as lent:
            return [SecretRow(**row) for row in await lent.fetch(UNSETTLED, project_id, idle)]

    async def page(self, project_id: UUID, after: str, count: int) -> list[SecretRow]:
        """Return visible rows after a name."""
        async with connection(self.pool, "page_secrets") as lent:
            return [SecretRow(**row) for row in await lent.fetch(PAGE, project_id, after, count)]

    async def begin_destroy(self, row: SecretRow, readers: Sequence[UUID]) -> None:
        """Hide a secret from everybody, and tell those who read it."""
        async with transaction(self.pool, "begin_destroy") as lent:
            if await lent.fetchval(BEGIN_DESTROY, row.id):
                await _tell(lent, row.domain_id, readers, "secret_destroyed")

    async def remove(self, secret_id: UUID) -> None:
        """Forget a secret whose destruction was begun."""
        async with connection(self.pool, "remove_secret") as lent:
            await lent.execute(REMOVE, secret_id)


async def _tell(lent: asyncpg.Connection, domain_id: UUID, readers: Sequence[UUID], reason: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for node_id in readers:
        # A revision only has to be another one each time; nodes fetch what they may, whatever it says.
        payload = {"node_id": str(node_id), "revision": str(uuid7()), "reason": reason}
        await add_event(lent, "secrets", domain_id, "node_state_updated", f"node:{node_id}", payload, now)
