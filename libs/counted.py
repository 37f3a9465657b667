"""Refusals on their way into a chain: nobody decides how it grows, whether signed in or a stranger."""

import asyncio
import datetime
from collections import Counter
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid5

import structlog

from libs.clock import Clock
from libs.decision import GRANTED, Record, Recorder
from libs.telemetry import FOLDED, REFUSALS

SPACE = UUID("5d1c8f0a-6f0b-5b0e-9a53-0e4b7a1d2c66")
# What a minute keeps of one refusal, and of all of a subject's or a reason's: more than happens to people or is read.
SAME, MOST = 10, 60

log = structlog.get_logger()


@dataclass
class _Rows:
    """The rows of a minute that are bounded together: how many of each refusal, and their sequences by key."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    written: Counter[tuple[str, ...]] = field(default_factory=Counter)
    known: dict[UUID, int] = field(default_factory=dict)
    seq: int = 0


@dataclass
class Counted:
    """Records what is granted each time, and refusals up to a bound a minute; what is beyond is counted only."""

    audit: Recorder
    clock: Clock
    _minute: str = ""
    _rows: dict[tuple[str, ...], _Rows] = field(default_factory=dict)

    async def record(self, record: Record) -> int:
        """Return the sequence of a row that stands for the decision; raises AuditUnavailable.

        Of a known subject, SAME rows of one refusal and MOST of an action on a type; of strangers, MOST of a reason.
        """
        if record.reason == GRANTED:
            return await self.audit.record(record)
        if not record.subject_id:
            return await self._bounded(_what(record), record, MOST)
        # By type and relation, so that noise about one thing hides no attempt at a greater one.
        subject = record.domain_id, record.subject_kind, record.subject_id
        return await self._bounded((*subject, record.action, record.relation, record.object_type), record, SAME)

    async def count(self, record: Record) -> None:
        """Return once a row of this minute stands for what anybody can provoke at will; raises AuditUnavailable."""
        reasons = [reason for names in record.context.values() for reason in names]
        for reason in reasons:
            REFUSALS.labels(record.action, reason).inc()
        log.info("refusal.counted", action=record.action, reasons=reasons, domain_id=record.domain_id)
        minute, what = self._now(), _what(record)
        key, context = uuid5(SPACE, "/".join((*what, minute))), record.context | {"minute": [minute]}
        await self._bounded(("", *what), replace(record, idempotency_key=key, context=context), 1)

    async def _bounded(self, group: tuple[str, ...], record: Record, same: int) -> int:
        self._now()
        rows = self._rows.setdefault(group, _Rows())
        what = _what(record)
        # One after the other: a refusal is folded only into rows that are durable.
        async with rows.turn:
            if (seq := rows.known.get(record.idempotency_key)) is not None:
                # Said again, it is the same row, and takes nobody's place.
                return seq
            if rows.written[what] < same and rows.written.total() < MOST:
                rows.seq = rows.known[record.idempotency_key] = await self.audit.record(record)
                rows.written[what] += 1
                return rows.seq
        FOLDED.labels(record.action, record.reason).inc()
        target, names = f"{record.object_type}:{record.object_id}", sorted(record.context.items())
        log.info(
            "refusal.folded", domain_id=record.domain_id, action=record.action, relation=record.relation, target=target,
            reason=record.reason, names=names,
        )  # fmt: skip
        return rows.seq

    def _now(self) -> str:
        minute = self.clock.now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
        if minute != self._minute:
            self._minute, self._rows = minute, {}
        return minute


def _what(record: Record) -> tuple[str, ...]:
    names = repr(sorted(record.context.items()))
    target = f"{record.object_type}:{record.object_id}"
    return record.domain_id, record.action, record.relation, target, record.reason, names
