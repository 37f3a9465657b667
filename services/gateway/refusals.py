"""Envelopes that the gate refused, on their way into the chain: one row per reason, Domain and minute.

Who holds the broker can make any number of them, so their number must not decide how the chain grows. The row's key is
made of what it is about: gateways that saw the same attack write one row between them.
"""

import asyncio
import datetime
from dataclasses import dataclass, field
from uuid import UUID, uuid5

import structlog

from libs.audit import AuditClient
from libs.clock import Clock
from libs.decision import Record
from libs.errors import PlexError
from services.gateway.gate import Refusal
from services.gateway.ports import SignatureVerifier

REPORT_EVERY_S = 1.0
MOST_WAITING = 500
SPACE = UUID("7e0a4a0e-5b0c-5d53-9c39-0b8f6a0f8f5c")

log = structlog.get_logger()
Key = tuple[UUID | None, str, str]


@dataclass
class RefusedEnvelopes:
    """What was refused and not yet recorded."""

    audit: AuditClient
    verifier: SignatureVerifier | None
    clock: Clock
    _known: set[UUID] = field(default_factory=set)
    _waiting: dict[Key, None] = field(default_factory=dict)
    _recorded: set[Key] = field(default_factory=set)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, refusal: Refusal) -> None:
        """Note a refusal; the first of its kind in a minute becomes a row."""
        self._counts[refusal.reason] = self._counts.get(refusal.reason, 0) + 1
        domain_id = refusal.domain_id
        if len(self._waiting) >= MOST_WAITING and domain_id not in self._known:
            # A flood of made-up Domains: their reasons stay, in the platform's name.
            domain_id = None
        key = (domain_id, refusal.reason, self._minute())
        if key not in self._recorded:
            self._waiting[key] = None

    def learn(self, domain_id: UUID) -> None:
        """Note a Domain that has an event key: however much else is refused, it gets its own row."""
        self._known.add(domain_id)

    def _minute(self) -> str:
        return self.clock.now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")

    async def run(self) -> None:
        """Record for as long as the process lives; what cannot be recorded now waits."""
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            try:
                await self.report()
            except PlexError as error:
                log.warning("envelopes.report_postponed", code=error.code)

    async def report(self) -> None:
        """Record what waits."""
        if self._counts:
            log.warning("envelopes.refused", control="mesh", reasons=self._counts)
            self._counts = {}
        if not self._waiting:
            return
        waiting = list(self._waiting)
        named = {domain_id for domain_id, _, _ in waiting if domain_id is not None}
        # A made-up Domain must not get a chain: those without an event key are the platform's affair.
        found = await self.verifier.trust(named) if named and self.verifier else {}
        self._known |= {domain_id for domain_id, keys in found.items() if keys}
        minute = self._minute()
        self._recorded = {key for key in self._recorded if key[2] >= minute}
        for key in waiting:
            domain_id, reason, of = key
            chain = str(domain_id) if domain_id in self._known else ""
            await self._record(chain, reason, of)
            del self._waiting[key]
            self._recorded.add(key)

    async def _record(self, chain: str, reason: str, minute: str) -> None:
        if (None, f"{chain}/{reason}", minute) in self._recorded:
            return
        await self.audit.record(
            Record(
                domain_id=chain,
                action="event.refuse",
                relation="node-agent",
                object_type="domain" if chain else "platform",
                object_id=chain or "main",
                reason="caveat_violation",
                context={"mesh": [reason], "minute": [minute]},
                idempotency_key=uuid5(SPACE, f"{chain}/{reason}/{minute}"),
            )
        )
        self._recorded.add((None, f"{chain}/{reason}", minute))
