"""The rules of checkpoints: grow the tree, sign its root, anchor it where no DBA reaches, and only then keep it.

A crash after any step leaves a state from which the next turn goes on, and of two replicas the anchor lets one win.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from libs.chain import GENESIS, entry_hash
from libs.clock import Clock
from libs.errors import AuditDiverged, AuditUnavailable, SigningUnavailable
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import VerifierKey, seal_note
from libs.tlog.tree import Node, Run, Span, cover, leaf_hash
from libs.tlog.verify import NotProven
from services.audit.entry import agrees
from services.audit.model import Anchor, Head, Signed
from services.audit.ports import Anchors, Signer, Store, Trees

# Leaves a transaction: many enough that each costs little, few enough for memory and for who waits.
LEAVES = 5000
AGAIN_S = tuple(0.02 * 2**turn for turn in range(6))

log = structlog.get_logger()


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of all chains; `name` is the log's, which the chain's follows."""

    name: str
    store: Store
    trees: Trees
    anchors: Anchors
    signer: Signer
    clock: Clock

    async def keys(self, chain: str) -> list[VerifierKey]:
        """Return the keys that a chain's checkpoints verify with, the one that signs last."""
        return [VerifierKey(f"{self.name}/{chain}", key) for key in await self.signer.keys()]

    async def anchored(self, chain: str) -> Checkpoint | None:
        """Return what the anchor says of a chain; of entries after it nothing is known outside of the database."""
        anchor = await self.anchors.read(chain)
        return self._opened(anchor, await self.keys(chain)) if anchor else None

    async def turn(self, chain: str) -> None:
        """Checkpoint a chain as it is now; raises AuditDiverged when it does not go on from what was anchored."""
        # The stored one first: what another replica anchors and stores in between is not newer than the anchor then.
        newest = await self.trees.newest(chain)
        keys, anchor = await self.keys(chain), await self.anchors.read(chain)
        anchored = self._opened(anchor, keys) if anchor else None
        if newest is not None and (anchored is None or newest.size > anchored.size):
            # The anchor always comes first: it was taken back, or nobody signed what is stored.
            raise AuditDiverged("the anchor is older than a stored checkpoint")
        run = await self._grow(chain)
        if run is None:
            return
        if anchor is not None and anchored is not None:
            await self._require_same(chain, anchored, run)
            if newest is None or newest.size < anchored.size:
                # A crash came between: it was anchored and not kept.
                await self._keep(chain, anchored, anchor.note)
        if run.end > (anchored.size if anchored else 0):
            await self._publish(chain, run, anchor, anchor.epoch if anchor else 0)

    async def require_continues(self, chain: str, anchor: Anchor) -> None:
        """Raise AuditDiverged unless a chain goes on from its anchor, as far as O(log n) of its hashes show."""
        anchored = self._opened(anchor, await self.keys(chain))
        size, head = await self.trees.size(chain), await self.store.head(chain)
        if size < anchored.size:
            raise AuditDiverged(f"the database's tree ends at entry {size}, and {anchored.size} are anchored")
        await self._last(chain, size, head)
        if await self._root(chain, anchored.size) != anchored.root:
            raise AuditDiverged(f"the first {anchored.size} entries are not those that are anchored")
        last = await self.store.get(chain, head.seq)
        if last is None or last.entry_hash != head.entry_hash:
            raise AuditDiverged(f"entry {head.seq} is not as it was written")

    async def require_whole(self, chain: str, anchor: Anchor) -> None:
        """Raise AuditDiverged with the first entry that is not as it was written, or not what was anchored.

        All are recomputed, in constant memory. The tree is that of the anchor already.
        """
        anchored = self._opened(anchor, await self.keys(chain))
        head, before, run = await self.store.head(chain), GENESIS, Run()
        while run.end < head.seq:
            first, last = run.end, min(head.seq, run.end + LEAVES)
            kept = await self.trees.hashes(chain, [Node(0, index) for index in range(first, last)])
            async for row in self.store.walk(chain, first + 1, last):
                own = entry_hash(before, hashlib.sha256(row.canonical).digest())
                leaf = kept.get(Node(0, run.end), leaf_hash(own))
                written = (row.seq, row.prev_hash, row.entry_hash) == (run.end + 1, before, own)
                if not written or leaf != leaf_hash(own) or not agrees(row):
                    raise AuditDiverged(f"entry {run.end + 1} is not as it was written")
                run.push(own)
                before = own
                if run.end == anchored.size and run.root() != anchored.root:
                    raise AuditDiverged(f"the first {anchored.size} entries are not those that are anchored")
            if run.end < last:
                raise AuditDiverged(f"entry {run.end + 1} is missing")

    async def require_consistent(self, chain: str) -> None:
        """Raise AuditDiverged unless the database is one log by itself, whatever is anchored of it."""
        newest, run = await self.trees.newest(chain), await self._grown(chain)
        if newest is not None and (newest.size > run.end or await self._root(chain, newest.size) != newest.root):
            raise AuditDiverged("a stored checkpoint is not of this chain")

    async def accept(self, chain: str, anchor: Anchor | None) -> bool:
        """Anchor a chain as it is now in place of what was anchored; returns whether that was still the anchor."""
        return await self._publish(chain, await self._grown(chain), anchor, anchor.epoch + 1 if anchor else 1)

    async def _grown(self, chain: str) -> Run:
        for wait_s in AGAIN_S:
            if (run := await self._grow(chain)) is not None:
                return run
            # Another replica grows the tree, which is soon over.
            await asyncio.sleep(wait_s)
        raise AuditUnavailable("the tree of the chain is grown by others all the time")

    async def _grow(self, chain: str) -> Run | None:
        """Take new entries into the tree; returns all of it, or None when another replica is at it."""
        size, head = await self.trees.size(chain), await self.store.head(chain)
        before = await self._last(chain, size, head)
        run = Run()
        run.extend(Span(0, size), await stored_hashes(self.trees, chain, cover(Span(0, size))))
        while run.end < head.seq:
            last = min(head.seq, run.end + LEAVES)
            nodes: list[tuple[Node, bytes]] = []
            async for row in self.store.walk(chain, run.end + 1, last):
                own = entry_hash(before, hashlib.sha256(row.canonical).digest())
                # What was altered before it was signed for must not be signed for.
                if row.prev_hash != before or row.entry_hash != own:
                    raise AuditDiverged(f"entry {run.end + 1} is not as it was written")
                nodes += run.push(own)
                before = own
            if run.end < last:
                raise AuditDiverged(f"entry {run.end + 1} is missing")
            if not await self.trees.grow(chain, nodes):
                return None
        return run

    async def _last(self, chain: str, size: int, head: Head) -> bytes:
        """Return the hash that the next entry links to, which is the tree's last leaf."""
        if head.seq < size:
            raise AuditDiverged("the chain is shorter than its tree")
        if size == 0:
            return GENESIS
        leaf, row = Node(0, size - 1), await self.store.get(chain, size)
        stored = await stored_hashes(self.trees, chain, [leaf])
        if row is None or leaf_hash(row.entry_hash) != stored[leaf]:
            raise AuditDiverged(f"entry {size} is not as it was written")
        return row.entry_hash

    async def _require_same(self, chain: str, anchored: Checkpoint, run: Run) -> None:
        if run.end < anchored.size:
            raise AuditDiverged("the chain is shorter than its anchor")
        if await self._root(chain, anchored.size) != anchored.root:
            raise AuditDiverged("the tree is not what was anchored")

    async def _root(self, chain: str, size: int) -> bytes:
        span, run = Span(0, size), Run()
        run.extend(span, await stored_hashes(self.trees, chain, cover(span)))
        return run.root()

    async def _publish(self, chain: str, run: Run, before: Anchor | None, epoch: int = 0) -> bool:
        """Sign for a tree, anchor that, and keep it; returns whether the anchor was still the one before."""
        key = (await self.keys(chain))[-1]
        checkpoint = Checkpoint(key.name, run.end, run.root())
        text = checkpoint.text()
        try:
            note = seal_note(text, key, await self.signer.sign(text.encode()))
        except NotProven as error:
            raise SigningUnavailable(str(error)) from error
        moved = await self.anchors.move(chain, note, before, epoch)
        if moved:
            await self._keep(chain, checkpoint, note)
        else:
            log.info("checkpoint.overtaken", chain=chain, size=checkpoint.size)
        return moved

    async def _keep(self, chain: str, checkpoint: Checkpoint, note: str) -> None:
        await self.trees.keep(chain, Signed(checkpoint.size, checkpoint.root, note, self.clock.now()))
        log.info("checkpoint.kept", chain=chain, size=checkpoint.size)

    def _opened(self, anchor: Anchor, keys: list[VerifierKey]) -> Checkpoint:
        try:
            return open_checkpoint(anchor.note, keys[-1].name, keys)
        except NotProven as error:
            raise AuditDiverged("the anchor is not one of ours") from error


async def stored_hashes(trees: Trees, chain: str, nodes: Iterable[Node]) -> dict[Node, bytes]:
    """Return the stored hashes of subtrees; raises AuditDiverged when one is gone."""
    wanted = list(nodes)
    found = await trees.hashes(chain, wanted)
    if len(found) < len(wanted):
        raise AuditDiverged("the tree is not whole")
    return found
