"""The tuple table as a whole, for who compares it with SpiceDB."""

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from libs.ids import uuid7
from libs.pg import connection, transaction
from services.identity.model import Tuple
from services.identity.relation_store import KEY, TUPLE, columns_of, key_of, notify, row_tuple
from services.identity.relations import Revocation

ALL = f"""
SELECT {TUPLE}, CASE WHEN refused_code <> '' THEN 'refused' ELSE state END AS state FROM identity.relation_tuples
"""
LOST = f"""
UPDATE identity.relation_tuples SET state = 'pending' WHERE state = 'live'
AND ({KEY}) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]))
"""
SURPLUS = f"""
INSERT INTO identity.relation_tuples (id, {KEY}, state) VALUES ($1, $2, $3, $4, $5, $6, 'removing')
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class PgDriftStore:
    """The whole of it in PostgreSQL."""

    pool: asyncpg.Pool

    async def snapshot(self) -> Mapping[Tuple, str]:
        """Return every tuple with its state; "refused" for what SpiceDB would not take."""
        async with connection(self.pool, "snapshot_tuples") as lent:
            return {row_tuple(row): row["state"] for row in await lent.fetch(ALL)}

    async def correct(self, lost: list[Tuple], surplus: list[Tuple]) -> None:
        """Make live tuples pending, and give those that no row knows one that is being removed; tells the feed."""
        async with transaction(self.pool, "correct_tuples") as lent:
            if lost:
                await lent.execute(LOST, *columns_of(lost))
            for row in surplus:
                await lent.execute(SURPLUS, uuid7(), *key_of(row))
                await notify(lent, Revocation("relation", relation=row))
