"""F-4: whoever is killed at whichever step of an issue, no session lacks its row, and no event its session."""

import asyncio
import contextlib
import random
import uuid

import pytest

from tests.e2e import sessions
from tests.e2e.attacker import eventually
from tests.e2e.outside import Answer, Edge
from tests.e2e.sessions import Person
from tests.e2e.threats.access.conftest import Stage, no_token
from tests.e2e.threats.access.stops import STEPS, attempted
from tests.e2e.threats.mesh.test_outbox import unwatched

pytestmark = pytest.mark.e2e

VICTIMS = ("access", "audit", "openbao", "postgres")
# A place that nobody gave back is free after as long.
HELD = "SELECT extract(epoch FROM expires_at - now())::float FROM access.reservations WHERE expires_at > now()"
HELD_FOR_S = 30
ROUNDS = 8


async def free_places(stage: Stage) -> None:
    """Let the time go by for which places are held."""
    for row in await stage.dba.fetch(HELD):
        assert row[0] <= HELD_FOR_S
    await stage.dba.execute("UPDATE access.reservations SET expires_at = now()")


async def insisted(stage: Stage, edge: Edge, key: str, *, may_be_held: bool, resource_id: str = "") -> Answer:
    """Ask as a client does that lost its answer, until the time is good."""
    answers: list[Answer] = []

    async def answered() -> bool:
        answer = await stage.issue(edge, idempotency_key=key, resource_id=resource_id or stage.resources[1])
        answers.append(answer)
        if answer.status == 409:
            assert (answer.code, may_be_held) == ("idempotent_replay", True)
            await free_places(stage)
        return answer.status not in {503, 409}

    await eventually(answered)
    assert answers[-1].status == 201, answers[-1].body
    return answers[-1]


async def only_one(stage: Stage, edge: Edge, issued: Answer) -> None:
    """See that a session is the only one on node B, and that its place is free once it is revoked."""
    assert (await sessions.claims(stage.story, issued.json["token"]))["jti"] == issued.json["session_id"]
    beyond = await stage.issue(edge, resource_id=stage.resources[1])
    assert (str(beyond), beyond.json["dimension"]) == ("429 session_limit_exceeded", "node")
    await stage.revoke(edge, issued)
    await stage.revoke(edge, await stage.issue(edge, resource_id=stage.resources[1]))


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_each_step_leaves_all_or_nothing(stage: Stage, step: str, victim: str) -> None:
    at, person, key = STEPS[step], await stage.person(), str(uuid.uuid4())
    await stage.policy(max_active_per_node=1)
    try:
        async with attempted(stage, at, person, key) as attempt:
            await stage.world.kill(victim)
            if victim == at.frozen:
                await stage.world.start(victim)
        answer = await attempt
    finally:
        await stage.world.start(victim)
    await stage.reconnect()
    # Who needs the killed one no more has its session.
    assert answer.status in {201, 503}, answer.body
    if answer.status == 503:
        no_token(answer)
    await stage.consistent()
    issued = await insisted(stage, person.edge, key, may_be_held=victim == "access")
    if answer.status == 201:
        assert issued.json["token"] == answer.json["token"]
    await stage.consistent()
    await only_one(stage, person.edge, issued)
    await stage.consistent()


async def lost_answer(stage: Stage, person: Person, key: str) -> bool:
    """Kill access between the commit and its answer; False where the machine was too slow, and it did not commit."""

    async def committed() -> bool:
        return len((await stage.traces()).sessions) == len(stage.before.sessions) + 1

    try:
        async with (
            unwatched(stage.dba),
            attempted(stage, STEPS["before the session"], person, key, finishes=True) as attempt,
        ):
            await stage.world.kill("access")
        answer = await attempt
        # The database gives a statement two seconds.
        with contextlib.suppress(TimeoutError):
            await eventually(committed, 3)
    finally:
        await stage.world.start("access")
    assert answer.status == 503
    no_token(answer)
    return await committed()


async def test_a_session_whose_answer_was_lost_is_the_same_one_again(stage: Stage) -> None:
    person, key = await stage.person(), str(uuid.uuid4())
    await stage.policy(max_active_per_node=1)
    # A busy machine may take longer over the kill than the database gives a statement.
    for _turn in range(10):
        if await lost_answer(stage, person, key):
            break
        await free_places(stage)
    (session_id,) = set((await stage.traces()).sessions) - set(stage.before.sessions)
    await stage.consistent()
    issued = await insisted(stage, person.edge, key, may_be_held=False)
    assert issued.json["session_id"] == session_id
    await only_one(stage, person.edge, issued)


async def test_a_row_whose_answer_was_lost_has_no_session(stage: Stage) -> None:
    """Audit is killed between its commit and its answer."""
    at, person, key = STEPS["before its row"], await stage.person(), str(uuid.uuid4())
    await stage.policy(max_active_per_node=1)
    try:
        async with unwatched(stage.dba), attempted(stage, at, person, key, finishes=True) as attempt:
            await stage.world.kill("audit")
        answer = await attempt
    finally:
        await stage.world.start("audit")
    assert str(answer) == "503 audit_unavailable"
    no_token(answer)
    traces = await stage.traces()
    assert (traces.sessions, traces.places) == (stage.before.sessions, 0)
    await only_one(stage, person.edge, await insisted(stage, person.edge, key, may_be_held=False))
    await stage.consistent()


@pytest.mark.parametrize("victim", ["access", "mesh"])
async def test_who_dies_before_the_event_is_published_loses_none(stage: Stage, victim: str) -> None:
    person = await stage.person()
    async with stage.listen() as node:
        await stage.world.kill("mesh")
        try:
            issued = await stage.issue(person.edge)
            if victim == "access":
                await stage.world.restart("access")
        finally:
            await stage.world.start("mesh")
        session_id = await stage.granted_once(issued)

        def told() -> list[str]:
            return [one.id for one in node.heard if one.envelope["payload"].get("session_id") == session_id]

        async def heard() -> bool:
            return bool(told())

        await eventually(heard)
    assert len(set(told())) == 1
    await stage.consistent()


async def test_a_kill_at_any_moment_leaves_all_or_nothing(stage: Stage) -> None:
    """Four ask at once, again and again, while one process after the other is killed under them."""
    chance = random.Random(20261126)
    people = [await stage.person() for _ in range(4)]
    returned: dict[str, str] = {}
    for turn in range(ROUNDS):
        victim, keys = VICTIMS[turn % len(VICTIMS)], [str(uuid.uuid4()) for _ in people]
        asking = [stage.issue(one.edge, idempotency_key=key) for one, key in zip(people, keys, strict=True)]
        attempts = [asyncio.create_task(one) for one in asking]
        await asyncio.sleep(chance.uniform(0, 0.12))
        await stage.world.kill(victim)
        answers = await asyncio.gather(*attempts)
        await stage.world.start(victim)
        await stage.reconnect()
        assert {answer.status for answer in answers} <= {201, 503}, [answer.body for answer in answers]
        await stage.consistent()
        for one, key, answer in zip(people, keys, answers, strict=True):
            issued = await insisted(
                stage, one.edge, key, may_be_held=victim == "access", resource_id=stage.resources[0]
            )
            if answer.status == 201:
                assert issued.json["token"] == answer.json["token"]
            returned[issued.json["session_id"]] = issued.json["token"]
    await stage.consistent()
    traces = await stage.traces()
    # Whatever was begun has come to an end, and each request to one session, which its client has.
    assert set(traces.sessions) - set(stage.before.sessions) == returned.keys()
    assert (len(returned), traces.places) == (ROUNDS * len(people), 0)
    for session_id, token in returned.items():
        assert (await sessions.claims(stage.story, token))["jti"] == session_id
