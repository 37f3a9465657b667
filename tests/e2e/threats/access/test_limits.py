"""F-4: however many ask at once, nobody has more sessions than the limits let, and no node either."""

import asyncio
import time
import uuid
from collections import Counter
from typing import Any

import pytest

from tests.e2e.outside import Answer
from tests.e2e.sessions import Person, claims
from tests.e2e.threats.access.conftest import Stage, no_token

pytestmark = pytest.mark.e2e

FIFTY = 50
# Of the same refusal, as many have a row in a minute.
SAME = 10


async def fifty(stage: Stage, people: list[Person], **more: Any) -> list[Answer]:
    """Ask fifty times at once, as several people in turn."""
    return await asyncio.gather(*(stage.issue(people[turn % len(people)].edge, **more) for turn in range(FIFTY)))


async def exactly(stage: Stage, answers: list[Answer], most: int, dimension: str) -> None:
    """See that as many were issued as the limit lets, each with its row and event, and all others refused by it."""
    assert Counter(map(str, answers)) == {"201": most, "429 session_limit_exceeded": FIFTY - most}
    refused = [answer for answer in answers if answer.status == 429]
    for answer in refused:
        no_token(answer)
        assert (answer.json["dimension"], "Retry-After" in answer.headers) == (dimension, False)
    issued = {answer.json["session_id"] for answer in answers if answer.status == 201}
    traces = await stage.traces()
    assert set(traces.sessions) - set(stage.before.sessions) == issued
    assert traces.places == 0
    await stage.consistent()
    rows = [row for answer in refused for row in await stage.rows(answer)]
    people = {answer.json["session"]["identity_id"] for answer in answers if answer.status == 201}
    assert SAME <= len(rows) <= SAME * max(len(people), 5)
    assert all(row["context"]["budget"] == [dimension] for row in rows)
    assert {len(await stage.rows(answer)) for answer in refused} <= {0, 1}


async def test_fifty_requests_at_once_never_exceed_the_limit_of_a_person(stage: Stage) -> None:
    await stage.policy(max_active_per_identity=7)
    person = await stage.person()
    # Another login of the same person is the same person.
    again = await Person.of(stage.scene.outside, stage.story.domain_id, person.login)
    await exactly(stage, await fifty(stage, [person, again]), 7, "identity")


async def test_fifty_requests_at_once_never_exceed_the_limit_of_a_node(stage: Stage) -> None:
    await stage.policy(max_active_per_node=6)
    people = [await stage.person() for _ in range(5)]
    answers = await fifty(stage, people, resource_id=stage.resources[1])
    await exactly(stage, answers, 6, "node")
    for answer in answers:
        if answer.status == 201:
            await stage.revoke(stage.story.operator, answer)


async def test_fifty_requests_at_once_never_exceed_the_rate_of_a_person(stage: Stage) -> None:
    await stage.policy(issue_rate_per_minute=5)
    await exactly(stage, await fifty(stage, [await stage.person()]), 5, "issue_rate")


async def test_fifty_repeats_at_once_are_one_session(stage: Stage) -> None:
    person = await stage.person()
    answers = await fifty(stage, [person], idempotency_key=str(uuid.uuid4()))
    assert {str(answer) for answer in answers} <= {"201", "409 idempotent_replay"}
    (session_id,) = {answer.json["session_id"] for answer in answers if answer.status == 201}
    (_token,) = {answer.json["token"] for answer in answers if answer.status == 201}
    assert set((await stage.traces()).sessions) - set(stage.before.sessions) == {session_id}
    await stage.consistent()


async def test_a_session_that_ended_makes_room(stage: Stage) -> None:
    await stage.policy(max_active_per_identity=2)
    person = await stage.person()
    lasting = await stage.issue(person.edge)
    short = await stage.issue(person.edge, requested_ttl_seconds=4)
    await stage.refused(
        await stage.issue(person.edge), "429 session_limit_exceeded", session=["ssh"], budget=["identity"]
    )
    await asyncio.sleep((await claims(stage.story, short.json["token"]))["exp"] - time.time() + 0.1)
    await stage.granted_once(await stage.issue(person.edge))
    await stage.revoke(person.edge, lasting)
    await stage.granted_once(await stage.issue(person.edge))
