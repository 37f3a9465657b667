"""How a chain goes on from a restored database: by a note that says exactly that, from somebody who may say so.

The text names the log, and for each chain what is anchored and what the database has. Both are others once it was
taken, so it is good for one time. The entry comes first and the anchor after it; after a crash in between the same note
is taken again.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

import structlog

from libs.clock import Clock
from libs.errors import (
    AcknowledgementInvalid,
    AcknowledgementNotTrusted,
    AcknowledgementStale,
    AuditDiverged,
    PlexError,
    RestoreInconsistent,
)
from libs.ids import uuid7
from libs.tlog.checkpoint import decimal
from libs.tlog.note import VerifierKey, from_base64, open_note
from libs.tlog.tree import EMPTY
from libs.tlog.verify import NotProven
from services.audit.checkpoints import Checkpoints
from services.audit.entry import draft
from services.audit.guard import Guard
from services.audit.model import PLATFORM, Anchor, Decision, Head
from services.audit.ports import Peppers, Resumer

SENTENCE = (
    "These chains go on from what the database has. Chain, size and root of its anchor; its last entry, that hash:"
)
LINE = re.compile(r"([0-9a-z-]{1,64}) ([0-9]+) (\S+) ([0-9]+) (\S+)")
CHECK, REFUSED, ACKNOWLEDGED = "audit.check-restore", "audit.restore-refused", "audit.restore-acknowledged"

log = structlog.get_logger()


@dataclass(frozen=True)
class Claim:
    """What is anchored of a chain, and what the database has of it."""

    chain: str
    size: int
    root: bytes
    head: Head

    def line(self) -> str:
        """Return the line of a statement."""
        root, last = (base64.b64encode(value).decode() for value in (self.root, self.head.entry_hash))
        return f"{self.chain} {self.size} {root} {self.head.seq} {last}\n"


@dataclass(frozen=True)
class State:
    """A chain as it is now; `reason` says why it is refused, and is empty when it goes on."""

    claim: Claim
    reason: str


@dataclass(frozen=True)
class Acknowledgements:
    """Looks at restored databases for operators, and takes their word; `keys` are those of who may give it."""

    checkpoints: Checkpoints
    guard: Guard
    resumer: Resumer
    peppers: Peppers
    keys: Sequence[VerifierKey]
    clock: Clock

    async def check(self, correlation_id: str, *, every: bool) -> tuple[list[State], str]:
        """Look at all chains again; returns those that are refused, or all, and what to sign for the refused."""
        chains = sorted({*await self.checkpoints.anchors.chains(), *self.guard.refused})
        reasons = zip(chains, await self.guard.look_at(chains), strict=True)
        found = [await self._state(chain, reason) for chain, reason in reasons if reason or every]
        states = [state for state in found if state is not None]
        await self._record(correlation_id, CHECK, "granted", {})
        return states, self._statement([state.claim for state in states if state.reason])

    async def acknowledge(self, correlation_id: str, note: str) -> list[str]:
        """Let chains go on that are still what the note says of them; returns their names.

        Raises AcknowledgementNotTrusted, AcknowledgementInvalid, AcknowledgementStale, RestoreInconsistent; nothing is
        changed then.
        """
        storage = await self.checkpoints.store.storage()
        try:
            text, key = self._opened(note)
            claims = self._parse(text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            states = [await self._require_true(claim, digest) for claim in claims]
            for claim in claims:
                await self._require_consistent(claim.chain)
        except PlexError as error:
            await self._record(correlation_id, REFUSED, "unknown", {"restore": [error.code]})
            raise
        for claim, anchor in zip(claims, states, strict=True):
            said = {
                "restore": [digest],
                "anchor": [str(claim.size), claim.root.hex()],
                "database": [str(claim.head.seq), claim.head.entry_hash.hex()],
                "acknowledged_by": [key.name, key.id.hex()],
            }
            await self._go_on(correlation_id, claim, anchor, said)
            await self.checkpoints.anchors.found_whole(claim.chain, storage.name)
            await self.guard.look_at([claim.chain])
        return [claim.chain for claim in claims]

    async def _state(self, chain: str, reason: str) -> State | None:
        """Return a chain as it is now; None when nothing is anchored of it, nor known of it otherwise."""
        anchored = await self.checkpoints.anchored(chain)
        if anchored is None and not reason:
            return None
        head = await self.checkpoints.store.head(chain)
        size, root = (anchored.size, anchored.root) if anchored else (0, EMPTY)
        return State(Claim(chain, size, root, head), reason)

    def _statement(self, claims: Sequence[Claim]) -> str:
        if not claims:
            return ""
        return f"{self.checkpoints.name}/restore\n{SENTENCE}\n" + "".join(claim.line() for claim in claims)

    def _opened(self, note: str) -> tuple[str, VerifierKey]:
        for key in self.keys:
            try:
                return open_note(note, [key]), key
            except NotProven:
                continue
        raise AcknowledgementNotTrusted

    def _parse(self, text: str) -> list[Claim]:
        found = [LINE.fullmatch(line) for line in text.split("\n")[2:-1]]
        try:
            claims = [
                Claim(
                    match[1], decimal(match[2]), from_base64(match[3]), Head(decimal(match[4]), from_base64(match[5]))
                )
                for match in found
                if match
            ]
        except NotProven as error:
            raise AcknowledgementInvalid(str(error)) from None
        # Another log, another sentence, a line that is none.
        if not claims or self._statement(claims) != text or len({claim.chain for claim in claims}) < len(claims):
            raise AcknowledgementInvalid("the text is no statement of this log")
        return claims

    async def _require_true(self, claim: Claim, digest: str) -> Anchor | None:
        """Return the anchor of a claim; raises AcknowledgementStale when it is another one, or the database is."""
        (reason,) = await self.guard.look_at([claim.chain])
        anchor, state = await self.checkpoints.anchors.read(claim.chain), await self._state(claim.chain, reason)
        if state is None or not reason:
            raise AcknowledgementStale(f"{claim.chain} is not refused")
        if state.claim not in (claim, await self._after(claim, digest)):
            raise AcknowledgementStale(f"{claim.chain} is not what was signed")
        return anchor

    async def _after(self, claim: Claim, digest: str) -> Claim:
        """Return a claim as it is once its entry was written, if a crash came after that."""
        row = await self.checkpoints.store.get(claim.chain, claim.head.seq + 1)
        if row is None or row.prev_hash != claim.head.entry_hash or row.context.get("restore") != [digest]:
            return claim
        return Claim(claim.chain, claim.size, claim.root, Head(row.seq, row.entry_hash))

    async def _require_consistent(self, chain: str) -> None:
        try:
            await self.checkpoints.require_consistent(chain)
        except AuditDiverged as error:
            raise RestoreInconsistent(str(error)) from error

    async def _go_on(
        self, correlation_id: str, claim: Claim, anchor: Anchor | None, said: dict[str, list[str]]
    ) -> None:
        entry = self._decision(correlation_id, claim.chain, ACKNOWLEDGED, "granted", said)
        # The same for the same note, so that a repetition does not say it twice.
        key = uuid5(UUID(int=0), f"{said['restore'][0]} {claim.chain}")
        made = Decision(**vars(entry) | {"idempotency_key": key})
        await self.resumer.resume(draft(made, await self.peppers.pepper(claim.chain)), claim.head)
        if not await self.checkpoints.accept(claim.chain, anchor):
            raise AcknowledgementStale(f"{claim.chain} was anchored meanwhile")
        log.warning("restore.acknowledged", chain=claim.chain, by=said["acknowledged_by"])

    async def _record(self, correlation_id: str, action: str, reason: str, context: dict[str, list[str]]) -> None:
        entry = self._decision(correlation_id, PLATFORM, action, reason, context)
        try:
            await self.guard.require(PLATFORM)
            await self.resumer.append(draft(entry, await self.peppers.pepper(PLATFORM)))
        except AuditDiverged:
            # Who is to find out what happened to the platform's own chain cannot be recorded in it.
            log.warning("restore.unrecorded", action=action, correlation_id=correlation_id)

    def _decision(
        self, correlation_id: str, chain: str, action: str, reason: str, context: dict[str, list[str]]
    ) -> Decision:
        return Decision(
            chain=chain,
            idempotency_key=uuid7(),
            occurred_at=self.clock.now(),
            action=action,
            subject_id="",
            subject_kind="service",
            relation="manage",
            object_type="audit",
            object_id=chain,
            reason=reason,
            context={"action": [action], **context},
            correlation_id=correlation_id,
        )
