"""Issuing a session: each gate, its row, and that nothing is left behind where one closes or something fails."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from nacl.signing import VerifyKey

from libs.access_policy import AccessPolicy, Override, Strength
from libs.errors import (
    AuditUnavailable,
    AuthzUnavailable,
    DatastoreUnavailable,
    Forbidden,
    IdempotencyConflict,
    InvalidTarget,
    PlexError,
    ResourceNotFound,
    SessionLimitExceeded,
    SessionNotActive,
    SigningUnavailable,
    StepUpRequired,
)
from libs.ids import uuid7
from libs.principal import Principal
from services.access.model import Issued, Session
from services.access.tests.fakes import ISSUER, MFA, NOW, PHR, World
from services.access.token import claims_of

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


# Repeats ------------------------------------------------------------------------------------------


async def repeated(world: World, caller: Principal | None = None, **more: Any) -> Issued:
    return await world.access.issue(caller or world.operator, world.wish(KEY, **more))


async def test_a_repeat_gets_the_same_session_and_token_with_a_row_of_its_own() -> None:
    world = World()
    first = await repeated(world)
    world.clock.advance(60)
    again = await repeated(world)
    assert (again.token, again.session.id) == (first.token, first.session.id)
    assert len(world.store.sessions) == len(world.store.events) == 1
    assert [context.get("idempotency") for _, context in rows(world)] == [None, ["repeat"]]
    world.clock.advance(600)
    fresh = replace(world.operator, auth_time=int(world.clock.now().timestamp()))
    assert (await repeated(world, fresh)).session.id != first.session.id


async def test_a_repeat_is_no_way_around_a_gate() -> None:
    world = World()
    await repeated(world)
    with pytest.raises(StepUpRequired):
        await repeated(world, replace(world.operator, acr="urn:acr:pwd"))
    with pytest.raises(StepUpRequired):
        await repeated(world, replace(world.operator, credential="api_token"))
    world.clock.advance(291)
    with pytest.raises(StepUpRequired):
        await repeated(world)
    world.authority.granted.clear()
    with pytest.raises(Forbidden):
        await repeated(world)
    assert world.trace.count("sign") == 1


async def test_a_repeat_by_somebody_else_or_with_another_body_is_none() -> None:
    world = World()
    first = await repeated(world)
    other = world.person()
    world.admit(other)
    assert (await repeated(world, other)).session.id != first.session.id
    with pytest.raises(IdempotencyConflict):
        await repeated(world, body_digest=b"c" * 32)


async def test_a_repeat_while_the_first_is_under_way_waits_for_nobody() -> None:
    world = World()
    answers = await asyncio.gather(*(repeated(world) for _ in range(10)), return_exceptions=True)
    codes = Counter(answer.code if isinstance(answer, PlexError) else "issued" for answer in answers)
    assert codes == {"issued": 1, "idempotent_replay": 9}


async def test_what_is_over_is_never_signed_again() -> None:
    world = World()
    first = await repeated(world)
    await world.access.revoke(world.operator, world.project, first.session.id, "operator_request")
    with pytest.raises(SessionNotActive):
        await repeated(world)
    short = World()
    await repeated(short, ttl_s=30)
    short.clock.advance(31)
    with pytest.raises(SessionNotActive):
        await repeated(short, ttl_s=30)
    tightened = World()
    await repeated(tightened)
    terms(policy=replace(tightened.policy, default_ttl_s=60, max_ttl_s=60))(tightened)
    with pytest.raises(SessionNotActive):
        await repeated(tightened)
    moved = World()
    await repeated(moved)
    terms(node_id=uuid7())(moved)
    with pytest.raises(SessionNotActive):
        await repeated(moved)
    assert [world.trace.count("sign") for world in (short, tightened, moved)] == [1, 1, 1]


async def test_a_key_that_does_not_count_any_more_signs_nothing_again() -> None:
    world = World()
    first = await repeated(world)
    world.authority.granted.add((world.operator.reference, "manage", f"domain:{world.domain}"))
    await world.keys.rotate(world.operator, world.domain, timedelta(seconds=60))
    assert (await repeated(world)).token == first.token
    world.clock.advance(60)
    with pytest.raises(SigningUnavailable):
        await repeated(world)


@pytest.mark.parametrize(
    "altered",
    [
        lambda row: replace(row, claims=row.claims.replace("root", "daemon"), target={"ssh": {"user": "daemon"}}),
        lambda row: replace(row, claims=row.claims.replace('"acr":"urn:acr:mfa"', '"acr":"urn:acr:mfa","admin":1')),
        lambda row: replace(row, expires_at=row.expires_at + timedelta(seconds=100)),
        lambda row: replace(row, claims=row.claims.replace("node:", "node:x")),
        lambda row: replace(row, claims=row.claims.replace(MFA, PHR)),
        lambda row: replace(row, claims=row.claims.replace(ISSUER, "https://edge.evil")),
        lambda row: replace(row, claims="{"),
        lambda row: replace(row, claims=""),
        lambda row: replace(row, seal=b""),
        lambda row: with_claims(row, identity_id=uuid7()),
        lambda row: with_claims(row, resource_id=uuid7()),
        lambda row: with_claims(row, project_id=uuid7()),
        lambda row: with_claims(row, expires_at=row.expires_at + timedelta(seconds=100)),
    ],
)
async def test_a_row_that_somebody_changed_is_not_signed(altered: Callable[[Any], Any]) -> None:
    world = World()
    first = await repeated(world)
    world.store.sessions[first.session.id] = altered(world.store.sessions[first.session.id])
    with pytest.raises(SigningUnavailable):
        await repeated(world)
    assert world.trace.count("sign") == 1
    assert rows(world)[-1][1]["idempotency"] == ["altered"]


def with_claims(row: Session, **changes: Any) -> Session:
    """Change a row and its claims alike, as who knows both would."""
    row = replace(row, **changes)
    login = json.loads(row.claims)
    return replace(row, claims=claims_of(row, ISSUER, login["acr"], tuple(login["amr"]), login["auth_time"]))


@pytest.mark.parametrize("whose", ["another person's", "another resource's", "another kind's"])
async def test_a_request_that_somebody_leads_to_another_session_is_not_signed(whose: str) -> None:
    world = World()
    await repeated(world)
    other = world.person() if whose == "another person's" else world.operator
    resource = uuid7() if whose == "another resource's" else world.resource
    kind: dict[str, Any] = {"kind": "tcp", "target": {"tcp": {"host": "db", "port": 1}}} if "kind" in whose else {}
    world.directory.resources[resource] = world.terms()
    world.authority.granted.add((other.reference, "act", f"resource:{resource}"))
    theirs = await world.access.issue(other, world.wish(b"o" * 32, resource_id=resource, **kind))
    key = (UUID(world.operator.subject), KEY)
    body, _, asked_at = world.store.requests[key]
    world.store.requests[key] = (body, theirs.session.id, asked_at)
    with pytest.raises(SigningUnavailable):
        await repeated(world)
    assert world.trace.count("sign") == 2


async def test_a_revocation_that_somebody_took_back_is_not_signed() -> None:
    world = World()
    first = await repeated(world)
    await world.access.revoke(world.operator, world.project, first.session.id, "operator_request")
    row = world.store.sessions[first.session.id]
    world.store.sessions[row.id] = replace(row, revoked_at=None, revoke_reason="")
    with pytest.raises(SessionNotActive):
        await repeated(world)
    assert world.trace.count("sign") == 1


async def test_repeats_are_requests_of_their_minute() -> None:
    world = World()
    terms(policy=replace(world.policy, issue_rate_per_minute=3))(world)
    for _ in range(3):
        await repeated(world)
    with pytest.raises(SessionLimitExceeded):
        await repeated(world)
    with pytest.raises(SessionLimitExceeded):
        await world.access.issue(world.operator, world.wish())
    assert (world.trace.count("sign"), rows(world)[-2][1]["budget"]) == (3, ["issue_rate"])
    world.clock.advance(60)
    assert (await repeated(world)).token


async def test_a_repeat_under_another_sign_in_binds_the_session_to_both() -> None:
    world = World()
    first = await repeated(world)
    later = replace(world.operator, session_id=str(uuid7()), auth_time=int(NOW.timestamp()))
    assert (await repeated(world, later)).token == first.token
    await repeated(world, later)
    assert {str(one) for one in world.store.sessions[first.session.id].sign_in_ids} == {
        world.operator.session_id, later.session_id,
    }  # fmt: skip
    world.directory.gone = {UUID(later.session_id)}
    assert await world.standing.look() == 1
    assert world.store.sessions[first.session.id].status(world.clock.now()) == "revoked"


async def test_a_newer_login_signs_no_older_one_again() -> None:
    world = World()
    await repeated(world)
    world.clock.advance(295)
    newer = replace(world.operator, session_id=str(uuid7()), auth_time=int(world.clock.now().timestamp()))
    with pytest.raises(SessionNotActive):
        await repeated(world, newer)
    assert (world.trace.count("sign"), rows(world)[-1][1]["idempotency"]) == (1, ["login"])


async def test_a_sign_in_that_is_not_noted_gets_no_token() -> None:
    world = World()
    await repeated(world)
    world.store.refusals["join"] = DatastoreUnavailable()
    with pytest.raises(DatastoreUnavailable):
        await repeated(world)
    assert world.trace.count("sign") == 1
