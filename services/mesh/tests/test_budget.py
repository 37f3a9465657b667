"""One Domain's operators do not push everybody's events out of the gateways; owners' relays are not held up."""

import pytest

from libs.errors import Forbidden, TooMany
from libs.ids import uuid7
from services.mesh.budget import BYTES_A_SECOND, BYTES_AT_ONCE, LEAST_BYTES, Budget
from services.mesh.tests.desk import OPERATOR, Desk, opened
from services.mesh.tests.fakes import clock

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [1, 60_000])
def test_a_domain_publishes_so_many_bytes_at_once_and_then_so_many_a_second(size: int) -> None:
    budget, domain, now = Budget(), uuid7(), clock()

    def spend_all() -> int:
        for count in range(10_000):
            try:
                budget.spend(domain, size, now.now())
            except TooMany as refused:
                assert refused.extra["retry_after_s"] == 1  # noqa: PT017 — it ends the count
                return count
        raise AssertionError("there is no end")

    counts = []
    for _ in range(11):
        counts.append(spend_all())
        now.advance(1)
    cost = max(size, LEAST_BYTES)
    assert counts[0] == BYTES_AT_ONCE // cost
    assert abs(sum(counts[1:]) - 10 * BYTES_A_SECOND / cost) <= 1
    budget.spend(uuid7(), size, now.now())


async def publish(desk: Desk) -> None:
    payload = '{"a":"' + "x" * 55_000 + '"}'
    await desk.operators.publish(OPERATOR, desk.domain, "action_request", f"domain:{desk.domain}", payload)


async def test_who_publishes_too_much_is_refused_with_one_row_a_minute() -> None:
    async with opened() as desk:
        # The longest way to the next minute, so that all below falls into this one.
        desk.clock.at = desk.clock.at.replace(second=0)
        refused = 0
        for _ in range(100):
            try:
                await publish(desk)
            except TooMany:
                refused += 1
        assert (desk.stream.last, refused) == (BYTES_AT_ONCE // 55_008, 100 - BYTES_AT_ONCE // 55_008)
        rows = [row for row in desk.audit.rows if row.action == "event.publish_limited"]
        # The chain takes a key once.
        assert (len(rows), len({row.idempotency_key for row in rows})) == (refused, 1)
        assert {(row.domain_id, row.reason) for row in rows} == {(str(desk.domain), "caveat_violation")}
        await desk.publisher.publish(desk.event())
        desk.clock.advance(60)
        await publish(desk)


async def test_who_may_not_spends_nothing() -> None:
    async with opened() as desk:
        desk.authority.granted = set()
        for _ in range(100):
            with pytest.raises(Forbidden):
                await publish(desk)
        desk.authority.granted = None
        await publish(desk)
