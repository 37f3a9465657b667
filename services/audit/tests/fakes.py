"""Stand-ins of audit's ports, for unit tests of its rules; test_ports.py holds them to the real ones' promises."""

import datetime
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import asyncpg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.archive import name_of
from libs.chain import GENESIS
from libs.clock import SystemClock
from libs.custody import Secret
from libs.decision import Decision
from libs.errors import AcknowledgementStale, PlexError
from libs.tlog.tree import Node
from services.audit.checkpoints import Checkpoints
from services.audit.entry import link
from services.audit.guard import Guard
from services.audit.model import Anchor, Draft, Filter, Head, Note, Piece, Row, Signed, Storage, Stored
from services.audit.restores import Checked, Restores, Seen
from services.audit.store import PgStore
from services.audit.tree_store import PgTrees


@dataclass
class FakeChains:
    """Chains in memory; appends and reads."""

    rows: dict[str, list[Stored]] = field(default_factory=lambda: defaultdict(list))
    keys: dict[UUID, int] = field(default_factory=dict)
    erased: dict[tuple[str, str], datetime.datetime] = field(default_factory=dict)
    kept_in: Storage = field(default_factory=lambda: Storage("server", "storage"))

    async def storage(self) -> Storage:
        return self.kept_in

    async def append(self, entry: Draft) -> int:
        decision = entry.decision
        if decision.idempotency_key not in self.keys:
            self.add(link([entry], await self.head(decision.chain))[0])
        return self.keys[decision.idempotency_key]

    async def resume(self, entry: Draft, head: Head) -> None:
        if entry.decision.idempotency_key in self.keys:
            return
        if await self.head(entry.decision.chain) != head:
            raise AcknowledgementStale
        self.add(link([entry], head)[0])

    def add(self, row: Row) -> None:
        entry, decision = row.draft, row.draft.decision
        self.rows[decision.chain].append(
            Stored(
                decision.chain, row.seq, row.prev_hash, row.entry_hash, row.canonical, decision.occurred_at,
                entry.pseudonym, decision.relation, decision.object_type, decision.object_id, decision.reason,
                decision.correlation_id, decision.context, entry.salt, decision.subject_id, decision.subject_kind,
                decision.client_ip, decision.user_agent,
            )
        )  # fmt: skip
        self.keys[decision.idempotency_key] = row.seq

    async def head(self, chain: str) -> Head:
        rows = self.rows[chain]
        return Head(rows[-1].seq, rows[-1].entry_hash) if rows else Head(0, GENESIS)

    async def page(self, chain: str, wanted: Filter, below: int, limit: int) -> list[Stored]:
        found = [row for row in reversed(self.rows[chain]) if row.seq < below]
        found = [row for row in found if wanted.reason in {"", row.reason}]
        return [row for row in found if wanted.object_type in {"", row.object_type}][:limit]

    async def get(self, chain: str, seq: int) -> Stored | None:
        return next((row for row in self.rows[chain] if row.seq == seq), None)

    async def walk(self, chain: str, first: int, last: int) -> AsyncIterator[Stored]:
        for row in self.rows[chain]:
            if first <= row.seq <= last:
                yield row

    async def piece(self, chain: str, first: int, last: int) -> Piece:
        return Piece.of([row async for row in self.walk(chain, first, last)])

    async def erase(self, chain: str, pseudonyms: list[str], at: datetime.datetime) -> datetime.datetime:
        for name in pseudonyms:
            self.erased.setdefault((chain, name), at)
        self.rows[chain] = [
            replace(row, salt=None, subject_id="", subject_kind="", client_ip="", user_agent="", erased=True)
            if row.pseudonym in pseudonyms
            else row
            for row in self.rows[chain]
        ]
        return self.erased[chain, pseudonyms[0]]

    async def erased_at(self, chain: str, pseudonym: str) -> datetime.datetime | None:
        return self.erased.get((chain, pseudonym))


class FakePeppers:
    """A pepper a chain."""

    async def pepper(self, chain: str) -> Secret:
        return Secret(chain.encode().ljust(32, b"\0")[:32])


@dataclass
class FakeRelations:
    """Grants what it was told to grant."""

    granted: set[tuple[str, str]] = field(default_factory=set)

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        return Decision("granted" if (permission, resource) in self.granted else "out_of_scope")


@dataclass
class FakeTrees:
    """Trees and checkpoints in memory; `chains` says how long each chain is."""

    chains: FakeChains
    nodes: dict[str, dict[Node, bytes]] = field(default_factory=lambda: defaultdict(dict))
    kept: dict[str, dict[int, Signed]] = field(default_factory=lambda: defaultdict(dict))
    refusal: PlexError | None = None

    async def size(self, chain: str) -> int:
        return sum(node.level == 0 for node in self.nodes[chain])

    async def hashes(self, chain: str, nodes: Iterable[Node]) -> dict[Node, bytes]:
        return {node: self.nodes[chain][node] for node in nodes if node in self.nodes[chain]}

    async def grow(self, chain: str, nodes: Sequence[tuple[Node, bytes]]) -> bool:
        if nodes[0][0] in self.nodes[chain]:
            return False
        self.nodes[chain] |= dict(nodes)
        return True

    async def newest(self, chain: str) -> Signed | None:
        return max(self.kept[chain].values(), key=lambda signed: signed.size, default=None)

    async def at(self, chain: str, size: int) -> Signed | None:
        return self.kept[chain].get(size)

    async def keep(self, chain: str, signed: Signed) -> None:
        if self.refusal:
            raise self.refusal
        self.kept[chain].setdefault(signed.size, signed)

    async def due(self, entries: int, before: datetime.datetime) -> list[str]:
        found = []
        for chain in sorted(self.chains.rows):
            head, newest = (await self.chains.head(chain)).seq, await self.newest(chain)
            size, at = (newest.size, newest.created_at) if newest else (0, before)
            if head != size and (head < size or head >= size + entries or at <= before):
                found.append(chain)
        return found


@dataclass
class FakeAnchors:
    """Anchors in memory."""

    anchors: dict[str, Anchor] = field(default_factory=dict)
    storages: dict[str, str] = field(default_factory=dict)
    refusal: PlexError | None = None

    async def read(self, chain: str) -> Anchor | None:
        if self.refusal:
            raise self.refusal
        return self.anchors.get(chain)

    async def move(self, chain: str, note: str, before: Anchor | None, epoch: int = 0) -> bool:
        version = before.version if before else 0
        now = self.anchors.get(chain)
        if (now.version if now else 0) != version:
            return False
        self.anchors[chain] = Anchor(note, version + 1, epoch)
        return True

    async def chains(self) -> list[str]:
        return list(self.anchors)

    async def storage(self, chain: str) -> str:
        return self.storages.get(chain, "")

    async def found_whole(self, chain: str, storage: str) -> None:
        self.storages[chain] = storage


@dataclass
class FakeSigner:
    """Key pairs, the last of which signs; `signs` is another one that signs in its place."""

    pairs: list[Ed25519PrivateKey] = field(default_factory=lambda: [Ed25519PrivateKey.generate()])
    signs: Ed25519PrivateKey | None = None

    async def keys(self) -> list[bytes]:
        return [pair.public_key().public_bytes_raw() for pair in self.pairs]

    async def sign(self, text: bytes) -> bytes:
        return (self.signs or self.pairs[-1]).sign(text)


@dataclass
class FakeSegments:
    """Segments in memory."""

    planned: dict[tuple[str, int], list[Note]] = field(default_factory=lambda: defaultdict(list))
    etags: dict[tuple[str, int, int], str] = field(default_factory=dict)
    refusal: PlexError | None = None

    async def open(self, chain: str, epoch: int) -> Note | None:
        planned = self.planned[chain, epoch]
        return next((note for note in planned if (chain, epoch, note.first) not in self.etags), None)

    async def end(self, chain: str, epoch: int) -> int:
        return max((note.last for note in self.planned[chain, epoch]), default=0)

    async def plan(self, chain: str, epoch: int, note: Note) -> None:
        if note.first not in {one.first for one in self.planned[chain, epoch]}:
            self.planned[chain, epoch].append(note)

    async def archived(self, chain: str, epoch: int, first: int, etag: str, at: datetime.datetime) -> None:
        if self.refusal:
            raise self.refusal
        self.etags.setdefault((chain, epoch, first), etag)

    async def walk(self, chain: str, epoch: int) -> AsyncIterator[Note]:
        for note in self.planned[chain, epoch]:
            if (chain, epoch, note.first) in self.etags:
                yield note

    async def chains(self) -> list[str]:
        return [chain for chain, _, _ in self.etags]

    async def due(self, entries: int, before: datetime.datetime) -> list[str]:
        return []


@dataclass
class FakeObjects:
    """Objects in memory."""

    content: dict[str, bytes] = field(default_factory=dict)

    async def create(self, name: str, content: bytes) -> str | None:
        if name in self.content:
            return None
        self.content[name] = content
        return f'"{len(self.content)}"'

    async def read(self, name: str) -> tuple[str, bytes] | None:
        return ('"0"', self.content[name]) if name in self.content else None

    async def chains(self) -> list[str]:
        return [name.partition("/")[0] for name in self.content]

    async def firsts(self, chain: str, epoch: int) -> AsyncIterator[int]:
        for name in reversed(self.content):
            first = int(name.rpartition("/")[2].removesuffix(".zst"))
            if name == name_of(chain, first, epoch):
                yield first


class Trusting(Restores):
    """Checks that find nothing."""

    async def check(self, chain: str, seen: Seen | None) -> Checked:
        return Checked((await self.checkpoints.store.storage()).server, 0)


def trusting(pool: asyncpg.Pool) -> Guard:
    """Return a guard whose checks find nothing."""
    store, trees = PgStore(pool), PgTrees(pool)
    return Guard(Trusting(Checkpoints("example", store, trees, FakeAnchors(), FakeSigner(), SystemClock())))
