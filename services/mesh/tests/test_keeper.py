"""A stream that lost something is refilled from the log: the same bytes, in order, above every sequence ever given."""

import asyncio
import datetime
import hashlib
from collections.abc import Sequence

import pytest
import structlog

from libs.errors import DatastoreUnavailable, EventBusUnavailable
from services.mesh.delivery import Delivery, merged
from services.mesh.keeper import TOO_FAR, Keeper
from services.mesh.model import Logged, Publication, Seen, StreamState
from services.mesh.tests.desk import OPERATOR, Desk, opened

pytestmark = pytest.mark.unit


def keeper_of(desk: Desk) -> Keeper:
    return Keeper(desk.log, desk.keys, desk.stream, desk.clock, desk.publisher.doubtful)


async def ten(desk: Desk) -> list[bytes]:
    for _ in range(10):
        await desk.publisher.publish(desk.event())
    return [data for _, data in desk.stream.messages.values()]


async def test_a_healthy_stream_is_left_alone() -> None:
    async with opened() as desk:
        await ten(desk)
        await keeper_of(desk).look()
        assert desk.stream.last == 10


async def test_a_wiped_stream_is_made_anew_above_every_sequence_and_refilled() -> None:
    async with opened() as desk:
        sent = await ten(desk)
        desk.stream.gone = True
        await keeper_of(desk).look()
        assert list(desk.stream.messages) == list(range(11, 21))
        assert [data for _, data in desk.stream.messages.values()] == sent
        assert await desk.log.highest() == 20


async def test_a_lost_tail_is_refilled_above_every_sequence() -> None:
    async with opened() as desk:
        sent = await ten(desk)
        for lost in (8, 9, 10):
            del desk.stream.messages[lost]
        desk.stream.last = 7
        await keeper_of(desk).look()
        assert [data for _, data in desk.stream.messages.values()] == sent
        assert min(desk.stream.messages) == 11


async def test_an_event_that_is_published_between_the_looks_is_no_loss() -> None:
    async with opened() as desk:
        await ten(desk)
        state = desk.stream.state

        async def slow() -> StreamState | None:
            found = await state()
            await desk.publisher.publish(desk.event())
            return found

        desk.stream.state = slow  # type: ignore[method-assign]
        await keeper_of(desk).look()
        assert list(desk.stream.messages) == list(range(1, 12))


async def test_what_a_revoked_key_signed_is_not_sent_again() -> None:
    async with opened() as desk:
        await ten(desk)
        current = (await desk.keys.keys({desk.domain}))[desk.domain].current
        assert current is not None
        await desk.signing.revoke(OPERATOR, desk.domain, current.kid)
        await desk.publisher.publish(last := desk.event())
        desk.stream.gone = True
        await keeper_of(desk).look()
        assert [data for _, data in desk.stream.messages.values()] == [desk.log.rows[last.id].envelope]


async def test_a_gap_is_refilled() -> None:
    async with opened() as desk:
        sent = await ten(desk)
        del desk.stream.messages[4], desk.stream.messages[5]
        await keeper_of(desk).look()
        assert [desk.stream.messages[at][1] for at in (11, 12)] == sent[3:5]
        await keeper_of(desk).look()
        assert desk.stream.last == 12


async def test_bytes_that_the_broker_changed_are_published_once_more_when_somebody_doubts() -> None:
    async with opened() as desk:
        sent = await ten(desk)
        desk.stream.messages[6] = (desk.stream.messages[6][0], b"x" + sent[5][1:])
        await keeper_of(desk).look()
        assert desk.stream.last == 10
        desk.publisher.doubtful.set()
        await keeper_of(desk).look()
        assert desk.stream.messages[11][1] == sent[5]


async def test_what_was_published_twice_is_no_loss_and_comes_first_again_where_it_came_first() -> None:
    async with opened() as desk:
        sent = await ten(desk)
        places = await desk.stream.publish([desk.log.rows[desk.log.places[1]]])
        await desk.log.note([(places[0], desk.log.places[1])], 2)
        desk.publisher.doubtful.set()
        await keeper_of(desk).look()
        assert desk.stream.last == 11
        desk.stream.gone = True
        await keeper_of(desk).look()
        assert [data for _, data in desk.stream.messages.values()] == sent


async def test_whatever_the_broker_says_the_keeper_goes_on() -> None:
    async with opened() as desk:
        await ten(desk)
        state, said = desk.stream.state, list[int]()

        async def garbage() -> StreamState | None:
            said.append(1)
            return StreamState(int("first"), 0) if len(said) == 1 else await state()

        desk.stream.state, desk.stream.gone = garbage, True  # type: ignore[method-assign]
        running = asyncio.ensure_future(keeper_of(desk).run())
        async with asyncio.timeout(30):
            while len(desk.stream.messages) < 10 or desk.stream.gone:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.05)
        running.cancel()
        assert len(said) > 1


READS: dict[str, list[tuple[int, bytes]]] = {"goes back": [(5, b""), (3, b"")], "stands still": [(1, b"")], "ends": []}


@pytest.mark.parametrize("broker", READS)
async def test_reading_back_ends_whatever_the_broker_answers(broker: str) -> None:
    async with opened() as desk:
        await ten(desk)
        asked: list[int] = []

        async def read(first: int, _: int) -> list[tuple[int, bytes]]:
            asked.append(first)
            assert len(asked) < 100
            return READS[broker]

        desk.stream.read = read  # type: ignore[method-assign, assignment]
        desk.publisher.doubtful.set()
        await keeper_of(desk).look()
        assert asked == sorted(set(asked))
        assert desk.stream.last == 20


async def test_who_wipes_the_stream_every_second_makes_bounded_work() -> None:
    async with opened() as desk:
        await ten(desk)
        keeper, refills = keeper_of(desk), list[float]()
        for second in range(200):
            noted = len(desk.log.places)
            desk.stream.gone = True
            await keeper.look()
            assert not desk.stream.gone
            if len(desk.log.places) > noted:
                refills.append(second)
            desk.clock.advance(1)
        assert refills == [0, 1, 3, 7, 15, 31, 63, 123, 183]
        # What was lost last comes back once the rest is over, and after a calm time there is none.
        desk.clock.advance(60)
        await keeper.look()
        assert len(desk.stream.messages) == 10
        desk.clock.advance(121)
        await desk.publisher.publish(desk.event())
        for _ in range(2):
            desk.stream.gone = True
            await keeper.look()
            desk.clock.advance(1)
            assert len(desk.stream.messages) == 1


async def test_a_doubt_of_a_time_of_rest_is_looked_into_after_it() -> None:
    async with opened() as desk:
        sent, keeper = await ten(desk), keeper_of(desk)
        desk.stream.gone = True
        await keeper.look()
        desk.stream.messages[16] = (desk.stream.messages[16][0], b"x" + sent[5][1:])
        desk.publisher.doubtful.set()
        await keeper.look()
        assert desk.stream.last == 20
        desk.clock.advance(1)
        await keeper.look()
        assert desk.stream.messages[21][1] == sent[5]


async def test_a_stream_whose_places_nobody_believes_is_cried_out_and_made_anew_once_it_is_deleted() -> None:
    async with opened() as desk:
        sent, keeper = await ten(desk), keeper_of(desk)
        await desk.stream.restart(2**63 - 1)
        noted = dict(desk.log.places)
        with structlog.testing.capture_logs() as logs:
            await keeper.look()
        assert [(row["event"], row["log_level"], row["action"]) for row in logs] == [
            ("stream.too_far", "error", TOO_FAR)
        ]
        assert (desk.stream.messages, desk.log.places) == ({}, noted)
        desk.stream.gone = True
        await keeper.look()
        assert [data for _, data in desk.stream.messages.values()] == sent
        assert min(desk.stream.messages) == 11


async def test_a_refill_notes_no_place_that_cannot_come_next() -> None:
    async with opened() as desk:
        await ten(desk)
        publish, noted = desk.stream.publish, dict(desk.log.places)

        async def far(rows: Sequence[Logged]) -> list[int]:
            return [place + 2**62 for place in await publish(rows)]

        desk.stream.publish, desk.stream.gone = far, True  # type: ignore[method-assign]
        with pytest.raises(EventBusUnavailable):
            await keeper_of(desk).look()
        assert desk.log.places == noted


async def test_a_refill_whose_places_could_not_be_noted_is_done_again() -> None:
    async with opened() as desk:
        sent, keeper = await ten(desk), keeper_of(desk)
        desk.stream.messages[6] = (desk.stream.messages[6][0], b"x" + sent[5][1:])
        desk.publisher.doubtful.set()
        desk.log.refusals.update(note=DatastoreUnavailable())
        with pytest.raises(DatastoreUnavailable):
            await keeper.look()
        desk.log.refusals.clear()
        desk.clock.advance(1)
        await keeper.look()
        assert desk.stream.messages[12][1] == sent[5]
        assert await desk.log.highest() == 12


async def test_what_is_no_longer_fresh_is_not_sent_again() -> None:
    async with opened() as desk:
        await ten(desk)
        desk.stream.gone = True
        desk.clock.advance(300)
        await keeper_of(desk).look()
        assert (desk.stream.messages, desk.stream.last) == ({}, 10)


async def test_a_keeper_that_has_just_begun_looks_for_nothing_that_is_no_longer_fresh() -> None:
    async with opened() as desk:
        await ten(desk)
        del desk.stream.messages[1], desk.stream.messages[5]
        desk.clock.advance(300)
        await desk.publisher.publish(desk.event())
        read, fresh = 0, desk.log.fresh

        async def counted(since: datetime.datetime) -> list[Logged]:
            nonlocal read
            read += 1
            return await fresh(since)

        desk.log.fresh = counted  # type: ignore[method-assign]
        keeper = keeper_of(desk)
        await keeper.look()
        assert read == 0
        del desk.stream.messages[11]
        desk.stream.messages[12] = desk.stream.messages[10]
        desk.stream.last = 12
        await keeper.look()
        assert read == 1


async def test_the_log_vouches_for_a_nonce_at_one_sequence_only() -> None:
    async with opened() as desk:
        event = desk.event()
        await desk.publisher.publish(event)
        digest = desk.log.rows[event.id].envelope
        delivery = Delivery(desk.log, desk.clock)
        right = hashlib.sha256(digest).digest()
        seen = [Seen(1, event.id, right), Seen(2, event.id, right), Seen(1, event.id, bytes(32))]
        answer = await delivery.check(seen, [(1, 5)])
        assert answer.publications == [Publication.PUBLISHED, Publication.REPLAYED, Publication.ALTERED]
        assert ([row.sequence for row in answer.missing], answer.unfilled) == ([1], [])


async def test_a_long_fill_says_how_far_it_came_and_is_asked_for_again() -> None:
    async with opened() as desk:
        for _ in range(80):
            await desk.publisher.publish(desk.event(payload={"a": "x" * 55_000}))
        delivery, gaps, got = Delivery(desk.log, desk.clock), [(1, 70), (72, 2**64 - 1)], list[int | None]()
        while gaps:
            answer = await delivery.check([], gaps)
            assert sum(len(row.envelope) for row in answer.missing) < 2.2 * 1024 * 1024
            assert answer.missing
            got += [row.sequence for row in answer.missing]
            gaps = answer.unfilled
        assert got == [*range(1, 71), *range(72, 81)]


async def test_in_a_wide_gap_only_what_is_fresh_is_looked_for() -> None:
    async with opened() as desk:
        await ten(desk)
        desk.clock.advance(300)
        await desk.publisher.publish(desk.event())
        answer = await Delivery(desk.log, desk.clock).check([], [(1, 1_000_000)])
        assert [row.sequence for row in answer.missing] == [11]
        assert desk.log.asked == [(11, 1_000_000)]


def test_ranges_that_touch_are_one() -> None:
    assert merged([(5, 6), (1, 2), (3, 3), (9, 9), (9, 12)]) == [(1, 3), (5, 6), (9, 12)]
