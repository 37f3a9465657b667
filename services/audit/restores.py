"""Whether a chain goes on from what is known of it outside of the database: its anchor, and what a process has seen.

The anchor is held against O(log n) hashes. Of a restored database each row is looked at once: one that was altered may
show in no hash above it.
"""

from dataclasses import dataclass

from libs.errors import AuditDiverged, AuditUnavailable
from services.audit.checkpoints import Checkpoints
from services.audit.model import Head


@dataclass(frozen=True)
class Seen:
    """Where a chain ended when it was last seen, and in which epoch."""

    head: Head
    epoch: int


@dataclass(frozen=True)
class Checked:
    """On which server a chain was found to go on, and in which epoch."""

    server: str
    epoch: int


@dataclass(frozen=True)
class Restores:
    """Finds databases that were restored or swapped."""

    checkpoints: Checkpoints

    async def server(self) -> str:
        """Return what tells a running server, its database and its table from others."""
        return (await self.checkpoints.store.storage()).server

    async def chains(self) -> list[str]:
        """Return the chains that may have an anchor, also those of which the database knows nothing."""
        return await self.checkpoints.anchors.chains()

    async def check(self, chain: str, seen: Seen | None) -> Checked:
        """Return where a chain goes on; raises AuditDiverged when it does not."""
        store, anchors = self.checkpoints.store, self.checkpoints.anchors
        storage = await store.storage()
        # The anchor first: a chain that goes on meanwhile is never shorter than it.
        anchor = await anchors.read(chain)
        epoch = anchor.epoch if anchor else 0
        if seen is not None and seen.epoch == epoch:
            await self._require_seen(chain, seen.head)
        if anchor is not None:
            await self.checkpoints.require_continues(chain, anchor)
            if await anchors.storage(chain) != storage.name:
                await self.checkpoints.require_whole(chain, anchor)
                await anchors.found_whole(chain, storage.name)
        if await store.storage() != storage:
            raise AuditUnavailable("the database was replaced meanwhile")
        return Checked(storage.server, epoch)

    async def _require_seen(self, chain: str, seen: Head) -> None:
        """Raise AuditDiverged when what was durable is gone, which the anchor may be too old to know."""
        head, row = await self.checkpoints.store.head(chain), await self.checkpoints.store.get(chain, seen.seq)
        if not goes_on(seen, head, row.entry_hash if row else None):
            raise AuditDiverged(f"entry {seen.seq} was there and is not any longer")


def goes_on(seen: Head, head: Head, there: bytes | None) -> bool:
    """Say whether a head goes on from one that was seen; `there` is the hash of the entry at that sequence."""
    return head.seq >= seen.seq and (there == seen.entry_hash or seen.seq == 0)
