"""Refusals that anybody can provoke at will: one row a reason, Domain and minute, so that nobody fills a chain."""

import datetime
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid5

import structlog

from libs.clock import Clock
from libs.decision import Record
from libs.telemetry import REFUSALS
from services.identity.ports import Recorder

SPACE = UUID("5d1c8f0a-6f0b-5b0e-9a53-0e4b7a1d2c66")

log = structlog.get_logger()


@dataclass
class Counted:
    """Records each refusal once a minute; replicas that refuse the same write one row between them."""

    audit: Recorder
    clock: Clock
    _minute: str = ""
    _recorded: set[UUID] = field(default_factory=set)

    async def record(self, record: Record) -> None:
        """Return once a row of this minute stands for the refusal; raises AuditUnavailable."""
        reasons = [reason for names in record.context.values() for reason in names]
        for reason in reasons:
            REFUSALS.labels(record.action, reason).inc()
        log.info("refusal.counted", action=record.action, reasons=reasons, domain_id=record.domain_id)
        minute = self.clock.now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
        if minute != self._minute:
            self._minute, self._recorded = minute, set()
        key = uuid5(SPACE, f"{record.domain_id}/{record.object_id}/{record.action}/{reasons}/{minute}")
        if key not in self._recorded:
            context = {**record.context, "minute": [minute]}
            await self.audit.record(replace(record, idempotency_key=key, context=context))
            self._recorded.add(key)
