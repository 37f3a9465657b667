"""Which refusals have a row of their own, and which an earlier one stands for."""

import asyncio
import datetime
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from libs.clock import FixedClock
from libs.counted import MOST, SAME, Counted
from libs.decision import Record
from libs.errors import AuditUnavailable, PlexError
from libs.ids import uuid7
from libs.telemetry import FOLDED

pytestmark = pytest.mark.unit
NOW = datetime.datetime(2026, 5, 1, 12, 0, 0, tzinfo=datetime.UTC)
ALICE = str(uuid7())
REFUSED = Record("", "project.delete", "manage", "project", "a", "insufficient_relation", ALICE, "user", {"why": ["x"]})


@dataclass
class FakeAudit:
    """The rows, each as often as it was sent."""

    rows: list[Record] = field(default_factory=list)
    refusal: PlexError | None = None

    async def record(self, record: Record) -> int:
        if self.refusal:
            raise self.refusal
        self.rows.append(record)
        return len(self.rows)


@dataclass
class Desk:
    """A chain, and two replicas in front of it."""

    audit: FakeAudit = field(default_factory=FakeAudit)
    clock: FixedClock = field(default_factory=lambda: FixedClock(NOW))

    def __post_init__(self) -> None:
        self.one, self.two = (Counted(self.audit, self.clock) for _ in range(2))

    @property
    def keys(self) -> set[object]:
        return {row.idempotency_key for row in self.audit.rows}


def again(record: Record = REFUSED, **changes: Any) -> Record:
    """Return the same decision about another request."""
    return replace(record, idempotency_key=uuid7(), **changes)


async def test_what_repeats_within_a_minute_ends_at_the_bound_and_is_counted() -> None:
    desk, folded = Desk(), FOLDED.labels("project.delete", "insufficient_relation")
    before = folded._value.get()
    await asyncio.gather(*(desk.one.record(again()) for _ in range(100)))
    assert len(desk.audit.rows) == SAME
    assert folded._value.get() - before == 100 - SAME
    desk.clock.advance(60)
    await desk.one.record(again())
    assert len(desk.audit.rows) == SAME + 1


async def test_what_anybody_provokes_is_one_row_in_all_replicas() -> None:
    desk, stranger = Desk(), replace(REFUSED, subject_id="", subject_kind="anonymous")
    for _ in range(5):
        await desk.one.count(again(stranger))
        await desk.two.count(again(stranger))
    assert (len(desk.audit.rows), len(desk.keys)) == (2, 1)
    assert desk.audit.rows[0].context == {"why": ["x"], "minute": ["2026-05-01T12:00Z"]}


@pytest.mark.parametrize(
    "other",
    [
        {"subject_id": "bob"}, {"action": "project.update"}, {"relation": "deploy"}, {"object_id": "b"},
        {"object_type": "resource"}, {"reason": "caveat_violation"}, {"context": {"why": ["y"]}}, {"domain_id": "d"},
    ],
    ids=lambda one: next(iter(one)),
)  # fmt: skip
async def test_what_differs_has_its_own_row(other: dict[str, Any]) -> None:
    desk = Desk()
    for _ in range(SAME + 1):
        await desk.one.record(again())
    await desk.one.record(again(**other))
    assert len(desk.audit.rows) == SAME + 1


async def test_nobody_has_more_rows_of_a_kind_than_are_read() -> None:
    desk = Desk()
    await asyncio.gather(*(desk.one.record(again(object_id=str(each))) for each in range(MOST * 3)))
    assert len(desk.audit.rows) == MOST
    await desk.one.record(again(subject_id="bob"))
    assert len(desk.audit.rows) == MOST + 1


async def test_strangers_have_a_row_each_up_to_the_bound_of_their_reason() -> None:
    desk, stranger = Desk(), replace(REFUSED, subject_id="", subject_kind="anonymous")
    await asyncio.gather(*(desk.one.record(again(stranger)) for _ in range(MOST * 2)))
    assert len(desk.keys) == MOST
    await desk.one.record(again(stranger, context={"why": ["y"]}))
    assert len(desk.keys) == MOST + 1


async def test_what_is_granted_is_never_folded() -> None:
    desk = Desk()
    for _ in range(MOST * 2):
        await desk.one.record(again(reason="granted"))
    assert len(desk.keys) == MOST * 2


async def test_a_refusal_is_folded_only_into_a_row_that_is_there() -> None:
    desk = Desk()
    desk.audit.refusal = AuditUnavailable()
    tries = await asyncio.gather(*(desk.one.record(again()) for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in tries] == [AuditUnavailable] * 5
    desk.audit.refusal = None
    await desk.one.record(again())
    assert len(desk.audit.rows) == 1


async def test_noise_about_one_thing_hides_no_attempt_at_another() -> None:
    desk = Desk()
    for number in range(2 * MOST):
        await desk.one.record(again(object_id=str(number)))
    assert len(desk.audit.rows) == MOST
    for changes in ({"object_type": "domain"}, {"relation": "admin"}):
        await desk.one.record(again(REFUSED, **changes))
    assert len(desk.audit.rows) == MOST + 2


async def test_what_is_said_again_under_its_key_takes_nobodys_place() -> None:
    desk, stranger = Desk(), replace(REFUSED, subject_id="", subject_kind="anonymous")
    first = again(stranger)
    seq = await desk.one.record(first)
    for _ in range(2 * MOST):
        assert await desk.one.record(first) == seq
    await desk.one.record(again(stranger))
    assert len(desk.audit.rows) == 2
