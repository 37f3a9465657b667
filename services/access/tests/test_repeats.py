"""Repeats of a request: the same session and token for the same person, and nothing that is not granted now."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.errors import (
    DatastoreUnavailable,
    Forbidden,
    IdempotencyConflict,
    PlexError,
    SessionLimitExceeded,
    SessionNotActive,
    SigningUnavailable,
    StepUpRequired,
)
from libs.ids import uuid7
from libs.principal import Principal
from services.access.model import Issued, Session
from services.access.tests.fakes import ISSUER, MFA, NOW, PHR, World
from services.access.tests.test_service import KEY, rows, terms
from services.access.token import claims_of

pytestmark = pytest.mark.unit


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
