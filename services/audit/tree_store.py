"""All SQL of checkpoints and of the tree under them; each method is one transaction."""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from libs.pg import connection, transaction
from libs.tlog.tree import Node
from services.audit.model import Signed

ADD_NODES = """
INSERT INTO audit.tree (chain, level, position, hash)
SELECT $1, * FROM unnest($2::smallint[], $3::bigint[], $4::bytea[])
"""
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('audit.tree/' || $1, 0))"
TAKEN = "SELECT EXISTS (SELECT FROM audit.tree WHERE chain = $1 AND level = 0 AND position >= $2)"
NODES = """
SELECT t.level, t.position, t.hash FROM audit.tree t
JOIN unnest($2::smallint[], $3::bigint[]) AS w (level, position) ON t.level = w.level AND t.position = w.position
WHERE t.chain = $1
"""
COLUMNS = "size, root, note, created_at"
# A chain that is shorter than its checkpoint is due as well: somebody must say so.
DUE = """
SELECT c.chain FROM audit.chains c
LEFT JOIN LATERAL (
    SELECT size, created_at FROM audit.checkpoints k WHERE k.chain = c.chain ORDER BY size DESC LIMIT 1
) k ON true
WHERE c.seq <> coalesce(k.size, 0)
  AND (k.size IS NULL OR c.seq < k.size OR c.seq >= k.size + $1 OR k.created_at <= $2)
ORDER BY c.chain
"""


@dataclass(frozen=True)
class PgTrees:
    """Trees and checkpoints in PostgreSQL."""

    pool: asyncpg.Pool

    async def size(self, chain: str) -> int:
        """Return how many leaves the tree of a chain has."""
        sql = "SELECT position + 1 FROM audit.tree WHERE chain = $1 AND level = 0 ORDER BY position DESC LIMIT 1"
        async with connection(self.pool, "tree_size") as lent:
            return await lent.fetchval(sql, chain) or 0

    async def hashes(self, chain: str, nodes: Iterable[Node]) -> dict[Node, bytes]:
        """Return the stored hashes of subtrees; those that are not stored are left out."""
        wanted = list(nodes)
        levels, positions = [node.level for node in wanted], [node.position for node in wanted]
        async with connection(self.pool, "tree_hashes") as lent:
            rows = await lent.fetch(NODES, chain, levels, positions)
        return {Node(row["level"], row["position"]): row["hash"] for row in rows}

    async def grow(self, chain: str, nodes: Sequence[tuple[Node, bytes]]) -> bool:
        """Store all of the hashes and return true, or none because another replica stored some of them."""
        columns = (
            [node.level for node, _ in nodes],
            [node.position for node, _ in nodes],
            [value for _, value in nodes],
        )
        async with transaction(self.pool, "grow_tree") as lent:
            # One replica after the other, so that all hashes of a turn are one replica's.
            await lent.execute(LOCK, chain)
            if await lent.fetchval(TAKEN, chain, nodes[0][0].position):
                return False
            await lent.execute(ADD_NODES, chain, *columns)
        return True

    async def newest(self, chain: str) -> Signed | None:
        """Return the newest checkpoint of a chain."""
        async with connection(self.pool, "newest_checkpoint") as lent:
            sql = f"SELECT {COLUMNS} FROM audit.checkpoints WHERE chain = $1 ORDER BY size DESC LIMIT 1"
            row = await lent.fetchrow(sql, chain)
        return Signed(**row) if row else None

    async def at(self, chain: str, size: int) -> Signed | None:
        """Return the checkpoint of a chain that has a size."""
        async with connection(self.pool, "checkpoint") as lent:
            sql = f"SELECT {COLUMNS} FROM audit.checkpoints WHERE chain = $1 AND size = $2"
            row = await lent.fetchrow(sql, chain, size)
        return Signed(**row) if row else None

    async def keep(self, chain: str, signed: Signed) -> None:
        """Store a checkpoint; one that is there already stays."""
        async with connection(self.pool, "keep_checkpoint") as lent:
            sql = f"INSERT INTO audit.checkpoints (chain, {COLUMNS}) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"
            await lent.execute(sql, chain, signed.size, signed.root, signed.note, signed.created_at)

    async def due(self, entries: int, before: datetime.datetime) -> list[str]:
        """Return the chains with something new whose checkpoint is missing, old, or many entries behind."""
        async with connection(self.pool, "checkpoints_due") as lent:
            return [row["chain"] for row in await lent.fetch(DUE, entries, before)]
