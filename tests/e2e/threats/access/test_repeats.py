"""F-4, F-5: what was asked for once is no way around a gate: repeats of requests."""

import uuid
from dataclasses import dataclass

import pytest

from tests.e2e.outside import JSON, Answer, Edge, Login
from tests.e2e.sessions import MFA, PHR, Person
from tests.e2e.threats.access.conftest import STRONG, VIOLATION, Stage

pytestmark = pytest.mark.e2e

WEAK = Login("", MFA, ("hwk",))


@dataclass
class Repeated:
    """A person who has a session, and what her request's repeats are told."""

    stage: Stage
    person: Person
    key: str
    issued: Answer
    session_id: str

    @classmethod
    async def of(cls, stage: Stage, login: Login = STRONG) -> "Repeated":
        person, key = await stage.person(login), str(uuid.uuid4())
        issued = await stage.issue(person.edge, idempotency_key=key)
        return cls(stage, person, key, issued, await stage.granted_once(issued))

    async def again(self, login: Login) -> Edge:
        """Sign the same person in once more."""
        named = Login(self.person.login.subject, login.acr, login.amr, login.auth_age_s)
        return (await Person.of(self.stage.scene.outside, self.stage.story.domain_id, named)).edge

    async def refused(
        self, said: str, edge: Edge | None = None, reason: str = "caveat_violation", **context: list[str]
    ) -> None:
        """Repeat, and see that nothing comes of it."""
        async with self.stage.nothing_issued():
            answer = await self.stage.issue(edge or self.person.edge, idempotency_key=self.key)
            await self.stage.refused(answer, said, VIOLATION, **context)


async def test_a_repeat_passes_every_gate_and_has_its_own_row(stage: Stage) -> None:
    once = await Repeated.of(stage)
    async with stage.nothing_issued():
        answer = await stage.issue(once.person.edge, idempotency_key=once.key)
        assert (answer.status, answer.json["token"]) == (201, once.issued.json["token"])
        row = await stage.row(answer)
    assert row["reason"] == "granted"
    assert (row["context"]["session"], row["context"]["idempotency"]) == (["ssh", once.session_id], ["repeat"])


async def test_a_repeat_after_stepping_down_gets_nothing(stage: Stage) -> None:
    once = await Repeated.of(stage)
    weaker, staler = await once.again(WEAK), await once.again(Login("", PHR, ("hwk",), 400))
    await once.refused("401 step_up_required", weaker, session=["ssh"], step_up=["acr_insufficient"])
    await once.refused("401 step_up_required", staler, session=["ssh"], step_up=["auth_time_stale"])


async def test_a_repeat_under_a_tightened_policy_gets_nothing(stage: Stage) -> None:
    once = await Repeated.of(stage, Login("", PHR, ("hwk",), 60))
    await stage.policy(required_amr=["hwk", "face"])
    await once.refused("401 step_up_required", session=["ssh"], step_up=["amr_missing"])
    await stage.policy(max_auth_age_seconds=30)
    # A newer login opens the gate; the token would tell of the older one.
    held = ["ssh", once.session_id]
    await once.refused("409 session_not_active", await once.again(STRONG), session=held, idempotency=["login"])
    await stage.policy(max_ttl_seconds=60, default_ttl_seconds=60)
    await once.refused("409 session_not_active", session=held, idempotency=["lasts_too_long"])


async def test_a_repeat_of_what_was_revoked_gets_nothing(stage: Stage) -> None:
    once = await Repeated.of(stage)
    await stage.revoke(once.person.edge, once.issued)
    await once.refused("409 session_not_active", session=["ssh", once.session_id], idempotency=["not_active"])


async def test_a_repeat_that_asks_for_something_else_gets_nothing(stage: Stage) -> None:
    once = await Repeated.of(stage)
    others: list[JSON] = [
        {"requested_ttl_seconds": 3600}, {"target": {"ssh": {"user": "root"}}}, {"resource_id": stage.resources[1]},
    ]  # fmt: skip
    async with stage.nothing_issued():
        for other in others:
            answer = await stage.issue(once.person.edge, idempotency_key=once.key, **other)
            await stage.refused(answer, "409 idempotency_conflict", session=["ssh"], idempotency=["other_body"])


async def test_anothers_key_is_ones_own(stage: Stage) -> None:
    once, other = await Repeated.of(stage), await stage.person()
    answer = await stage.issue(other.edge, idempotency_key=once.key)
    assert await stage.granted_once(answer) != once.session_id


async def test_a_repeat_without_the_role_gets_nothing(stage: Stage) -> None:
    once = await Repeated.of(stage)
    story = stage.story
    listed = await story.operator.call("GET", f"/v1/authz/relation-tuples?project_id={story.project_id}&limit=200")
    mine = f"user:{once.person.subject}"
    (role,) = [row["id"] for row in listed.json["items"] if row["subject"] == mine]
    assert (await story.operator.call("DELETE", f"/v1/authz/relation-tuples/{role}")).status == 204
    answer = await stage.issue(once.person.edge, idempotency_key=once.key)
    await stage.refused(answer, "403 permission_denied", "out_of_scope", session=["ssh"])
