"""F-4: a right that ends, or a client that hangs up, while a session is being issued."""

import asyncio
import contextlib
import json
import ssl
import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest

from tests.e2e import sessions
from tests.e2e.attacker import eventually
from tests.e2e.outside import Answer, Login
from tests.e2e.sessions import MFA, PHR, SHELL, Person, claims
from tests.e2e.threats.access.conftest import Stage, no_token
from tests.e2e.threats.access.stops import STEPS, stopped

pytestmark = pytest.mark.e2e

End = Callable[[Stage, Person, str], Awaitable[None]]


async def sign_out(_: Stage, person: Person, role: str) -> None:
    assert (await person.browser.call("DELETE", "/v1/auth/whoami")).status == 204


async def sign_out_everywhere(_: Stage, person: Person, role: str) -> None:
    assert (await person.browser.call("POST", "/v1/auth/sign-out/global")).status == 204


async def lose_the_role(stage: Stage, _: Person, role: str) -> None:
    removed = await stage.story.operator.call("DELETE", f"/v1/authz/relation-tuples/{role}")
    assert removed.status == 204, removed.body


ENDS: dict[str, End] = {
    "sign-out": sign_out, "sign-out everywhere": sign_out_everywhere, "the role": lose_the_role,
}  # fmt: skip


async def somebody(stage: Stage) -> tuple[Person, str]:
    """Let somebody sign in; returns them with their role's id."""
    person = await stage.person(relation="")
    return person, await sessions.give(stage.story, person)


async def held_back(stage: Stage, person: Person, between: Awaitable[None]) -> tuple[int, bytes]:
    """Ask for a session with a body that ends only after something else was done."""
    body = json.dumps({"resource_id": stage.resources[0], "kind": "ssh", "target": SHELL}).encode()
    site = urlsplit(stage.world.edge_url)
    trust = ssl.create_default_context(cafile=stage.world.ca_file)
    reader, writer = await asyncio.open_connection(site.hostname, site.port, ssl=trust)
    head = (
        f"POST /v1/projects/{stage.story.project_id}/sessions HTTP/1.1\r\nHost: {site.netloc}\r\n"
        f"Authorization: {person.edge.caller['Authorization']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body[:-1])
    await writer.drain()
    # Long enough for whoever asks early.
    await asyncio.sleep(0.3)
    await between
    writer.write(body[-1:])
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), answer


@pytest.mark.parametrize("name", ENDS)
async def test_a_body_that_is_held_back_until_the_right_ended_issues_nothing(stage: Stage, name: str) -> None:
    person, role = await somebody(stage)
    async with stage.nothing_issued():
        status, answer = await held_back(stage, person, ENDS[name](stage, person, role))
        assert status in {401, 403}, answer
        assert b"eyJ" not in answer


async def test_a_body_that_is_held_back_otherwise_is_a_body(stage: Stage) -> None:
    # Else the attack above could fail for its form.
    person, _ = await somebody(stage)
    status, answer = await held_back(stage, person, asyncio.sleep(0))
    assert status == 201, answer


@pytest.mark.parametrize("name", ENDS)
async def test_what_is_issued_while_the_right_ends_ends_with_it(stage: Stage, name: str) -> None:
    person, role = await somebody(stage)
    asking = [asyncio.create_task(stage.issue(person.edge)) for _ in range(6)]
    await ENDS[name](stage, person, role)
    # Once it was answered nothing more is issued, whatever the edge remembers.
    late = await stage.issue(person.edge)
    assert late.status in {401, 403}, late.body
    no_token(late)
    issued = [answer.json["session_id"] for answer in await asyncio.gather(*asking) if answer.status == 201]

    async def over() -> bool:
        sql = "SELECT count(*) FROM access.sessions WHERE id::text = ANY ($1) AND revoked_at IS NULL"
        return not await stage.dba.fetchval(sql, issued)

    await eventually(over, 5)
    for session_id in issued:
        assert str(await stage.report(session_id)) == "409 session_already_revoked"
    await stage.consistent()


@pytest.mark.parametrize("step", [name for name, at in STEPS.items() if at.frozen != "spicedb"])
async def test_who_hangs_up_gets_the_session_at_the_next_try(stage: Stage, step: str) -> None:
    at, person, key = STEPS[step], await stage.person(), str(uuid.uuid4())
    before, granted = await stage.traces(), set(await stage.granted())
    async with stopped(stage.world, at, person.subject, finishes=True):
        attempt = asyncio.create_task(stage.issue(person.edge, idempotency_key=key))
        await asyncio.sleep(0.5)
        attempt.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await attempt
    answers: list[Answer] = []

    async def answered() -> bool:
        answers.append(await stage.issue(person.edge, idempotency_key=key))
        return str(answers[-1]) != "409 idempotent_replay"

    await eventually(answered, 5)
    assert answers[-1].status == 201, answers[-1].body
    session_id = (await claims(stage.story, answers[-1].json["token"]))["jti"]
    after = await stage.traces()
    assert set(after.sessions) - set(before.sessions) == {session_id}
    assert after.places == 0
    await stage.consistent()
    assert session_id in set(await stage.granted()) - granted


async def test_requests_at_the_same_time_do_not_get_each_others_answers(stage: Stage) -> None:
    """Who asks together is decided about together, and each for himself."""
    weak, stale = Login("", MFA, ("hwk",)), Login("", PHR, ("hwk",), 400)
    people = {
        "201": [await stage.person() for _ in range(3)],
        "acr_insufficient": [await stage.person(weak)],
        "auth_time_stale": [await stage.person(stale)],
        "out_of_scope": [await stage.person(relation="")],
        "insufficient_relation": [await stage.person(relation="viewer")],
    }
    asked = [
        (
            said,
            person,
            stage.resources[turn % 2],
            {"ssh": {"user": f"user-{number}-{turn}", "allowed_commands": ["id"]}},
        )
        for turn in range(6)
        for said, several in people.items()
        for number, person in enumerate(several)
    ]
    answers = await asyncio.gather(
        *(stage.issue(one.edge, resource_id=where, target=target) for _, one, where, target in asked)
    )
    for (said, person, where, target), answer in zip(asked, answers, strict=True):
        row = await stage.row(answer)
        if said == "201":
            assert answer.status == 201, answer.body
            found = await claims(stage.story, answer.json["token"])
            assert (found["sub"], found["resource_id"], found["target"]) == (person.subject, where, target)
            assert row["context"]["session"] == ["ssh", found["jti"]]
            continue
        no_token(answer)
        assert said in {row["reason"], *row["context"].get("step_up", ())}
    issued = [answer for answer in answers if answer.status == 201]
    after = await stage.traces()
    assert set(after.sessions) - set(stage.before.sessions) == {answer.json["session_id"] for answer in issued}
    await stage.consistent()
    for (_, person, where, _), answer in zip(asked, answers, strict=True):
        if answer.status == 201 and where == stage.resources[1]:
            await stage.revoke(person.edge, answer)
