"""Back-channel logout: what a logout token must say to be believed, by whom, and what is recorded before it counts."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import OKPKey

from libs.errors import AuditUnavailable, LogoutRefused, ProviderFailed
from libs.ids import uuid7
from services.identity.logout import EVENT, MOST_AT_ONCE
from services.identity.tests.fakes import NOW
from services.identity.tests.sign_in_fakes import CLIENT, ISSUER, SignInWorld, a_binding

pytestmark = pytest.mark.unit

Claims = dict[str, Any]
NOW_S = int(NOW.timestamp())


def claims(**changed: Any) -> Claims:
    plain = {
        "iss": ISSUER, "aud": CLIENT, "iat": NOW_S, "exp": NOW_S + 120, "jti": str(uuid7()), "sid": "op-1",
        "sub": "alice", "events": {EVENT: {}},
    }  # fmt: skip
    return {name: value for name, value in (plain | changed).items() if value is not ...}


def token(world: SignInWorld, said: Claims, key: OKPKey | None = None, **header: Any) -> str:
    head = {"alg": "Ed25519", "kid": "k1", "typ": "logout+jwt"} | header
    return jws.serialize_compact(head, json.dumps(said).encode(), key or world.provider.key, algorithms=["Ed25519"])


async def test_a_logout_is_recorded_before_it_ends_anything() -> None:
    world = SignInWorld()
    await world.logout.accept(token(world, claims()))
    assert world.trace == ["audit", "log_out"]
    assert world.logouts.ended == [(world.binding.id, "alice", "op-1")]
    (row,) = world.audit.rows
    assert (row.action, row.reason, row.domain_id) == ("session.log_out", "granted", str(world.domain_id))
    assert (row.subject_id, row.subject_kind) == ("", "anonymous")


@pytest.mark.parametrize("whom", [{}, {"sid": ...}, {"sub": ...}])
async def test_the_row_names_whose_sessions_end(whom: Claims) -> None:
    world = SignInWorld()
    world.provider.claims = {"sid": "op-1"}
    person = (await world.walk(world.domain_id)).session.person
    await world.logout.accept(token(world, claims(**whom)))
    assert (world.audit.rows[-1].subject_id, world.audit.rows[-1].subject_kind) == (str(person.id), "user")


@pytest.mark.parametrize("whom", [{"sid": ...}, {"sub": ...}])
async def test_a_subject_or_a_session_is_enough(whom: Claims) -> None:
    world = SignInWorld()
    await world.logout.accept(token(world, claims(**whom)))
    assert world.logouts.ended == [
        (world.binding.id, "" if "sub" in whom else "alice", "" if "sid" in whom else "op-1")
    ]


async def test_without_a_record_nothing_ends() -> None:
    world = SignInWorld()
    world.audit.refusal = AuditUnavailable("down")
    with pytest.raises(AuditUnavailable):
        await world.logout.accept(token(world, claims()))
    assert world.logouts.ended == []


REFUSED: dict[str, tuple[Claims, str]] = {
    "issuer that nobody believes": ({"iss": "https://evil.example"}, "iss_unknown"),
    "issuer that has no encoding": ({"iss": "\ud800"}, "iss_unknown"),
    "id that has no encoding": ({"jti": "\ud800"}, "jti"),
    "another audience": ({"aud": "other"}, "aud"),
    "no audience": ({"aud": ...}, "aud"),
    "issued in the future": ({"iat": NOW_S + 31}, "iat"),
    "no time of issue": ({"iat": ...}, "iat"),
    "expired": ({"exp": NOW_S - 30}, "exp"),
    "no end": ({"exp": ...}, "exp"),
    "end that no calendar has": ({"exp": 1e300}, "exp"),
    "no id of its own": ({"jti": ...}, "jti"),
    "empty id": ({"jti": ""}, "jti"),
    "no events": ({"events": ...}, "events"),
    "another event": ({"events": {"urn:other": {}}}, "events"),
    "event that is no object": ({"events": {EVENT: True}}, "events"),
    "nonce inside": ({"nonce": "n"}, "nonce"),
    "nobody named": ({"sub": ..., "sid": ...}, "sub_sid"),
    # Nothing between quotes must not mean everybody.
    "session without a name": ({"sid": ""}, "sub_sid"),
    "subject without a name": ({"sub": "", "sid": ...}, "sub_sid"),
    "subject that is no text": ({"sub": ["alice"]}, "sub_sid"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_token_that_says_less_ends_nothing(name: str) -> None:
    changed, reason = REFUSED[name]
    world = SignInWorld()
    with pytest.raises(LogoutRefused):
        await world.logout.accept(token(world, claims(**changed)))
    assert world.logouts.ended == []
    assert [row.context["logout_token"] for row in world.audit.rows] == [[reason]]


FORGED: dict[str, tuple[Callable[[SignInWorld], str], str]] = {
    "key of the attacker": (lambda world: token(world, claims(), OKPKey.generate_key("Ed25519")), "signature"),
    "key id of the attacker": (lambda world: token(world, claims(), kid="k2"), "kid_unknown"),
    "kind of another token": (lambda world: token(world, claims(), typ="at+jwt"), "typ"),
    "not signed": (lambda world: ".".join([*token(world, claims()).split(".")[:2], ""]), "signature"),
    "not a token": (lambda _: "x", "segments"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_ends_nothing(name: str) -> None:
    make, reason = FORGED[name]
    world = SignInWorld()
    with pytest.raises(LogoutRefused):
        await world.logout.accept(make(world))
    assert world.logouts.ended == []
    assert [row.context["logout_token"] for row in world.audit.rows] == [[reason]]


async def test_a_token_counts_once_and_refusals_of_a_minute_share_a_row() -> None:
    world = SignInWorld()
    sent = token(world, claims())
    await world.logout.accept(sent)
    for _ in range(3):
        with pytest.raises(LogoutRefused):
            await world.logout.accept(sent)
    assert len(world.logouts.ended) == 1
    assert [row.context.get("logout_token") for row in world.audit.rows] == [None, ["jti_replayed"]]


async def test_each_binding_believes_for_itself_and_its_own_people() -> None:
    world = SignInWorld()
    # Another Domain bound the same issuer, as another client.
    other = a_binding(uuid7(), ISSUER, client_id="another")
    world.store.binding_rows[other.id] = other
    await world.logout.accept(token(world, claims()))
    assert [binding_id for binding_id, _, _ in world.logouts.ended] == [world.binding.id]
    same = replace(other, id=uuid7(), client_id=CLIENT)
    world.store.binding_rows[same.id] = same
    await world.logout.accept(token(world, claims()))
    assert {binding_id for binding_id, _, _ in world.logouts.ended} == {world.binding.id, same.id}


async def test_a_provider_whose_keys_cannot_be_had_may_try_again() -> None:
    world = SignInWorld()
    sent = token(world, claims())
    world.provider.refusal = ProviderFailed("down")
    with pytest.raises(ProviderFailed):
        await world.logout.accept(sent)
    world.provider.refusal = None
    await world.logout.accept(sent)
    assert len(world.logouts.ended) == 1


async def test_a_binding_whose_keys_do_not_come_keeps_nobody_elses_people_signed_in() -> None:
    world = SignInWorld()
    slow = a_binding(uuid7(), ISSUER)
    world.store.binding_rows = {slow.id: slow, **world.store.binding_rows}
    world.provider.slow = {slow.id}
    logout = replace(world.logout, keys_within_s=0.05)
    async with asyncio.timeout(2):
        await logout.accept(token(world, claims()))
    assert [binding_id for binding_id, _, _ in world.logouts.ended] == [world.binding.id]


async def test_a_bug_of_one_binding_is_refused_with_a_row_after_the_others_were_asked() -> None:
    world = SignInWorld()
    world.provider.refusal = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        await world.logout.accept(token(world, claims()))
    assert [row.context["logout_token"] for row in world.audit.rows] == [["internal"]]


async def test_only_whom_a_token_is_for_is_asked_and_few_at_once() -> None:
    world, asked, most = SignInWorld(), 0, 0
    for number in range(100):
        client = CLIENT if number < 50 else f"client-{number}"
        other = a_binding(uuid7(), ISSUER, client_id=client)
        world.store.binding_rows[other.id] = other
    keys, under_way = world.provider.keys, 0

    async def slow(*arguments: Any) -> Any:
        nonlocal asked, most, under_way
        asked, under_way = asked + 1, under_way + 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return await keys(*arguments)

    world.provider.keys = slow  # type: ignore[method-assign,assignment]  # counted on the way
    await world.logout.accept(token(world, claims()))
    assert len(world.logouts.ended) == asked == 51
    assert most == MOST_AT_ONCE
