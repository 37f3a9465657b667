"""A chain of its own, checkpointed within seconds, and what a hostile DBA does to it as superuser."""

import asyncio
import base64
import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import rfc8785

from devstack.layout import State
from devstack.openbao import client
from libs.tlog.note import VerifierKey
from tests.e2e.attacker import eventually
from tests.e2e.outside import JSON, Answer, Edge
from tests.e2e.world import World

GENESIS = bytes(32)
LOG = "plexsphere/audit"
NEWEST = "SELECT max(size) FROM audit.checkpoints WHERE chain = $1"
ARCHIVED = "SELECT max(last) FROM audit.segments JOIN audit.archived USING (chain, first) WHERE chain = $1"
HEAD = "SELECT seq FROM audit.chains WHERE chain = $1"


@contextmanager
def hurried(world: World) -> Iterator[None]:
    """Have every chain checkpointed, archived and compared each second for the block."""
    config = world.config("audit")
    asyncio.run(world.restart("audit", hastened(config)))
    yield
    asyncio.run(world.restart("audit", config))


def hastened(config: str) -> str:
    """Return audit's settings with a turn of everything each second."""
    soon, count = re.subn(r"every_s = (60|900|86400)\.0", "every_s = 1.0", config)
    assert count == 3
    return soon


@dataclass
class Ledger:
    """The chain of one Domain as an auditor and as a DBA sees it."""

    world: World
    auditor: Edge
    dba: asyncpg.Connection
    chain: str

    @property
    def path(self) -> str:
        """Where the edge has it."""
        return f"/v1/domains/{self.chain}/audit"

    async def ask(self, what: str) -> Answer:
        """Read something of the chain."""
        return await self.auditor.call("GET", f"{self.path}/{what}")

    async def verify(self, first: int = 0, last: int = 0) -> JSON:
        """Have the chain, or a segment of it, verified."""
        body = ({"from_seq": first} if first else {}) | ({"to_seq": last} if last else {})
        answer = await self.auditor.call("POST", f"{self.path}/verify", body)
        assert answer.status == 200, answer.body
        return answer.json

    async def fill(self, count: int) -> None:
        """Have entries made: each read is one."""
        for _ in range(count):
            assert (await self.ask("entries?limit=1")).status == 200

    async def head(self) -> int:
        """Return the last sequence, without leaving a row."""
        return int(await self.dba.fetchval(HEAD, self.chain))

    async def goes_on(self) -> bool:
        """Say whether the chain takes an entry: what reads a refused one is recorded elsewhere."""
        head = await self.head()
        await self.ask("entries?limit=1")
        return await self.head() == head + 1

    async def size(self) -> int:
        """Return the size of the newest stored checkpoint, without leaving a row."""
        return await self.dba.fetchval(NEWEST, self.chain) or 0

    async def checkpointed(self) -> int:
        """Wait until a checkpoint covers the whole chain; returns its size."""

        async def done() -> bool:
            return await self.size() == await self.head()

        await eventually(done)
        return await self.size()

    async def key(self) -> VerifierKey:
        """Return the key of the chain's checkpoints, from OpenBao and not from who shows them."""
        bao = client(State(self.world.state), "operator")
        try:
            data = (await bao.request("GET", "transit-audit/keys/acp"))["data"]
        finally:
            await bao.close()
        newest = max(data["keys"].items(), key=lambda item: int(item[0]))[1]
        return VerifierKey(f"{LOG}/{self.chain}", base64.b64decode(newest["public_key"]))

    async def anchor(self) -> JSON:
        """Return the anchor as OpenBao has it."""
        bao = client(State(self.world.state), "operator")
        try:
            return (await bao.read_kv(f"audit/{self.chain}/anchor"))[0]
        finally:
            await bao.close()

    async def archived(self) -> list[Path]:
        """Wait until the archive has all that is checkpointed; returns the objects, the oldest first."""
        size = await self.checkpointed()

        async def done() -> bool:
            return bool(await self.dba.fetchval(ARCHIVED, self.chain) == size)

        await eventually(done)
        return sorted((State(self.world.state) / "audit" / self.chain).iterdir())

    def alarms(self, of: str = "checkpoint") -> list[str]:
        """Return why audit said that the chain is not what was anchored, or as the archive has it."""
        wanted = (f'"{of}.diverged"'.encode(), self.chain.encode())
        lines = self.world.logs()["audit.log"].splitlines()
        return [json.loads(line)["reason"] for line in lines if all(word in line for word in wanted)]

    # What a DBA does ------------------------------------------------------------------------------------------------

    async def rewrite(self, first: int) -> None:
        """Change an entry in all of its columns, and make every hash after it fit, the head's included."""
        sql = "SELECT seq, prev_hash, canonical FROM audit.entries WHERE chain = $1 AND seq >= $2 ORDER BY seq"
        rows = await self.dba.fetch(sql, self.chain, first)
        before = rows[0]["prev_hash"]
        async with self.dba.transaction():
            for row in rows:
                content = json.loads(row["canonical"])
                if row["seq"] == first:
                    content["object"]["id"] = "framed"
                canonical = rfc8785.dumps(content)
                own = hashlib.sha256(before + hashlib.sha256(canonical).digest()).digest()
                await self.dba.execute(
                    "UPDATE audit.entries SET prev_hash = $3, entry_hash = $4, canonical = $5, object_id = $6 "
                    "WHERE chain = $1 AND seq = $2",
                    self.chain, row["seq"], before, own, canonical, content["object"]["id"],
                )  # fmt: skip
                before = own
            await self.dba.execute("UPDATE audit.chains SET entry_hash = $2 WHERE chain = $1", self.chain, before)

    async def rewrite_tree(self) -> None:
        """Make the Merkle tree fit the entries as they are now, as far as it went."""
        sql = "SELECT count(*) FROM audit.tree WHERE chain = $1 AND level = 0"
        size = min(int(await self.dba.fetchval(sql, self.chain)), await self.head())
        await self.dba.execute("DELETE FROM audit.tree WHERE chain = $1", self.chain)
        sql = "SELECT entry_hash FROM audit.entries WHERE chain = $1 AND seq <= $2 ORDER BY seq"
        level = [
            hashlib.sha256(b"\0" + row["entry_hash"]).digest() for row in await self.dba.fetch(sql, self.chain, size)
        ]
        add = "INSERT INTO audit.tree (chain, level, position, hash) VALUES ($1, $2, $3, $4)"
        for height in range(63):
            await self.dba.executemany(add, [(self.chain, height, at, value) for at, value in enumerate(level)])
            pairs = zip(level[::2], level[1::2], strict=False)
            level = [hashlib.sha256(b"\1" + left + right).digest() for left, right in pairs]

    async def cut_off(self, last: int) -> None:
        """Delete the tail of the chain and rewind its head."""
        async with self.dba.transaction():
            await self.dba.execute("DELETE FROM audit.entries WHERE chain = $1 AND seq > $2", self.chain, last)
            await self.dba.execute("DELETE FROM audit.idempotency WHERE chain = $1 AND seq > $2", self.chain, last)
            await self.dba.execute("DELETE FROM audit.personal WHERE chain = $1 AND seq > $2", self.chain, last)
            await self.dba.execute(
                "UPDATE audit.chains SET seq = $2, entry_hash = coalesce("
                "(SELECT entry_hash FROM audit.entries WHERE chain = $1 AND seq = $2), $3) WHERE chain = $1",
                self.chain, last, GENESIS,
            )  # fmt: skip

    async def grow(self, count: int) -> None:
        """Append entries that nobody made, each fit to the one before it."""
        for _ in range(count):
            last = await self.dba.fetchrow(
                "SELECT * FROM audit.entries WHERE chain = $1 ORDER BY seq DESC LIMIT 1", self.chain
            )
            assert last is not None
            content = json.loads(last["canonical"]) | {"seq": last["seq"] + 1}
            canonical = rfc8785.dumps(content)
            own = hashlib.sha256(last["entry_hash"] + hashlib.sha256(canonical).digest()).digest()
            row = dict(last) | {
                "seq": last["seq"] + 1, "prev_hash": last["entry_hash"], "entry_hash": own, "canonical": canonical,
            }  # fmt: skip
            places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
            async with self.dba.transaction():
                await self.dba.execute(f"INSERT INTO audit.entries VALUES ({places})", *row.values())
                await self.dba.execute(
                    "INSERT INTO audit.personal SELECT chain, $2::bigint, pseudonym, salt, subject_id, subject_kind, "
                    "client_ip, user_agent FROM audit.personal WHERE chain = $1 AND seq = $2::bigint - 1",
                    self.chain, row["seq"],
                )  # fmt: skip
                await self.dba.execute(
                    "UPDATE audit.chains SET seq = $2, entry_hash = $3 WHERE chain = $1", self.chain, row["seq"], own
                )

    async def forget(self) -> None:
        """Leave nothing of the chain in the database or in OpenBao, where audit would find it refused at its start."""
        await self.dba.execute("SET session_replication_role = replica")
        for table in ("archived", "segments", "checkpoints", "tree", "personal", "idempotency", "entries", "chains"):
            await self.dba.execute(f"DELETE FROM audit.{table} WHERE chain = $1", self.chain)
        bao = client(State(self.world.state), "operator")
        try:
            for kept in ("anchor", "storage"):
                await bao.request("DELETE", f"kv/metadata/audit/{self.chain}/{kept}")
        finally:
            await bao.close()

    async def forget_checkpoints(self, above: int = 0) -> None:
        """Delete stored checkpoints."""
        await self.dba.execute("DELETE FROM audit.checkpoints WHERE chain = $1 AND size > $2", self.chain, above)


@asynccontextmanager
async def breakable(world: World, operator: Edge, entries: int) -> AsyncIterator[Ledger]:
    """A chain of some entries, all of them anchored, and its DBA with triggers off; nothing of it is left."""
    dba = await world.superuser()
    try:
        await dba.execute("SET session_replication_role = replica")
        made = await new_chain(world, operator, dba)
        await made.fill(entries)
        await made.checkpointed()
        yield made
        # A chain that is refused keeps audit from being ready, for good.
        await made.forget()
    finally:
        await dba.close()


async def new_chain(world: World, operator: Edge, dba: asyncpg.Connection) -> Ledger:
    """Make a Domain for its chain."""
    tag = uuid.uuid4().hex[:8]
    octets = f"{int(tag[:2], 16)}.{int(tag[2:4], 16)}"
    body = {"name": "Ledger", "slug": f"ledger-{tag}", "mesh_cidr": f"10.{octets}.0/24"}
    made = await operator.call("POST", "/v1/domains", body)
    assert made.status == 201, made.body
    return Ledger(world, operator, dba, made.json["id"])
