"""What checkpoints prove: that an entry is in one, that one goes on from another, that a chain is what was anchored.

Nothing is shown that does not verify: who holds the database could else have it sent in audit's name.
"""

from dataclasses import dataclass

from libs.errors import AuditDiverged, CheckpointNotFound, NotFound
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import VerifierKey
from libs.tlog.proof import Proof
from libs.tlog.tree import EMPTY, Node, Run, Span, consistency, cover, inclusion, leaf_hash, prove
from libs.tlog.verify import NotProven, verify_consistency, verify_inclusion
from services.audit.checkpoints import LEAVES, Checkpoints, stored_hashes
from services.audit.model import Consistency, Doubt, Inclusion, Shown, Signed


@dataclass(frozen=True)
class Proofs:
    """Proofs from stored hashes, each in O(log n) of them."""

    checkpoints: Checkpoints

    async def newest(self, chain: str) -> Shown:
        """Return the newest checkpoint; raises CheckpointNotFound."""
        signed = await self.checkpoints.trees.newest(chain)
        return _shown(signed, await self.checkpoints.keys(chain))

    async def inclusion(self, chain: str, seq: int, size: int) -> Inclusion:
        """Prove that an entry is in the log of a checkpoint; raises CheckpointNotFound, NotFound beyond it."""
        shown = await self._at(chain, size)
        if seq > size:
            raise NotFound
        row = await self.checkpoints.store.get(chain, seq)
        if row is None:
            raise AuditDiverged(f"entry {seq} is missing")
        hashes = await self._prove(chain, inclusion(seq - 1, size))
        try:
            verify_inclusion(leaf_hash(row.entry_hash), seq - 1, size, hashes, shown.signed.root)
        except NotProven as error:
            raise AuditDiverged(f"entry {seq} is not the one that was signed for") from error
        file = str(Proof(seq - 1, tuple(hashes), shown.signed.note))
        return Inclusion(seq, row.entry_hash, hashes, shown, file)

    async def consistency(self, chain: str, old: int, new: int) -> Consistency:
        """Prove that the log of a checkpoint goes on from that of an older one; raises CheckpointNotFound."""
        if old > new:
            raise CheckpointNotFound
        older, newer = await self._at(chain, old), await self._at(chain, new)
        hashes = await self._prove(chain, consistency(old, new))
        try:
            verify_consistency(old, older.signed.root, new, newer.signed.root, hashes)
        except NotProven as error:
            raise AuditDiverged("the two checkpoints are of different logs") from error
        return Consistency(hashes, older, newer)

    async def doubt(self, chain: str, anchored: Checkpoint, run: Run) -> Doubt | None:
        """Say where a chain is not what was anchored; `run` holds the recomputed leaves of the segment asked about.

        What is outside of the segment is taken from the stored hashes, of which none can be another under that root.
        """
        left, right = Span(0, run.begin), Span(run.end, anchored.size)
        nodes = [*cover(left), *cover(right)]
        stored = await self.checkpoints.trees.hashes(chain, nodes)
        if len(stored) < len(nodes):
            return await self._first_doubt(chain, anchored, EMPTY)
        whole = Run()
        whole.extend(left, stored)
        for node, value in run.parts:
            whole.add(node, value)
        whole.extend(right, stored)
        return None if whole.root() == anchored.root else await self._first_doubt(chain, anchored, whole.root())

    async def _first_doubt(self, chain: str, anchored: Checkpoint, observed: bytes) -> Doubt:
        """Return the first entry that is not its stored leaf, if the stored leaves are those that were anchored."""
        kept, found = Run(), None
        while kept.end < anchored.size:
            first, last = kept.end, min(anchored.size, kept.end + LEAVES)
            stored = await self.checkpoints.trees.hashes(chain, [Node(0, index) for index in range(first, last)])
            entries = {row.seq: row.entry_hash async for row in self.checkpoints.store.walk(chain, first + 1, last)}
            for index in range(first, last):
                leaf = stored.get(Node(0, index), EMPTY)
                entry = entries.get(index + 1)
                actual = leaf_hash(entry) if entry else bytes(32)
                if found is None and actual != leaf:
                    found = Doubt(index + 1, leaf, actual)
                kept.add(Node(0, index), leaf)
        if found is not None and kept.root() == anchored.root:
            return found
        # The tree was rewritten with the entries: all that is known is that they are not those of the anchor.
        return Doubt(anchored.size, anchored.root, observed)

    async def _at(self, chain: str, size: int) -> Shown:
        return _shown(await self.checkpoints.trees.at(chain, size), await self.checkpoints.keys(chain))

    async def _prove(self, chain: str, spans: list[Span]) -> list[bytes]:
        nodes = [node for span in spans for node in cover(span)]
        return prove(spans, await stored_hashes(self.checkpoints.trees, chain, nodes))


def _shown(signed: Signed | None, keys: list[VerifierKey]) -> Shown:
    if signed is None:
        raise CheckpointNotFound
    for key in keys:
        try:
            opened = open_checkpoint(signed.note, key.name, [key])
        except NotProven:
            continue
        if (opened.size, opened.root) == (signed.size, signed.root):
            return Shown(signed, str(key))
    raise AuditDiverged("the stored checkpoint is not what was signed")
