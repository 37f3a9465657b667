"""A thousand random tamperings with a long chain in PostgreSQL, each of them found; what is untouched raises no alarm.

Each is undone by a rollback. Who asks about a segment is told of all that was done to its entries, and of everything
that was recomputed, wherever that begins; so a segment is what is verified, and the whole chain now and then.
"""

import asyncio
import contextlib
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import hypothesis
import pytest
import rfc8785
from hypothesis import strategies as st

from devstack.layout import State
from libs.bao import Bao, open_bao
from libs.clock import SystemClock
from libs.cursor import Cursors
from libs.custody import Secret
from libs.pg import create_pool
from libs.tlog.tree import Node, leaf_hash, node_hash
from services.audit.checkpoints import Checkpoints
from services.audit.model import Draft
from services.audit.ports import Anchors
from services.audit.proofs import Proofs
from services.audit.service import Audit
from services.audit.settings import AuditSettings
from services.audit.store import PgStore
from services.audit.tests.fakes import FakeAnchors, FakePeppers, FakeRelations, trusting
from services.audit.tests.test_service import AUDITOR
from services.audit.tests.test_store import entry, running
from services.audit.tree_store import PgTrees
from services.audit.vault import BaoAnchors, BaoSigner
from services.audit.writer import GroupWriter

pytestmark = pytest.mark.integration

LENGTH, TAMPERINGS, AT_ONCE, AFTER = 10_000, 1000, 1000, 20
# How far from the end a rewriting begins: what it costs is in how much it rewrites.
FEW = 100
TABLES = ("entries", "personal")
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
CHANGES = {
    "text": "CASE WHEN {0} ~ '^[0-9a-f]{{64}}$' THEN overlay({0} PLACING translate(substr({0}, {at} + 1, 1), "
    "'0123456789abcdef', '123456789abcdef0') FROM {at} + 1) ELSE {0} || chr({by} + 32) END",
    "bytea": "set_byte({0}, {at} % length({0}), get_byte({0}, {at} % length({0})) # {by})",
    "bigint": "{0} + 20000 * {by}",
    "timestamp with time zone": "{0} + {by} * interval '1 microsecond'",
    "jsonb": "{0} || jsonb_build_object('added', jsonb_build_array({by}))",
}
REASON = "CASE {0} WHEN 'granted' THEN 'unknown' ELSE 'granted' END"
CUT = "DELETE FROM audit.entries WHERE chain = $1 AND seq > $2"
HEAD = """
UPDATE audit.chains c SET seq = e.seq, entry_hash = e.entry_hash FROM audit.entries e
WHERE c.chain = $1 AND e.chain = $1 AND e.seq = $2
"""


class Nobody:
    """Takes the row that a verification leaves, and nothing else."""

    async def append(self, entry: Draft) -> int:
        return 0


@dataclass
class OneConnection:
    """A pool of one connection, in whose transaction everything happens."""

    lent: asyncpg.Connection

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[asyncpg.Connection]:
        yield self.lent


def auditing(chain: str, pool: Any, log: str, signer: BaoSigner, anchors: Anchors) -> Audit:
    """Return the service over a pool."""
    store, clock = PgStore(pool), SystemClock()
    checkpoints = Checkpoints(log, store, PgTrees(pool), anchors, signer, clock)
    relations = FakeRelations({("audit", f"domain:{chain}")})
    cursors = Cursors(Secret(b"k" * 32))
    return Audit(Nobody(), store, FakePeppers(), relations, Proofs(checkpoints), cursors, clock)


@dataclass(frozen=True)
class Tampering:
    """What is done, where, and which segment is asked about: so many entries before and after what was touched."""

    kind: str
    seq: int
    other: int
    at: int
    by: int
    cover: str
    before: int
    after: int
    whole: bool = False


@dataclass
class Walk:
    """A chain with a checkpoint at its end, and who tampers with it."""

    chain: str
    pool: OneConnection
    audit: Audit
    writer: GroupWriter
    columns: list[tuple[str, str, str]]
    canonical: list[bytes] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)

    async def grow(self, count: int) -> None:
        """Have entries appended by the service."""
        for done in range(0, count, AT_ONCE):
            await asyncio.gather(*(self.writer.append(entry(self.chain)) for _ in range(min(AT_ONCE, count - done))))
        sql = "SELECT canonical, entry_hash FROM audit.entries WHERE chain = $1 ORDER BY seq"
        rows = await self.dba.fetch(sql, self.chain)
        self.canonical, self.hashes = [row["canonical"] for row in rows], [row["entry_hash"] for row in rows]

    @property
    def dba(self) -> asyncpg.Connection:
        return self.pool.lent

    async def look(self, first: int, last: int) -> int:
        return (await self.audit.verify(AUDITOR, self.chain, first, last)).divergent_seq

    async def attempt(self, one: Tampering) -> tuple[int, int]:
        """Return where a tampering should be found and where it is, and undo it."""
        async with self.undone():
            low, high, expected = await getattr(self, one.kind)(one)
            segment = (0, 0) if one.whole else (max(1, low - one.before), min(high + one.after, await self.end()))
            return expected, await self.look(*segment)

    @contextlib.asynccontextmanager
    async def undone(self) -> AsyncIterator[None]:
        """Take back whatever is done in the block."""
        transaction = self.dba.transaction(isolation="repeatable_read")
        await transaction.start()
        try:
            yield
        finally:
            await transaction.rollback()

    async def end(self) -> int:
        return int(await self.dba.fetchval("SELECT seq FROM audit.chains WHERE chain = $1", self.chain))

    # Each returns the first and the last entry of a segment that tells, and the entry that it must name.

    async def alter(self, one: Tampering) -> tuple[int, int, int]:
        table, column, type_ = self.columns[one.other % len(self.columns)]
        change = (REASON if column == "reason" else CHANGES[type_]).format(column, at=one.at, by=one.by)
        sql = f"UPDATE audit.{table} SET {column} = {change} WHERE chain = $1 AND seq = $2"
        assert await self.dba.execute(sql, self.chain, one.seq) == "UPDATE 1"
        return one.seq, one.seq, one.seq

    async def delete(self, one: Tampering) -> tuple[int, int, int]:
        await self.dba.execute("DELETE FROM audit.entries WHERE chain = $1 AND seq = $2", self.chain, one.seq)
        return one.seq, one.seq, one.seq

    async def swap(self, one: Tampering) -> tuple[int, int, int]:
        low, high = sorted((one.seq, one.other if one.other != one.seq else one.seq % LENGTH + 1))
        sql = "UPDATE audit.entries SET seq = $3 WHERE chain = $1 AND seq = $2"
        for old, new in ((low, 2 * LENGTH), (high, low), (2 * LENGTH, high)):
            await self.dba.execute(sql, self.chain, old, new)
        return low, low, low

    async def insert(self, one: Tampering) -> tuple[int, int, int]:
        seq = self.late(one.seq)
        rows = await self.dba.fetch("SELECT * FROM audit.entries WHERE chain = $1 AND seq >= $2", self.chain, seq)
        copied = await self.dba.fetchrow(
            "SELECT * FROM audit.entries WHERE chain = $1 AND seq = $2", self.chain, one.other
        )
        assert copied is not None
        moved = [dict(row) | {"seq": row["seq"] + 1} for row in rows]
        forged = dict(copied) | {"seq": seq, "prev_hash": hashlib.sha256(bytes([one.by])).digest()}
        await self.dba.execute(CUT, self.chain, seq - 1)
        await self.dba.copy_records_to_table(
            "entries", schema_name="audit", columns=list(forged), records=[[*row.values()] for row in [forged, *moved]]
        )
        await self.dba.execute(HEAD, self.chain, LENGTH + 1)
        return seq, seq, seq

    async def cut(self, one: Tampering) -> tuple[int, int, int]:
        left = self.late(one.seq) - 1
        await self.dba.execute(CUT, self.chain, left)
        await self.dba.execute(HEAD, self.chain, left)
        first = one.other % left + 1
        return first, first, left + 1

    async def rewind(self, one: Tampering) -> tuple[int, int, int]:
        left = one.seq % (LENGTH - 1) + 1
        await self.dba.execute(HEAD, self.chain, left)
        first = one.other % left + 1
        return first, first, left + 1

    async def recompute(self, one: Tampering) -> tuple[int, int, int]:
        seq = self.late(one.seq)
        await self.rewrite(seq)
        if one.cover == "the tree rewritten":
            await self.rewrite_tree(seq)
        elif one.cover != "nothing":
            await self.dba.execute(f"DELETE FROM audit.{one.cover} WHERE chain = $1", self.chain)
        expected = seq if one.cover in {"nothing", "checkpoints"} else LENGTH
        # Who asks about any later entry is told as well, and about any at all where the tree does not prove it.
        first = seq + one.other % (LENGTH - seq + 1) if expected == seq else one.other
        return first, first, expected

    def late(self, seq: int) -> int:
        return LENGTH - seq % FEW

    async def rewrite(self, seq: int) -> None:
        """Change an entry in all of its columns and make everything after it fit."""
        content = json.loads(self.canonical[seq - 1])
        content["object"]["id"] = "framed"
        canonical = [rfc8785.dumps(content), *self.canonical[seq:]]
        before, links = self.hashes[seq - 2] if seq > 1 else bytes(32), []
        for one in canonical:
            own = hashlib.sha256(before + hashlib.sha256(one).digest()).digest()
            links.append((before, own))
            before = own
        # No two rows may go on from the same one on the way, so they are taken out first.
        rows = await self.dba.fetch(
            "DELETE FROM audit.entries WHERE chain = $1 AND seq >= $2 RETURNING *", self.chain, seq
        )
        changed = [
            dict(row) | {"canonical": content, "prev_hash": prev, "entry_hash": own}
            for row, content, (prev, own) in zip(
                sorted(rows, key=lambda row: row["seq"]), canonical, links, strict=True
            )
        ]
        changed[0]["object_id"] = "framed"
        await self.dba.copy_records_to_table(
            "entries", schema_name="audit", columns=list(changed[0]), records=[[*row.values()] for row in changed]
        )
        await self.dba.execute(HEAD, self.chain, seq + len(rows) - 1)

    async def rewrite_tree(self, seq: int) -> None:
        """Make every hash of the tree that holds a leaf from an entry on fit the entries."""
        sql = "SELECT entry_hash FROM audit.entries WHERE chain = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq"
        fresh = [row["entry_hash"] for row in await self.dba.fetch(sql, self.chain, seq, LENGTH)]
        level, nodes, first = list(map(leaf_hash, self.hashes[: seq - 1] + fresh)), list[tuple[Node, bytes]](), seq - 1
        for height in range(LENGTH.bit_length()):
            nodes += [(Node(height, at), level[at]) for at in range(first, len(level))]
            level, first = [node_hash(*pair) for pair in zip(level[::2], level[1::2], strict=False)], first // 2
        await self.dba.executemany(
            "UPDATE audit.tree SET hash = $4 WHERE chain = $1 AND level = $2 AND position = $3",
            [(self.chain, node.level, node.position, value) for node, value in nodes],
        )


@contextlib.asynccontextmanager
async def walking(backends: State, settings: AuditSettings) -> AsyncIterator[Walk]:
    """Build the chain, and open the DBA's connection with triggers off."""
    chain = str(uuid.uuid4())
    dba = await asyncpg.connect(
        user="postgres", database="plexsphere", host=str(backends / "postgres/run"), port=backends.port("postgres")
    )
    async with (
        create_pool(settings.postgres, settings.tls) as pool,
        open_bao(settings.openbao, settings.tls) as bao,
        running(GroupWriter(pool, trusting(pool))) as writer,
    ):
        await dba.execute("SET timezone = 'UTC'; SET session_replication_role = replica")
        columns = [
            (table, row["attname"], row["type"])
            for table in TABLES
            for row in await dba.fetch(COLUMNS, f"audit.{table}")
        ]
        log, signer, anchors = settings.checkpoints.log, BaoSigner(bao), BaoAnchors(bao)
        # Where the whole stack runs its audit checkpoints this chain as well, so what is anchored now is what counts.
        known, one = FakeAnchors(), OneConnection(dba)
        walk = Walk(chain, one, auditing(chain, one, log, signer, known), writer, columns)
        await walk.grow(LENGTH)
        checkpoints = auditing(chain, pool, log, signer, anchors).proofs.checkpoints
        while (found := await checkpoints.anchored(chain)) is None or found.size < LENGTH:
            await checkpoints.turn(chain)
        anchor = await anchors.read(chain)
        assert anchor is not None
        known.anchors[chain] = anchor
        yield walk
    await dba.close()


SEQS, BYTES, NEAR = st.integers(1, LENGTH), st.integers(0, 63), st.integers(0, 20)
KINDS = ["alter"] * 16 + ["delete", "swap", "swap", "insert", "cut", "cut", "rewind", "recompute"]
COVERS = ["nothing", "the tree rewritten", "tree", "checkpoints"]
RANDOM = st.builds(
    Tampering, st.sampled_from(KINDS), SEQS, SEQS, BYTES, st.integers(1, 90), st.sampled_from(COVERS), NEAR, NEAR
)
WHOLE = [Tampering(kind, 4321, 1234, 5, 6, "nothing", 0, 0, whole=True) for kind in dict.fromkeys(KINDS)]


def test_every_tampering_up_to_the_anchor_is_found_and_nothing_else(backends: State, settings: AuditSettings) -> None:
    async def untouched(walk: Walk) -> None:
        assert await walk.look(0, 0) == 0

    async def beyond_the_anchor(walk: Walk) -> None:
        """The residual risk, pinned: nobody outside of the database knows of what came after it yet."""
        await walk.grow(AFTER)
        for first, found in ((LENGTH, LENGTH), (LENGTH + 1, 0)):
            async with walk.undone():
                await walk.rewrite(first)
                assert await walk.look(0, 0) == found

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        walk = runner.run(stack.enter_async_context(walking(backends, settings)))

        @hypothesis.settings(max_examples=TAMPERINGS, database=None, phases=[hypothesis.Phase.generate])
        @hypothesis.given(RANDOM)
        def is_found(one: Tampering) -> None:
            expected, found = runner.run(walk.attempt(one))
            assert found == expected

        try:
            runner.run(untouched(walk))
            for one in WHOLE:
                expected, found = runner.run(walk.attempt(one))
                assert found == expected, one
            is_found()
            runner.run(untouched(walk))
            runner.run(beyond_the_anchor(walk))
        finally:
            runner.run(stack.aclose())


async def test_a_chain_that_is_appended_to_raises_no_alarm(
    pool: asyncpg.Pool, bao: Bao, settings: AuditSettings
) -> None:
    chain = str(uuid.uuid4())
    audit = auditing(chain, pool, settings.checkpoints.log, BaoSigner(bao), BaoAnchors(bao))
    async with running(GroupWriter(pool, trusting(pool))) as one, running(GroupWriter(pool, trusting(pool))) as other:
        await one.append(entry(chain))

        async def append(writer: GroupWriter) -> None:
            for _ in range(40):
                await asyncio.gather(*(writer.append(entry(chain)) for _ in range(10)))

        async def checkpoint() -> None:
            while not all(task.done() for task in appends):
                await audit.proofs.checkpoints.turn(chain)

        appends = [asyncio.create_task(append(writer)) for writer in (one, other)]
        turns = asyncio.create_task(checkpoint())
        looks = 0
        while not turns.done():
            for first, last in ((0, 0), (1, 1), (7, 0), (0, 9)):
                head = (await audit.store.head(chain)).seq
                verdict = await audit.verify(AUDITOR, chain, min(first, head), last)
                assert verdict.divergent_seq == 0, (looks, verdict)
                looks += 1
        await asyncio.gather(turns, *appends)
    assert looks > 10
    assert (await audit.verify(AUDITOR, chain, 0, 0)).segment_to == 801
