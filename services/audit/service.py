"""The rules of audit: append before effect, reads that are themselves recorded, divergence as an answer."""

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from libs.clock import Clock
from libs.cursor import Cursors
from libs.errors import (
    AuditDiverged,
    AuditUnavailable,
    CheckpointNotFound,
    CursorBindingMismatch,
    Forbidden,
    InvalidCursor,
    InvalidRequest,
    NotFound,
)
from libs.ids import uuid7
from libs.principal import Principal
from libs.scope import named
from services.audit.entry import draft, pseudonym, texts
from services.audit.model import (
    PLATFORM,
    Consistency,
    Decision,
    Export,
    Filter,
    Inclusion,
    Page,
    Progress,
    Shown,
    Stored,
    Verdict,
    resource_of,
)
from services.audit.ports import Appender, Peppers, Relations, Store
from services.audit.proofs import Proofs
from services.audit.verification import Verification, pieces

AUDIT, MANAGE = "audit", "manage"
SUBJECT_KINDS = ("user", "service", "node")
# How long a stream goes on after what let it begin was taken away.
ASK_AGAIN = datetime.timedelta(seconds=2)

Part = TypeVar("Part")


@dataclass(frozen=True)
class Request:
    """Who asks, and what the edge saw of them."""

    principal: Principal
    correlation_id: str = ""
    client_ip: str = field(default="", repr=False)
    user_agent: str = field(default="", repr=False)


@dataclass(frozen=True)
class Audit:
    """The audit service."""

    appender: Appender
    store: Store
    peppers: Peppers
    relations: Relations
    proofs: Proofs
    cursors: Cursors
    clock: Clock

    async def append(self, decision: Decision) -> int:
        """Return the row's sequence; durable once it returns, so that the caller may let the effect out."""
        # Refused by itself: in a batch it would fail the rows of all others.
        if any("\0" in text for text in texts(decision)):
            raise InvalidRequest("a text holds a character that cannot be stored")
        return await self.appender.append(draft(decision, await self.peppers.pepper(decision.chain)))

    async def list(self, request: Request, chain: str, wanted: Filter, cursor: str, limit: int) -> Page:
        """Return a page, newest first; the upper bound is fixed in the first cursor, so that paging ends."""
        await self._admit(request, chain, AUDIT, "audit.list", chain)
        try:
            below = self._position(request, chain, cursor)
            rows = await self.store.page(chain, wanted, below, limit)
        finally:
            # Recorded after the query and before the bytes leave: a page never contains its own row.
            await self._record(request, chain, AUDIT, "audit.list", chain, "granted")
        if len(rows) < limit:
            return Page(rows)
        return Page(rows, self.cursors.seal(f"audit:{chain}", request.principal.subject, {"below": rows[-1].seq}))

    def _position(self, request: Request, chain: str, cursor: str) -> int:
        if not cursor:
            return 2**62
        try:
            return int(self.cursors.open(f"audit:{chain}", request.principal.subject, cursor)["below"])
        except CursorBindingMismatch:
            raise InvalidCursor from None

    async def get(self, request: Request, chain: str, seq: int) -> Stored:
        """Return one entry; without the relation, or without the entry, the same NotFound."""
        try:
            await self._admit(request, chain, AUDIT, "audit.get", str(seq))
        except Forbidden:
            raise NotFound from None
        row = await self.store.get(chain, seq)
        await self._record(request, chain, AUDIT, "audit.get", str(seq), "granted")
        if row is None:
            raise NotFound
        return row

    async def checkpoint(self, request: Request, chain: str) -> Shown:
        """Return the newest signed checkpoint."""
        await self._admit(request, chain, AUDIT, "audit.checkpoint", chain)
        try:
            return await self.proofs.newest(chain)
        finally:
            # Whatever came of it, and before that leaves.
            await self._record(request, chain, AUDIT, "audit.checkpoint", chain, "granted")

    async def prove(self, request: Request, chain: str, seq: int, size: int) -> Inclusion:
        """Prove that an entry is in the log of a checkpoint."""
        await self._admit(request, chain, AUDIT, "audit.prove", str(seq))
        try:
            return await self.proofs.inclusion(chain, seq, size)
        finally:
            await self._record(request, chain, AUDIT, "audit.prove", str(seq), "granted")

    async def prove_consistency(self, request: Request, chain: str, older: int, newer: int) -> Consistency:
        """Prove that the log of a checkpoint goes on from that of an older one."""
        await self._admit(request, chain, AUDIT, "audit.prove-consistency", chain)
        try:
            return await self.proofs.consistency(chain, older, newer)
        finally:
            await self._record(request, chain, AUDIT, "audit.prove-consistency", chain, "granted")

    async def verify(self, request: Request, chain: str, first: int, last: int) -> Verdict:
        """Recompute a segment from the rows themselves, and hold it against what was anchored outside of the database.

        An empty chain is the segment 1 to 1 and diverges nowhere, unless something was anchored.
        """
        *_, verdict = [one async for one in self.verify_stream(request, chain, first, last) if isinstance(one, Verdict)]
        return verdict

    async def verify_stream(
        self, request: Request, chain: str, first: int, last: int
    ) -> AsyncIterator[Progress | Verdict]:
        """Do the same, and yield how far it is; the verdict comes last."""
        await self._admit(request, chain, AUDIT, "audit.verify", chain)
        try:
            # The anchor first: a chain that goes on meanwhile is never shorter than it.
            anchored = await self.proofs.checkpoints.anchored(chain)
            head = await self.store.head(chain)
            newest = max(head.seq, 1)
            first, last = first or 1, min(last or newest, newest)
            if first > last:
                raise InvalidRequest("from_seq is beyond the segment's end")
        finally:
            await self._record(request, chain, AUDIT, "audit.verify", chain, "granted")
        found = Verification(self.store, self.proofs).run(chain, anchored, first, last, head)
        async for step in self._while_admitted(request, chain, found):
            yield step

    async def export(self, request: Request, chain: str, first: int, last: int) -> Export:
        """Hand out entries as they are stored, and what was last signed for them; nothing of it is judged here."""
        await self._admit(request, chain, AUDIT, "audit.export", chain)
        try:
            # The checkpoint first, as above.
            checkpoint = await self._newest(chain)
            head = await self.store.head(chain)
        finally:
            await self._record(request, chain, AUDIT, "audit.export", chain, "granted")
        first, last = first or 1, min(last or head.seq, head.seq)
        rows = pieces(self.store, chain, first, last)
        return Export(first, last, checkpoint, self._while_admitted(request, chain, rows))

    async def _newest(self, chain: str) -> Shown | None:
        try:
            return await self.proofs.newest(chain)
        except CheckpointNotFound:
            return None

    async def erase(self, request: Request, chain: str, identity_id: UUID) -> tuple[str, datetime.datetime]:
        """Remove an identity's personal data; returns its pseudonym and when it was first removed. Idempotent."""
        await self._admit(request, chain, MANAGE, "audit.erase-identity", str(identity_id))
        pepper = await self.peppers.pepper(chain)
        names = [pseudonym(pepper, kind, str(identity_id)) for kind in SUBJECT_KINDS]
        before = await self.store.erased_at(chain, names[0])
        await self._record(request, chain, MANAGE, "audit.erase-identity", str(identity_id), "granted")
        if before is not None:
            # Rows that came after the first erasure go too; the answer stays the first one.
            await self.store.erase(chain, names, before)
            return names[0], before
        return names[0], await self.store.erase(chain, names, self.clock.now())

    async def _while_admitted(self, request: Request, chain: str, parts: AsyncIterator[Part]) -> AsyncIterator[Part]:
        """Yield parts as long as who asked may have them; raises Forbidden once that is over."""
        asked_at = self.clock.now()
        async for part in parts:
            if self.clock.now() - asked_at >= ASK_AGAIN:
                (await self.relations.check(request.principal.reference, AUDIT, resource_of(chain))).require()
                asked_at = self.clock.now()
            yield part

    async def _admit(self, request: Request, chain: str, permission: str, action: str, object_id: str) -> None:
        decision = await self.relations.check(request.principal.reference, permission, resource_of(chain))
        if not decision.granted:
            # A made-up Domain must not get a chain: whoever is refused could fill the database with them.
            known = (await self.store.head(chain)).seq > 0
            await self._record(request, chain if known else PLATFORM, permission, action, object_id, decision.reason)
        decision.require()

    async def _record(
        self, request: Request, chain: str, relation: str, action: str, object_id: str, reason: str
    ) -> None:
        try:
            await self._record_in(chain, request, relation, action, object_id, reason)
        except AuditDiverged:
            # Who reads a chain that is refused finds out what happened to it, which is recorded where it can be.
            if relation != AUDIT or chain == PLATFORM:
                raise AuditUnavailable("the chain is refused") from None
            await self._record(request, PLATFORM, relation, action, _within(chain, object_id), reason)

    async def _record_in(
        self, chain: str, request: Request, relation: str, action: str, object_id: str, reason: str
    ) -> None:
        await self.append(
            Decision(
                chain=chain,
                idempotency_key=uuid7(),
                occurred_at=self.clock.now(),
                action=action,
                subject_id=request.principal.subject,
                subject_kind=request.principal.kind,
                relation=relation,
                object_type="audit",
                object_id=object_id,
                reason=reason,
                context={"action": [action], **named(request.principal.reference, relation, reason)},
                correlation_id=request.correlation_id,
                client_ip=request.client_ip,
                user_agent=request.user_agent,
            )
        )


def _within(chain: str, object_id: str) -> str:
    """Name an object of a chain in another one."""
    return object_id if object_id == chain else f"{chain}/{object_id}"
