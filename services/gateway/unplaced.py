"""Envelopes that the gate gave up before mesh had noted their place.

It may be noted all the same, and a gateway that has read on by then finds nothing there. Their nodes fetch their state.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from libs import envelope
from services.gateway.gate import Admitted, Refusal
from services.gateway.ports import NonceStore, Verdict
from services.gateway.ring import Ring

NOTED = frozenset({Verdict.PUBLISHED, Verdict.REPLAYED})
# Each is mesh's own, and one whose publishing failed: nobody else can make any.
MOST = 10_000
MOST_AT_ONCE = 500
NO_NODE = UUID(int=0)

Reconcile = Callable[[UUID, UUID], Awaitable[None]]

log = structlog.get_logger()


@dataclass
class Unplaced:
    """Those of the last five minutes, for as long as nobody has them."""

    nonces: NonceStore
    reconcile: Reconcile
    # The sequence of a Domain's reconciliation of the last seconds; 0 for none.
    reconciled: Callable[[UUID], int]
    _waiting: dict[UUID, Admitted] = field(default_factory=dict)
    # How far mesh's log was when it had noted them.
    _noted: dict[UUID, int] = field(default_factory=dict)

    def add(self, refused: Iterable[Refusal]) -> None:
        """Remember what was given up."""
        for refusal in refused:
            if refusal.reason == Verdict.PENDING.value and refusal.envelope is not None:
                self._waiting[refusal.envelope.id] = refusal.envelope
        while len(self._waiting) > MOST:
            self._drop(next(iter(self._waiting)))

    async def look(self, ring: Ring, now_ns: int) -> None:
        """Ask whether they were noted since, and let the nodes of those that were read past fetch their state."""
        for one in list(self._waiting.values()):
            if now_ns - one.envelope.issued_ns > envelope.WINDOW_NS or ring.knows(one.id):
                self._drop(one.id)
        await self._ask()
        for identifier, highest in list(self._noted.items()):
            # Up to here everything that is noted before it is read, or never will be.
            if ring.position >= highest and not ring.knows(identifier):
                await self._make_good(self._waiting[identifier], highest)

    async def _ask(self) -> None:
        asked = [one for one in self._waiting.values() if one.id not in self._noted][:MOST_AT_ONCE]
        if not asked:
            return
        verdicts, _ = await self.nonces.check([one.seen for one in asked], ())
        noted = [one.id for one, verdict in zip(asked, verdicts, strict=True) if verdict in NOTED]
        if noted:
            self._noted |= dict.fromkeys(noted, await self.nonces.highest())
        for one in asked:
            # The others have their turn next.
            if kept := self._waiting.pop(one.id, None):
                self._waiting[one.id] = kept

    async def _make_good(self, one: Admitted, highest: int) -> None:
        if self.reconciled(one.domain_id) > highest:
            self._drop(one.id)
            return
        kind, _, subject = one.envelope.scope.partition(":")
        log.warning("events.passed_over", id=str(one.id), domain_id=str(one.domain_id), sequence=one.sequence)
        await self.reconcile(one.domain_id, UUID(subject) if kind == "node" else NO_NODE)

    def _drop(self, identifier: UUID) -> None:
        self._waiting.pop(identifier, None)
        self._noted.pop(identifier, None)
