"""Each leg of a publish that is missing or fails gives a typed refusal, and nothing of it gets to the stream."""

import asyncio
import base64
import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from nacl.signing import VerifyKey

from libs import envelope
from libs.errors import (
    DatastoreUnavailable,
    EventBusUnavailable,
    EventConflict,
    EventExpired,
    EventNotSignable,
    EventTooLarge,
    PlexError,
    SigningKeyMissing,
    SigningUnavailable,
)
from libs.ids import uuid7
from services.mesh.model import Event, Logged
from services.mesh.publisher import PLACED_WITHIN_S
from services.mesh.tests.desk import Desk, opened

pytestmark = pytest.mark.unit

Leg = Callable[[Desk], None]


def no_key(desk: Desk) -> None:
    desk.keys.rows.clear()


def a_changed_row(desk: Desk) -> None:
    desk.keys.rows[desk.domain][1] = replace(desk.keys.rows[desk.domain][1], public_key=bytes(32))


LEGS: dict[str, tuple[Leg, type[PlexError]]] = {
    "the Domain has no key": (no_key, SigningKeyMissing),
    "the row of the key was changed": (a_changed_row, SigningUnavailable),
    "OpenBao refuses": (lambda desk: setattr(desk.vault, "refusal", SigningUnavailable()), SigningUnavailable),
    "OpenBao signed something else": (lambda desk: setattr(desk.vault, "tamper", b"x"), SigningUnavailable),
    "the keys cannot be read": (
        lambda desk: setattr(desk.keys, "refusal", DatastoreUnavailable()),
        DatastoreUnavailable,
    ),
    "the log cannot be read": (
        lambda desk: desk.log.refusals.update(find=DatastoreUnavailable()),
        DatastoreUnavailable,
    ),
    "the log cannot be written": (
        lambda desk: desk.log.refusals.update(append=DatastoreUnavailable()),
        DatastoreUnavailable,
    ),
    "the stream is gone": (lambda desk: setattr(desk.stream, "gone", True), EventBusUnavailable),
    "the broker is silent": (lambda desk: setattr(desk.stream, "broken", True), EventBusUnavailable),
}


@pytest.mark.parametrize("leg", LEGS)
async def test_a_leg_that_is_missing_writes_nothing(leg: str) -> None:
    take_away, refusal = LEGS[leg]
    async with opened() as desk:
        await desk.publisher.publish(desk.event())
        take_away(desk)
        with pytest.raises(refusal):
            await desk.publisher.publish(desk.event())
        assert desk.stream.last == 1


async def test_what_is_published_is_signed_and_logged() -> None:
    async with opened() as desk:
        event = desk.event(payload={"b": [1, "<ü>"]})
        assert await desk.publisher.publish(event) == 1
        subject, data = desk.stream.messages[1]
        assert subject == f"events.{desk.domain}.domain.{desk.domain}.action_request"
        assert data == desk.log.rows[event.id].envelope
        parsed = envelope.parse(data)
        key = desk.vault.pairs[desk.domain][0].verify_key
        VerifyKey(bytes(key)).verify(parsed.canonical(), base64.b64decode(parsed.signature))
        assert parsed.payload == b'{"b":[1,"\\u003c\xc3\xbc\\u003e"]}'


async def test_many_at_once_share_a_signing_call() -> None:
    async with opened() as desk:
        sequences = await asyncio.gather(*(desk.publisher.publish(desk.event()) for _ in range(100)))
        assert sorted(sequences) == list(range(1, 101))
        assert desk.vault.calls <= 4


async def test_those_in_order_are_published_up_to_the_first_that_cannot_be() -> None:
    async with opened() as desk:
        events = [desk.event(payload={"turn": turn}) for turn in range(5)]
        assert await desk.publisher.publish_in_order(events[:2]) == [1, 2]
        desk.vault.tamper, desk.vault.only = b"x", b'{"turn":3}'
        assert await desk.publisher.publish_in_order(events[1:]) == [2, 3]
        assert desk.stream.last == 3
        assert events[4].id not in desk.log.rows
        with pytest.raises(SigningUnavailable):
            await desk.publisher.publish_in_order(events[3:])
        assert desk.stream.last == 3


async def test_one_that_nobody_may_sign_any_more_does_not_speak_for_those_before_it() -> None:
    async with opened() as desk:
        old = replace(desk.event(), id=UUID(int=7 << 76 | 2 << 62))
        assert await desk.publisher.publish_in_order([desk.event(), old, desk.event()]) == [1]
        with pytest.raises(EventExpired):
            await desk.publisher.publish_in_order([old, desk.event()])
        assert desk.stream.last == 1


async def test_who_gave_up_before_the_log_is_in_neither_log_nor_stream() -> None:
    async with opened() as desk:
        events = [desk.event(), desk.event()]
        asking = asyncio.ensure_future(desk.publisher.publish_in_order(events))
        await asyncio.sleep(0)
        asking.cancel()
        assert await desk.publisher.publish(desk.event()) == 1
        assert {event.id for event in events}.isdisjoint(desk.log.rows)


async def test_one_logged_before_stays_behind_one_that_is_new() -> None:
    async with opened() as desk:
        first, second = desk.event(), desk.event()
        desk.stream.gone = True
        with pytest.raises(EventBusUnavailable):
            await desk.publisher.publish(second)
        desk.stream.gone = False
        assert await desk.publisher.publish_in_order([first, second]) == [1, 2]


async def test_the_same_event_again_is_the_same_place() -> None:
    async with opened() as desk:
        event = desk.event(payload={"a": "<ü&"})
        first = await desk.publisher.publish(event)
        assert await desk.publisher.publish(replace(event, payload='{ "a" : "<ü&" }')) == first
        assert (desk.stream.last, desk.vault.calls) == (1, 1)


CHANGES: dict[str, Callable[[Event], Event]] = {
    "another payload": lambda event: replace(event, payload='{"a":2}'),
    "another type": lambda event: replace(event, type="rotate_keys"),
    "another scope": lambda event: replace(event, scope=f"node:{uuid7()}"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_another_event_under_the_same_id_is_refused(change: Callable[[Event], Event]) -> None:
    async with opened() as desk:
        event = desk.event(payload={"a": 1})
        await desk.publisher.publish(event)
        with pytest.raises(EventConflict):
            await desk.publisher.publish(change(event))


async def test_what_was_logged_and_not_acknowledged_is_published_with_the_same_bytes() -> None:
    async with opened() as desk:
        event = desk.event()
        desk.stream.broken = True
        with pytest.raises(EventBusUnavailable):
            await desk.publisher.publish(event)
        desk.stream.broken = False
        desk.clock.advance(60)
        assert await desk.publisher.publish(event) == 1
        assert desk.stream.messages[1][1] == desk.log.rows[event.id].envelope
        assert desk.vault.calls == 1


async def test_what_went_stale_before_it_was_published_needs_a_new_id() -> None:
    async with opened() as desk:
        event = desk.event()
        desk.stream.broken = True
        with pytest.raises(EventBusUnavailable):
            await desk.publisher.publish(event)
        desk.stream.broken = False
        desk.clock.advance(300)
        with pytest.raises(EventExpired):
            await desk.publisher.publish(event)
        assert desk.stream.last == 0


async def test_a_sequence_that_was_given_before_is_not_acknowledged() -> None:
    async with opened() as desk:
        await desk.publisher.publish(desk.event())
        desk.stream.last = 0
        with pytest.raises(EventBusUnavailable):
            await desk.publisher.publish(desk.event())
        assert desk.publisher.doubtful.is_set()


PLACES = {"before others": 1, "at the end of all numbers": 2**63 - 2}


@pytest.mark.parametrize("place", PLACES)
async def test_a_place_that_cannot_come_next_is_neither_believed_nor_noted(place: str) -> None:
    async with opened() as desk:
        for _ in range(3):
            await desk.publisher.publish(desk.event())
        del desk.log.places[2]
        noted = dict(desk.log.places)
        desk.stream.last = PLACES[place]
        with pytest.raises(EventBusUnavailable):
            await desk.publisher.publish(desk.event())
        assert desk.log.places == noted
        assert desk.publisher.doubtful.is_set()


async def test_what_could_not_be_noted_is_refused_and_gets_another_place_when_asked_for_again() -> None:
    async with opened() as desk:
        event = desk.event()
        desk.log.refusals.update(note=DatastoreUnavailable())
        with pytest.raises(DatastoreUnavailable):
            await desk.publisher.publish(event)
        assert desk.log.places == {}
        desk.log.refusals.clear()
        assert await desk.publisher.publish(event) == 2
        assert desk.vault.calls == 1


async def test_a_place_that_is_noted_although_its_caller_was_refused_is_not_relied_upon() -> None:
    async with opened() as desk:
        event, note = desk.event(), desk.log.note

        async def late(rows: Sequence[tuple[int, UUID]], within_s: float) -> None:
            await note(rows, within_s)
            raise DatastoreUnavailable

        desk.log.note = late  # type: ignore[method-assign]
        with pytest.raises(DatastoreUnavailable):
            await desk.publisher.publish(event)
        desk.log.note = note  # type: ignore[method-assign]
        assert await desk.publisher.publish(event) == 2
        assert await desk.publisher.publish(event) == 2
        assert (desk.stream.messages[1], desk.vault.calls) == (desk.stream.messages[2], 1)


@pytest.mark.parametrize("slow", ["acknowledgement", "note"])
async def test_what_gets_its_place_after_gateways_stopped_to_wait_is_refused(slow: str) -> None:
    async with opened() as desk:
        event, publish, note = desk.event(), desk.stream.publish, desk.log.note
        pause = PLACED_WITHIN_S + 0.1

        async def acknowledge(rows: Sequence[Logged]) -> list[int]:
            if slow == "acknowledgement":
                await asyncio.sleep(pause)
            return await publish(rows)

        async def place(rows: Sequence[tuple[int, UUID]], within_s: float) -> None:
            await asyncio.sleep(pause)
            await note(rows, within_s)

        desk.stream.publish, desk.log.note = acknowledge, place  # type: ignore[method-assign]
        with pytest.raises(EventBusUnavailable):
            await desk.publisher.publish(event)
        assert desk.log.places == ({} if slow == "acknowledgement" else {1: event.id})
        desk.stream.publish, desk.log.note = publish, note  # type: ignore[method-assign]
        assert await desk.publisher.publish(event) == 2


async def test_nothing_is_signed_for_a_caller_who_went_away() -> None:
    async with opened() as desk:
        leaving = asyncio.ensure_future(desk.publisher.publish(desk.event()))
        await asyncio.sleep(0)
        leaving.cancel()
        await desk.publisher.publish(desk.event())
        assert len(desk.log.rows) == 1


async def test_a_vault_that_fails_for_one_domain_holds_up_no_other() -> None:
    async with opened() as desk:
        other = Desk(vault=desk.vault, keys=desk.keys, domain=uuid7())
        row = next(iter(desk.keys.rows[desk.domain].values()))
        desk.keys.rows[other.domain] = {1: replace(row, domain_id=other.domain)}
        desk.vault.unknown.add(other.domain)
        outcomes = await asyncio.gather(
            desk.publisher.publish(desk.event()), desk.publisher.publish(other.event()), return_exceptions=True
        )
        assert outcomes[0] == 1
        assert isinstance(outcomes[1], SigningUnavailable)


def old_id() -> UUID:
    made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
    return UUID(int=(int(made.timestamp() * 1000) << 80) | (uuid7().int & ((1 << 80) - 1)))


BAD: dict[str, tuple[Callable[[Event], Event], type[PlexError]]] = {
    "an id that is no UUIDv7": (lambda event: replace(event, id=uuid4()), EventNotSignable),
    "an id of long ago": (lambda event: replace(event, id=old_id()), EventExpired),
    "a payload that is no JSON": (lambda event: replace(event, payload="{"), EventNotSignable),
    "a payload that is no object": (lambda event: replace(event, payload="[]"), EventNotSignable),
    "a payload with half a surrogate": (lambda event: replace(event, payload='{"a":"\ud800"}'), EventNotSignable),
    "a payload that is too long": (
        lambda event: replace(event, payload=json.dumps({"a": "x" * 60_000})),
        EventTooLarge,
    ),
    "a type that older receivers sign otherwise": (lambda event: replace(event, type="a\b"), EventNotSignable),
}


@pytest.mark.parametrize("bad", BAD)
async def test_what_cannot_be_signed_is_refused_and_others_are_not_held_up(bad: str) -> None:
    change, refusal = BAD[bad]
    async with opened() as desk:
        wrong = change(desk.event())
        outcomes = await asyncio.gather(
            desk.publisher.publish(desk.event()),
            desk.publisher.publish(wrong),
            desk.publisher.publish(desk.event()),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], refusal)
        assert sorted([outcomes[0], outcomes[2]], key=str) == [1, 2]


async def test_one_domain_that_cannot_be_signed_for_holds_up_no_other() -> None:
    async with opened() as desk:
        other = Desk(vault=desk.vault, keys=desk.keys, domain=uuid7())
        outcomes = await asyncio.gather(
            desk.publisher.publish(desk.event()), desk.publisher.publish(other.event()), return_exceptions=True
        )
        assert outcomes[0] == 1
        assert isinstance(outcomes[1], SigningKeyMissing)
