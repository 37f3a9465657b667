"""A Domain's event keys: made once, recorded before they are made, never others than OpenBao's; rotated and revoked."""

import asyncio
import base64
import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from nacl.signing import VerifyKey

from libs import envelope
from libs.canon import compact
from libs.clock import rfc3339
from libs.errors import (
    AuditUnavailable,
    EventBusUnavailable,
    EventNotSignable,
    EventTypeReserved,
    EventTypeUnknown,
    Forbidden,
    NotFound,
    RotationUnderWay,
    SigningKeyNotFound,
    SigningKeyRevoked,
    SigningUnavailable,
    Unprocessable,
)
from libs.ids import uuid7
from services.mesh.model import ROTATED, STATE_UPDATED, Event, PublicHalf, SigningKey
from services.mesh.service import SAID_WITHIN_S, Halves, announcement
from services.mesh.tests.desk import HOME, OPERATOR, Desk, opened

pytestmark = pytest.mark.unit

# SHA-256 of 32 zero bytes begins with these 16 bytes (FIPS 180-4).
KID_OF_ZEROS = "evk_66687aadf862bd776c8fc18b8e9f8e20"
WEEK = datetime.timedelta(days=7)


def test_the_id_is_made_from_the_key() -> None:
    assert PublicHalf(bytes(32), 1).kid == KID_OF_ZEROS
    assert PublicHalf(bytes(32), 2).kid == KID_OF_ZEROS


async def test_a_key_is_made_once_and_recorded_once() -> None:
    desk = Desk()
    first = await desk.signing.ensure(desk.domain)
    assert await desk.signing.ensure(desk.domain) == first
    assert first.public_key == bytes(desk.vault.pairs[desk.domain][0].verify_key)
    assert [row.action for row in desk.audit.rows] == ["signing_key.create"]


async def test_concurrent_callers_get_the_same_key() -> None:
    desk = Desk()
    keys = await asyncio.gather(*(desk.signing.ensure(desk.domain) for _ in range(20)))
    assert len({key.kid for key in keys}) == 1


async def test_no_row_no_key() -> None:
    desk = Desk()
    desk.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await desk.signing.ensure(desk.domain)
    assert (desk.vault.pairs, desk.keys.rows) == ({}, {})


FORGERIES: dict[str, Callable[[SigningKey, UUID], SigningKey]] = {
    "an attacker's public half": lambda key, _: replace(key, public_key=bytes(32)),
    "another id": lambda key, _: replace(key, kid=KID_OF_ZEROS),
    "another Domain's row": lambda key, other: replace(key, domain_id=other),
    "a version that OpenBao does not have": lambda key, _: replace(key, version=9),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_a_row_that_a_dba_changed_is_refused(forge: Callable[[SigningKey, UUID], SigningKey]) -> None:
    desk = Desk()
    key = await desk.signing.ensure(desk.domain)
    desk.keys.rows[desk.domain][1] = forge(key, uuid7())
    with pytest.raises(SigningUnavailable):
        await desk.signing.ensure(desk.domain)
    assert await desk.signing.trust([desk.domain]) == {desk.domain: ()}


async def test_a_rotation_is_announced_under_the_old_key_before_the_new_one_signs() -> None:
    async with opened() as desk:
        old = await desk.signing.ensure(desk.domain)
        new = await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        await desk.publisher.publish(desk.event())
        told, after = (envelope.parse(data) for _, data in desk.stream.messages.values())
        assert (told.type, told.key_id, after.key_id) == (ROTATED, old.kid, new.kid)
        VerifyKey(old.public_key).verify(told.canonical(), base64.b64decode(told.signature))
        payload = json.loads(told.payload)
        assert (payload["key_id"], payload["previous_key_id"]) == (new.kid, old.kid)


async def test_both_keys_verify_until_the_transition_ends_and_then_only_the_new_one() -> None:
    async with opened() as desk:
        old = await desk.signing.ensure(desk.domain)
        new = await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        assert [key.kid for key in (await desk.signing.trust([desk.domain]))[desk.domain]] == [old.kid, new.kid]
        desk.clock.advance(WEEK.total_seconds())
        assert [key.kid for key in (await desk.signing.trust([desk.domain]))[desk.domain]] == [new.kid]


async def test_a_rotation_that_a_crash_interrupted_is_finished() -> None:
    async with opened() as desk:
        desk.stream.broken = True
        with pytest.raises(EventBusUnavailable):
            await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        assert (await desk.signing.ensure(desk.domain)).version == 1
        with pytest.raises(RotationUnderWay):
            await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        desk.stream.broken = False
        await desk.signing.keep_up()
        assert (await desk.signing.ensure(desk.domain)).version == 1, "whoever asked is at it still"
        desk.clock.advance(3)
        await desk.signing.keep_up()
        assert (await desk.signing.ensure(desk.domain)).version == 2
        assert len(desk.vault.pairs[desk.domain]) == 2


async def test_while_the_bus_is_away_the_old_key_does_not_run_out() -> None:
    async with opened() as desk:
        old, minute = await desk.signing.ensure(desk.domain), datetime.timedelta(minutes=1)
        desk.stream.broken = True
        with pytest.raises(EventBusUnavailable):
            await desk.signing.rotate(OPERATOR, desk.domain, minute)
        desk.clock.advance(120)
        desk.stream.broken = False
        await desk.signing.keep_up()
        told = json.loads(envelope.parse(desk.stream.messages[1][1]).payload)
        expires = desk.clock.now() + minute
        assert told["transition_expires"] == rfc3339(expires)
        keys = (await desk.signing.trust([desk.domain]))[desk.domain]
        assert [(key.kid, key.expires_at) for key in keys] == [(old.kid, expires), (told["key_id"], None)]


async def test_an_announcement_that_came_out_too_late_is_made_anew() -> None:
    async with opened() as desk:
        publish = desk.publisher.publish

        async def slow(event: Event) -> int:
            sequence = await publish(event)
            if sequence == 1:
                desk.clock.advance(31)
            return sequence

        desk.publisher.publish = slow  # type: ignore[method-assign]
        with pytest.raises(EventBusUnavailable):
            await desk.signing.rotate(OPERATOR, desk.domain, datetime.timedelta(minutes=1))
        assert (await desk.signing.ensure(desk.domain)).version == 1
        await desk.signing.keep_up()
        assert (await desk.signing.ensure(desk.domain)).version == 2
        first, second = (json.loads(envelope.parse(data).payload) for _, data in desk.stream.messages.values())
        assert first["transition_expires"] < second["transition_expires"]


async def test_a_rotation_whose_signer_is_revoked_meanwhile_is_announced_by_its_successor() -> None:
    async with opened() as desk:
        old = await desk.signing.ensure(desk.domain)
        desk.stream.broken = True
        with pytest.raises(EventBusUnavailable):
            await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        _, successor = await desk.signing.revoke(OPERATOR, desk.domain, old.kid)
        desk.stream.broken = False
        desk.clock.advance(3)
        for _ in range(2):
            await desk.signing.keep_up()
        told = envelope.parse(desk.stream.messages[1][1])
        assert (told.key_id, json.loads(told.payload)["previous_key_id"]) == (successor.kid, successor.kid)
        assert (await desk.signing.ensure(desk.domain)).kid == json.loads(told.payload)["key_id"]


async def test_one_domain_whose_key_cannot_be_finished_holds_up_no_other() -> None:
    async with opened() as desk:
        other = uuid7()
        await desk.signing.ensure(other)
        for domain in (desk.domain, other):
            await desk.keys.begin_rotation(domain, await desk.vault.rotate(domain), WEEK, desk.clock.now())
        row = desk.keys.rows[desk.domain][1]
        desk.keys.rows[desk.domain][1] = replace(row, public_key=bytes(32))
        desk.clock.advance(3)
        await desk.signing.keep_up()
        assert (await desk.signing.ensure(other)).version == 2


async def test_one_domain_of_which_nothing_can_be_said_holds_up_no_other() -> None:
    async with opened() as desk:
        other, third = uuid7(), uuid7()
        await desk.signing.ensure(other)
        desk.vault.unknown.add(desk.domain)
        restarted = replace(desk.signing, halves=Halves(desk.vault))
        said = await restarted.trust([desk.domain, other, third])
        assert {domain: len(keys) for domain, keys in said.items()} == {other: 1, third: 0}
        desk.vault.unknown.clear()
        assert (await restarted.trust([desk.domain]))[desk.domain]


async def test_a_vault_that_does_not_answer_is_waited_for_no_longer_than_gateways_wait() -> None:
    async with opened() as desk:

        async def silent(domain_id: UUID) -> list[PublicHalf]:
            return await asyncio.sleep(60, [])

        desk.vault.halves = silent  # type: ignore[method-assign]
        async with asyncio.timeout(SAID_WITHIN_S + 1):
            assert await replace(desk.signing, halves=Halves(desk.vault)).trust([desk.domain]) == {}


async def test_one_rotation_at_a_time() -> None:
    async with opened() as desk:
        hour = datetime.timedelta(hours=1)
        await desk.signing.rotate(OPERATOR, desk.domain, hour)
        with pytest.raises(RotationUnderWay):
            await desk.signing.rotate(OPERATOR, desk.domain, hour)
        desk.clock.advance(hour.total_seconds())
        assert (await desk.signing.rotate(OPERATOR, desk.domain, hour)).version == 3


async def test_the_announcement_is_repeated_every_four_minutes_while_the_transition_lasts() -> None:
    async with opened() as desk:
        await desk.signing.rotate(OPERATOR, desk.domain, datetime.timedelta(minutes=10))
        seen = []
        for _ in range(14):
            desk.clock.advance(60)
            await desk.signing.keep_up()
            seen.append(len(desk.keys.outbox))
        assert seen == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("cause", ["its key ran out", "its key was revoked"])
async def test_an_announcement_that_nobody_can_verify_any_more_is_dropped(cause: str) -> None:
    async with opened() as desk:
        old, hour = await desk.signing.ensure(desk.domain), datetime.timedelta(hours=1)
        new = await desk.signing.rotate(OPERATOR, desk.domain, hour)
        late = desk.event(ROTATED, payload=announcement(new, old))
        if cause == "its key was revoked":
            await desk.signing.revoke(OPERATOR, desk.domain, old.kid)
        else:
            desk.clock.advance(hour.total_seconds())
        with pytest.raises(EventTypeReserved):
            await desk.publisher.publish(late)
        await desk.signing.relay(late)
        assert desk.stream.last == 1
        await desk.signing.relay(desk.event(STATE_UPDATED))
        assert desk.stream.last == 2


async def test_a_revoked_previous_key_verifies_nothing_from_then_on() -> None:
    async with opened() as desk:
        old = await desk.signing.ensure(desk.domain)
        new = await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        revoked, current = await desk.signing.revoke(OPERATOR, desk.domain, old.kid)
        assert (revoked.kid, current.kid) == (old.kid, new.kid)
        assert [key.kid for key in (await desk.signing.trust([desk.domain]))[desk.domain]] == [new.kid]
        with pytest.raises(SigningKeyRevoked):
            await desk.signing.revoke(OPERATOR, desk.domain, old.kid)
        with pytest.raises(SigningKeyNotFound):
            await desk.signing.revoke(OPERATOR, desk.domain, KID_OF_ZEROS)


async def test_of_a_revoked_current_key_another_takes_the_place_at_once() -> None:
    async with opened() as desk:
        old = await desk.signing.ensure(desk.domain)
        _, current = await desk.signing.revoke(OPERATOR, desk.domain, old.kid)
        assert current.version == 2
        assert [key.kid for key in (await desk.signing.trust([desk.domain]))[desk.domain]] == [current.kid]
        await desk.publisher.publish(desk.event())
        assert envelope.parse(desk.stream.messages[1][1]).key_id == current.kid
        assert [kind for _, kind, _ in desk.keys.outbox] == [STATE_UPDATED]


async def test_a_pending_key_that_is_activated_while_it_is_revoked_leaves_no_domain_without_a_key() -> None:
    async with opened() as desk:
        desk.stream.broken = True
        with pytest.raises(EventBusUnavailable):
            await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        pending, revoke = (await desk.keys.pending(desk.clock.now()))[0], desk.keys.revoke

        async def overtaken(key: SigningKey, successor: PublicHalf | None, at: datetime.datetime) -> None:
            await desk.keys.activate(pending, at)
            await revoke(key, successor, at)

        desk.keys.revoke = overtaken  # type: ignore[method-assign]
        revoked, current = await desk.signing.revoke(OPERATOR, desk.domain, pending.kid)
        assert (revoked.kid, current.version) == (pending.kid, 3)
        assert len(desk.keys.outbox) == 1


async def test_without_the_relation_nothing_changes_and_a_row_says_so() -> None:
    async with opened() as desk:
        desk.authority.granted = set()
        kid = (await desk.signing.ensure(desk.domain)).kid
        for attempt in (
            desk.signing.rotate(OPERATOR, desk.domain, WEEK),
            desk.signing.revoke(OPERATOR, desk.domain, kid),
        ):
            with pytest.raises(Forbidden):
                await attempt
        assert [(row.reason, row.domain_id) for row in desk.audit.rows[1:]] == [("out_of_scope", HOME)] * 2
        assert len(desk.vault.pairs[desk.domain]) == 1


async def test_a_made_up_domain_gets_no_chain() -> None:
    desk = Desk()
    desk.authority.granted, desk.authority.reason = set(), "insufficient_relation"
    with pytest.raises(Forbidden):
        await desk.signing.rotate(OPERATOR, uuid7(), WEEK)
    assert [row.domain_id for row in desk.audit.rows] == [""]


async def test_of_many_that_cannot_be_resumed_one_gets_an_announcement() -> None:
    async with opened() as desk:
        asked = [await desk.signing.reconcile(desk.domain, uuid7()) for _ in range(20)]
        desk.clock.advance(10)
        asked.append(await desk.signing.reconcile(desk.domain, uuid7()))
        assert asked == [True, *[False] * 19, True]
        assert [kind for _, kind, _ in desk.keys.outbox] == [STATE_UPDATED] * 2


async def test_in_a_transition_the_new_key_comes_before_what_it_signs() -> None:
    async with opened() as desk:
        await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        await desk.signing.reconcile(desk.domain, uuid7())
        assert [kind for _, kind, _ in desk.keys.outbox] == [ROTATED, STATE_UPDATED]


# Operators' events ----------------------------------------------------------------------------------------------------


async def test_an_operator_publishes_and_the_row_comes_first() -> None:
    async with opened() as desk:
        identifier, sequence = await desk.operators.publish(
            OPERATOR, desk.domain, "action_request", f"domain:{desk.domain}", '{"a":1}'
        )
        assert (sequence, desk.log.rows[identifier].sequence) == (1, None)
        assert desk.audit.rows[-1].context == {"event": ["action_request", str(identifier)]}
        desk.audit.refusal = AuditUnavailable()
        with pytest.raises(AuditUnavailable):
            await desk.operators.publish(OPERATOR, desk.domain, "action_request", f"domain:{desk.domain}", "{}")
        assert desk.stream.last == 1


async def test_scopes_of_other_domains_are_refused() -> None:
    async with opened() as desk:
        node, other = f"node:{uuid7()}", f"node:{uuid7()}"
        desk.fleet.domains = {node: desk.domain, other: uuid7()}
        await desk.operators.publish(OPERATOR, desk.domain, "rotate_keys", node, "{}")
        with pytest.raises(NotFound):
            await desk.operators.publish(OPERATOR, desk.domain, "rotate_keys", other, "{}")
        with pytest.raises(NotFound):
            await desk.operators.publish(OPERATOR, desk.domain, "rotate_keys", f"project:{uuid7()}", "{}")
        with pytest.raises(Unprocessable):
            await desk.operators.publish(OPERATOR, desk.domain, "rotate_keys", f"domain:{uuid7()}", "{}")
        assert desk.stream.last == 1


async def test_a_node_needs_node_operate_and_a_domain_manage() -> None:
    async with opened() as desk:
        node = f"node:{uuid7()}"
        desk.fleet.domains = {node: desk.domain}
        desk.authority.granted = {("node-operate", node)}
        await desk.operators.publish(OPERATOR, desk.domain, "rotate_keys", node, "{}")
        with pytest.raises(Forbidden):
            await desk.operators.publish(OPERATOR, desk.domain, "rotate_keys", f"domain:{desk.domain}", "{}")
        assert (desk.audit.rows[-1].reason, desk.audit.rows[-1].domain_id) == ("out_of_scope", HOME)


async def test_nobody_hands_nodes_a_key_of_their_own() -> None:
    async with opened() as desk:
        scope = f"domain:{desk.domain}"
        forged = json.dumps({"key_id": "evk_1", "public_key": "AA", "previous_key_id": "evk_0"})
        with pytest.raises(EventTypeReserved):
            await desk.operators.publish(OPERATOR, desk.domain, ROTATED, scope, forged)
        old = await desk.signing.ensure(desk.domain)
        new = await desk.signing.rotate(OPERATOR, desk.domain, WEEK)
        for payload in (forged, "", "{", "[" * 100_000, '"\ud800"', "{}"):
            with pytest.raises(EventTypeReserved):
                await desk.operators.publish(OPERATOR, desk.domain, ROTATED, scope, payload)
            row = desk.audit.rows[-1]
            assert (row.reason, row.context["mesh"]) == ("caveat_violation", ["event_type_reserved"])
        genuine = json.dumps(announcement(new, old))
        twice = genuine.replace("{", '{"key_id":"evk_1",', 1)
        for payload in (genuine, twice):
            await desk.operators.publish(OPERATOR, desk.domain, ROTATED, scope, payload)
            told = envelope.parse(desk.stream.messages[desk.stream.last][1])
            assert (told.key_id, told.payload) == (old.kid, compact(genuine.encode()))
        with pytest.raises(EventTypeUnknown):
            await desk.operators.publish(OPERATOR, desk.domain, "made_up", scope, "{}")


@pytest.mark.parametrize("payload", ["", "{", "[]", "null", "{}{}", '{"a":NaN}', '{"a":"\ud800"}'])
async def test_a_payload_that_is_no_json_object_is_the_callers_mistake(payload: str) -> None:
    async with opened() as desk:
        with pytest.raises(EventNotSignable):
            await desk.operators.publish(OPERATOR, desk.domain, "action_request", f"domain:{desk.domain}", payload)
        assert desk.stream.last == 0
