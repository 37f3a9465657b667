"""Issuing a session: each gate, its row, and that nothing is left behind where one closes or something fails."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from nacl.signing import VerifyKey

from libs.access_policy import AccessPolicy, Override, Strength
from libs.errors import (
    AuditUnavailable,
    AuthzUnavailable,
    DatastoreUnavailable,
    Forbidden,
    InvalidTarget,
    PlexError,
    ResourceNotFound,
    SessionLimitExceeded,
    SigningUnavailable,
    StepUpRequired,
    Unauthenticated,
)
from libs.ids import uuid7
from services.access.model import Issued
from services.access.tests.fakes import ISSUER, MFA, NOW, PHR, World

pytestmark = pytest.mark.unit

KEY = bytes(range(32))
NOTHING_LEFT: tuple[dict[Any, Any], list[Any]] = ({}, [])


def rows(world: World) -> list[tuple[str, dict[str, list[str]]]]:
    return [(row.reason, row.context) for row in world.audit.rows if row.action == "session.issue"]


def claims(issued: Issued) -> dict[str, Any]:
    header, body, signature = issued.token.split(".")
    public = next(part for part in [issued.session.kid])
    assert json.loads(unpadded(header)) == {"alg": "EdDSA", "kid": public, "typ": "plexsphere-session+jwt"}
    assert len(unpadded(signature)) == 64
    found: dict[str, Any] = json.loads(unpadded(body))
    return found


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def test_a_session_is_issued_recorded_announced_and_its_token_verifies() -> None:
    world = World()
    issued = await world.access.issue(world.operator, world.wish())
    assert world.trace[-4:] == ["audit", "audit", "sign", "open"]
    assert rows(world) == [("granted", {"session": ["ssh", str(issued.session.id)]})]
    said = claims(issued)
    assert (said["iss"], said["sub"], said["aud"]) == (ISSUER, world.operator.subject, f"node:{world.node}")
    assert (said["jti"], said["exp"] - said["iat"]) == (str(issued.session.id), 900)
    assert (said["acr"], said["amr"], said["auth_time"]) == (MFA, ["pwd", "otp"], world.operator.auth_time)
    (event,) = world.store.events
    assert event[:2] == ("session_setup", f"node:{world.node}")
    assert event[2]["key_id"] == issued.session.kid
    message, _, signature = issued.token.rpartition(".")
    VerifyKey(base64.b64decode(event[2]["public_key"])).verify(message.encode(), unpadded(signature))
    assert issued.token not in repr(issued)
    assert issued.token not in json.dumps(event[2]) + issued.session.claims


Change = Callable[[World], None]


def who(**more: Any) -> Change:
    def change(world: World) -> None:
        world.operator = replace(world.operator, **more)
        world.admit(world.operator)

    return change


def terms(**more: Any) -> Change:
    def change(world: World) -> None:
        world.directory.resources[world.resource] = world.terms(**more)

    return change


def strength(**more: Any) -> Change:
    return terms(policy=AccessPolicy(replace(Strength((PHR, MFA), ("otp",), 300), **more)))


STEP_UP: dict[str, tuple[Change, list[str], list[str], int | None]] = {
    "missing acr": (who(acr=""), ["acr_missing"], [PHR, MFA], None),
    "wrong acr class": (who(acr="urn:acr:pwd"), ["acr_insufficient"], [PHR, MFA], None),
    "stale auth_time": (who(auth_time=0), ["auth_time_stale"], [], 300),
    "one second past": (who(auth_time=int(NOW.timestamp()) - 301), ["auth_time_stale"], [], 300),
    "no auth_time": (who(auth_time=None), ["auth_time_missing"], [], 300),
    "a clock ahead": (who(auth_time=int(NOW.timestamp()) + 60), ["auth_time_future"], [], 300),
    "amr only": (who(amr=("pwd",)), ["amr_missing"], [], None),
    "acr and age": (who(acr="", auth_time=1), ["acr_missing", "auth_time_stale"], [PHR, MFA], 300),
    "API token": (who(credential="api_token"), ["idp_claims"], [PHR, MFA], 300),
    "service token": (who(kind="service", credential="service_token"), ["idp_claims"], [PHR, MFA], 300),
    "another Domain's provider": (who(domain_id=str(uuid7())), ["foreign_provider"], [], None),
    "the kind asks for more": (
        terms(policy=AccessPolicy(Strength((PHR, MFA), ("otp",), 300), {"ssh": Override((PHR,))})),
        ["acr_insufficient"],
        [PHR],
        None,
    ),
    "the policy was tightened": (strength(max_auth_age_s=9), ["auth_time_stale"], [], 9),
    "nobody says what is strong": (strength(required_acr=()), ["acr_unconfigured"], [], None),
}


@pytest.mark.parametrize("name", STEP_UP)
async def test_a_login_that_is_not_fresh_and_strong_is_refused_with_what_helps(name: str) -> None:
    change, missing, acr_values, max_age_s = STEP_UP[name]
    world = World()
    change(world)
    with pytest.raises(StepUpRequired) as refused:
        await world.access.issue(world.operator, world.wish(KEY))
    assert refused.value.extra == {"missing": missing, "acr_values": acr_values, "max_age_s": max_age_s}
    assert rows(world) == [("caveat_violation", {"session": ["ssh"], "step_up": missing})]
    assert (world.store.sessions, world.store.events) == NOTHING_LEFT
    assert "reserve" not in world.trace
    assert "sign" not in world.trace


async def test_a_sign_in_that_was_ended_since_it_was_believed_gets_no_session() -> None:
    world = World()
    terms(sign_in_ended=True)(world)
    with pytest.raises(Unauthenticated):
        await world.access.issue(world.operator, world.wish(KEY))
    assert rows(world) == [("caveat_violation", {"session": ["ssh"], "sign_in": ["ended"]})]
    assert (world.store.sessions, world.store.events) == NOTHING_LEFT
    assert "reserve" not in world.trace


@pytest.mark.parametrize("at", [299, 300])
async def test_a_login_is_fresh_until_its_limit_and_at_it(at: int) -> None:
    world = World()
    world.clock.at = NOW.replace(microsecond=0)
    await world.access.issue(replace(world.operator, auth_time=int(NOW.timestamp()) - at), world.wish())


async def test_the_bindings_values_count_where_the_policy_has_none() -> None:
    world = World()
    world.directory.resources[world.resource] = world.terms(policy=AccessPolicy(), binding_acr=(MFA,))
    assert (await world.access.issue(world.operator, world.wish())).token


async def test_the_platforms_people_are_at_home_everywhere() -> None:
    world = World()
    platform = world.person(domain_id="")
    world.admit(platform)
    assert (await world.access.issue(platform, world.wish())).token


@pytest.mark.parametrize("reason", ["out_of_scope", "insufficient_relation", "caveat_violation"])
async def test_without_the_relation_nothing_else_is_looked_at(reason: str) -> None:
    world = World()
    world.authority.reason = reason
    stranger = world.person(acr="", auth_time=None, domain_id=str(uuid7()))
    with pytest.raises(Forbidden) as refused:
        await world.access.issue(stranger, world.wish())
    assert refused.value.extra["reason"] == reason
    assert rows(world) == [(reason, {"session": ["ssh"]})]
    # Who has no binding here fills no chain but his own.
    chain = stranger.domain_id if reason == "out_of_scope" else str(world.domain)
    assert world.audit.rows[-1].domain_id == chain
    assert "reserve" not in world.trace


@pytest.mark.parametrize(
    "change", [terms(node_id=None), terms(project_id=uuid7()), lambda world: world.directory.resources.clear()]
)
async def test_a_resource_without_a_node_in_the_project_has_no_sessions(change: Change) -> None:
    world = World()
    change(world)
    with pytest.raises(ResourceNotFound):
        await world.access.issue(world.operator, world.wish())
    assert rows(world) == [("caveat_violation", {"session": ["ssh"], "target": ["no_node"]})]


async def test_a_target_that_is_none_is_refused_before_anything_is_asked() -> None:
    world = World()
    with pytest.raises(InvalidTarget):
        await world.access.issue(world.operator, world.wish(target={"tcp": {"host": "a", "port": 1}}))
    assert world.trace == []


@pytest.mark.parametrize(("asked", "lasts"), [(0, 900), (60, 60), (9999, 3600)])
async def test_a_lifetime_is_clamped_silently(asked: int, lasts: int) -> None:
    world = World()
    said = claims(await world.access.issue(world.operator, world.wish(ttl_s=asked)))
    assert said["exp"] - said["iat"] == lasts


@pytest.mark.parametrize(
    ("dimension", "limits"),
    [
        ("identity", {"max_active_per_identity": 2}),
        ("node", {"max_active_per_node": 2}),
        ("issue_rate", {"issue_rate_per_minute": 2}),
    ],
)
async def test_of_many_at_once_no_more_get_one_than_may(dimension: str, limits: dict[str, Any]) -> None:
    world = World()
    policy = replace(AccessPolicy(world.policy.strength), **limits)
    world.directory.resources[world.resource] = world.terms(policy=policy)

    async def attempt() -> str:
        try:
            await world.access.issue(world.operator, world.wish())
        except SessionLimitExceeded as refused:
            return ",".join(map(str, refused.extra.values()))
        return "issued"

    seen = Counter(await asyncio.gather(*(attempt() for _ in range(50))))
    assert seen == {"issued": 2, dimension: 48}
    assert Counter(tuple(context.get("budget", ())) for _, context in rows(world)) == {(): 2, (dimension,): 48}


BROKEN: dict[str, tuple[Callable[[World], object], type[PlexError]]] = {
    "relations": (lambda world: setattr(world.authority, "refusal", AuthzUnavailable()), AuthzUnavailable),
    "terms": (lambda world: setattr(world.directory, "refusal", AuthzUnavailable()), AuthzUnavailable),
    "budget": (lambda world: world.store.refusals.update(reserve=DatastoreUnavailable()), DatastoreUnavailable),
    "audit": (lambda world: setattr(world.audit, "refusal", AuditUnavailable()), AuditUnavailable),
    "signer": (lambda world: setattr(world.vault, "refusal", SigningUnavailable()), SigningUnavailable),
    "a signature that does not verify": (lambda world: setattr(world.vault, "tamper", b"x"), SigningUnavailable),
    "database": (lambda world: world.store.refusals.update(open=DatastoreUnavailable()), DatastoreUnavailable),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_breaks_leaves_no_session_no_event_and_no_place(what: str) -> None:
    breaking, error = BROKEN[what]
    world = World()
    breaking(world)
    with pytest.raises(error):
        await world.access.issue(world.operator, world.wish(KEY))
    assert (world.store.sessions, world.store.events) == NOTHING_LEFT
    assert (world.store.places, world.store.requests) == ({}, {})


async def test_without_its_row_nothing_is_signed() -> None:
    world = World()
    await world.keys.current(world.domain)
    world.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await world.access.issue(world.operator, world.wish())
    assert "sign" not in world.trace


async def test_a_place_that_was_held_too_long_makes_no_session() -> None:
    world = World()
    world.store.refusals["release"] = DatastoreUnavailable()
    world.vault.refusal = SigningUnavailable()
    with pytest.raises(SigningUnavailable):
        await world.access.issue(world.operator, world.wish())
    assert len(world.store.places) == 1
    world.clock.advance(31)
    world.vault.refusal = None
    assert (await world.access.issue(replace(world.operator, auth_time=int(NOW.timestamp())), world.wish())).token
    assert world.store.places == {}
