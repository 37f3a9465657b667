"""All SQL of roles as people give them; each method is one transaction."""

import json
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import LastAdministrator, RelationTupleConflict
from libs.ids import uuid7
from libs.pg import connection, transaction
from services.identity.model import Caveat, Home, Place, Tuple, TupleRow
from services.identity.relation_store import KEY, TUPLE, add_tuples, key_of, mark_tuples, notify, row_tuple, split
from services.identity.relations import Revocation
from services.identity.schema import PLATFORM, ROLES

ROW = f"id, {TUPLE}, created_at"
ONE = f"""
SELECT {ROW} FROM identity.relation_tuples WHERE id = $1 AND (resource_type, relation)
    IN (SELECT * FROM unnest($2::text[], $3::text[]))
"""
OF_PROJECT = f"""
SELECT {ROW} FROM identity.relation_tuples
WHERE id > $2 AND state <> 'removing'
  AND (resource_type, relation) IN (SELECT * FROM unnest($4::text[], $5::text[]))
  AND (resource_type, resource_id) IN (
    SELECT 'project', $1::text
    UNION ALL SELECT 'resource', id::text FROM identity.resources WHERE project_id = $1::uuid
    UNION ALL SELECT 'node', id::text FROM identity.nodes WHERE project_id = $1::uuid
    UNION ALL SELECT 'domain', domain_id::text FROM identity.projects WHERE id = $1::uuid AND $6
    UNION ALL SELECT 'platform', 'main' WHERE $7)
ORDER BY id LIMIT $3
"""
PLACES = {
    "domain": "SELECT NULL::uuid AS project_id, id AS domain_id FROM identity.domains WHERE id = $1",
    "project": "SELECT id AS project_id, domain_id FROM identity.projects WHERE id = $1",
    "resource": "SELECT project_id, domain_id FROM identity.resources WHERE id = $1",
    "node": "SELECT project_id, domain_id FROM identity.nodes WHERE id = $1",
}
HOMES = {
    "user": "SELECT domain_id FROM identity.identities WHERE id = $1",
    "service": "SELECT domain_id FROM identity.service_identities WHERE id = $1",
    "node": "SELECT domain_id FROM identity.nodes WHERE id = $1",
}
BY_KEY = f"SELECT {ROW} FROM identity.relation_tuples WHERE ({KEY}) = ($1, $2, $3, $4, $5)"
HELD = f"""
SELECT true FROM identity.relation_tuples
WHERE ({KEY}) = ($1, $2, $3, $4, $5) AND state <> 'removing' AND refused_code = ''
"""
LOCK = "SELECT true FROM identity.relation_tuples WHERE id = $1 FOR UPDATE"
# Whoever takes an administrator away waits for whoever else does, so that two cannot both leave the other one.
ADMINISTRATORS = """
SELECT id FROM identity.relation_tuples
WHERE (resource_type, resource_id) = ($1, $2) AND relation = 'admin' AND state <> 'removing' AND refused_code = ''
  AND caveat_name = '' ORDER BY id FOR UPDATE
"""


def stored_of(row: asyncpg.Record) -> TupleRow:
    """Return a row as a tuple with its id."""
    return TupleRow(row["id"], row_tuple(row), row["created_at"])


def _roles() -> tuple[list[str], list[str]]:
    kinds, names = zip(*sorted(ROLES), strict=True)
    return list(kinds), list(names)


@dataclass(frozen=True)
class PgTupleDirectory:
    """Roles in PostgreSQL."""

    pool: asyncpg.Pool

    async def place(self, resource: str) -> Place | None:
        """Return where an object stands."""
        if resource == PLATFORM:
            return Place(None, None)
        kind, identifier = split(resource)
        if kind not in PLACES:
            return None
        async with connection(self.pool, "place") as lent:
            row = await lent.fetchrow(PLACES[kind], _uuid(identifier))
        return Place(**row) if row else None

    async def home(self, subject: str) -> Home | None:
        """Return the Domain of a person, service or node."""
        kind, identifier = split(subject)
        if kind not in HOMES:
            return None
        async with connection(self.pool, "home") as lent:
            row = await lent.fetchrow(HOMES[kind], _uuid(identifier))
        return Home(**row) if row else None

    async def tuple(self, tuple_id: UUID) -> TupleRow | None:
        """Return a role, one that is on its way out among them."""
        async with connection(self.pool, "tuple") as lent:
            row = await lent.fetchrow(ONE, tuple_id, *_roles())
        return stored_of(row) if row else None

    async def tuples(
        self, project_id: UUID, after: UUID, limit: int, *, domain: bool, platform: bool
    ) -> list[TupleRow]:
        """Return a project's roles by id, beyond `after`; its Domain's and the platform's when asked for."""
        async with connection(self.pool, "tuples") as lent:
            rows = await lent.fetch(OF_PROJECT, str(project_id), after, limit, *_roles(), domain, platform)
        return [stored_of(row) for row in rows]

    async def add_tuple(self, wanted: Tuple) -> TupleRow:
        """Add a role; the same one stays, and with another caveat raises RelationTupleConflict."""
        async with transaction(self.pool, "add_tuple") as lent:
            await add_tuples(lent, [wanted])
            return await self._stored(lent, wanted)

    async def replace_tuple(self, tuple_id: UUID, wanted: Tuple) -> TupleRow | None:
        """Put a role in another one's place and under its id; None when that one is gone.

        Raises LastAdministrator, and RelationTupleConflict when the new one is there already.
        """
        async with transaction(self.pool, "replace_tuple") as lent:
            found = await self._locked(lent, tuple_id, wanted)
            if found is None:
                return None
            if found == wanted:
                caveat = wanted.caveat or Caveat("", {})
                sql = """
                UPDATE identity.relation_tuples
                SET state = 'pending', refused_code = '', caveat_name = $2, caveat_context = $3 WHERE id = $1
                """
                await lent.execute(sql, tuple_id, caveat.name, json.dumps(dict(caveat.context)))
                await notify(lent, Revocation("relation", relation=found))
                return await self._stored(lent, wanted)
            if await lent.fetchval(HELD, *key_of(wanted)):
                raise RelationTupleConflict
            # What goes keeps its row until SpiceDB has taken the removal, so it hands its id on.
            gone = uuid7()
            await lent.execute("UPDATE identity.relation_tuples SET id = $2 WHERE id = $1", tuple_id, gone)
            await mark_tuples(lent, "id = $1", gone)
            await add_tuples(lent, [wanted])
            sql = f"UPDATE identity.relation_tuples SET id = $6 WHERE ({KEY}) = ($1, $2, $3, $4, $5)"
            await lent.execute(sql, *key_of(wanted), tuple_id)
            return await self._stored(lent, wanted)

    async def remove_tuple(self, tuple_id: UUID) -> bool:
        """Mark a role as removing; False when it is gone. Raises LastAdministrator."""
        async with transaction(self.pool, "remove_tuple") as lent:
            if await self._locked(lent, tuple_id) is None:
                return False
            return bool(await mark_tuples(lent, "id = $1", tuple_id))

    async def _locked(self, lent: asyncpg.Connection, tuple_id: UUID, instead: Tuple | None = None) -> Tuple | None:
        row = await lent.fetchrow(ONE, tuple_id, *_roles())
        if row is None:
            return None
        found = row_tuple(row)
        if found.relation == "admin" and row["resource_type"] in {"domain", "platform"}:
            left = [one["id"] for one in await lent.fetch(ADMINISTRATORS, row["resource_type"], row["resource_id"])]
            if left == [tuple_id] and not _administers(instead, found.resource):
                raise LastAdministrator
        return found if await lent.fetchval(LOCK, tuple_id) else None

    async def _stored(self, lent: asyncpg.Connection, wanted: Tuple) -> TupleRow:
        row = await lent.fetchrow(BY_KEY, *key_of(wanted))
        assert row is not None
        stored = stored_of(row)
        if stored.row.caveat != wanted.caveat:
            raise RelationTupleConflict
        return stored


def _administers(row: Tuple | None, resource: str) -> bool:
    return row is not None and (row.resource, row.relation, row.caveat) == (resource, "admin", None)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
