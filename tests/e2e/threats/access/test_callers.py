"""F-4, F-5: whoever is not a person who has just signed in, whatever else they hold, gets no session."""

import uuid
from collections.abc import Awaitable, Callable

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.outside import JSON, Answer, Edge, Login
from tests.e2e.sessions import PHR, Person
from tests.e2e.threats.access.conftest import Stage, no_token
from tests.e2e.threats.access.test_logins import ACR, AGE, ERROR
from tests.e2e.threats.identity.tenants import made

pytestmark = pytest.mark.e2e

Who = Callable[[Stage], Awaitable[Edge]]
TUPLES = "/v1/authz/relation-tuples"
# A role that a DBA gives to somebody of another Domain.
ROLE_HERE = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
VALUES (gen_random_uuid(), 'project', $1, 'operator', 'user', $2, 'pending')
"""


async def token_of(stage: Stage, person: Person, **more: object) -> Edge:
    wanted = {"identity_ref": f"user:{person.subject}", "env_prefix": "dev", **more}
    return stage.scene.edge.as_bearer((await made(person.edge, "/v1/auth/tokens", wanted))["plaintext"])


async def api_token(stage: Stage) -> Edge:
    """The token of somebody who signed in strongly a moment ago."""
    return await token_of(stage, await stage.person())


async def narrow_token(stage: Stage) -> Edge:
    return await token_of(stage, await stage.person(), scope=["act"], ttl_seconds=600)


async def machine(stage: Stage) -> tuple[JSON, str]:
    """A machine with the role, and its secret."""
    story, operator = stage.story, stage.story.operator
    body = {"display_name": "CI", "subject": uuid.uuid4().hex, "audience": "a", "federation_kind": "api_token"}
    service = await made(operator, f"/v1/domains/{story.domain_id}/service-identities", body)
    given = {"subject": f"service:{service['id']}", "relation": "operator", "resource": f"project:{story.project_id}"}
    await made(operator, f"{TUPLES}?project_id={story.project_id}", given)
    wanted = {"identity_ref": f"service:{service['id']}", "env_prefix": "dev"}
    return service, (await made(operator, "/v1/admin/tokens", wanted))["plaintext"]


async def machines_token(stage: Stage) -> Edge:
    return stage.scene.edge.as_bearer((await machine(stage))[1])


async def service_token(stage: Stage) -> Edge:
    service, secret = await machine(stage)
    body = {"grant_type": "client_credentials", "client_id": service["id"], "client_secret": secret}
    answer = await stage.scene.edge.call("POST", "/v1/auth/service/token", body)
    return stage.scene.edge.as_bearer(answer.json["access_token"])


UNVOUCHED: dict[str, Who] = {
    "API token": api_token, "API token for this alone": narrow_token, "API token of a machine": machines_token,
    "service token": service_token,
}  # fmt: skip


@pytest.mark.parametrize("name", UNVOUCHED)
async def test_a_token_that_lies_in_a_file_always_fails_closed(stage: Stage, name: str) -> None:
    edge = await UNVOUCHED[name](stage)
    async with stage.nothing_issued():
        answer = await stage.issue(edge)
        await stage.refused(answer, "401 step_up_required", session=["ssh"], step_up=["idp_claims"])
        assert answer.headers["WWW-Authenticate"] == ERROR + ACR + AGE


async def test_another_domains_provider_vouches_for_nobody_here(stage: Stage) -> None:
    """Whoever has a role here and signed in there, as strongly as here is asked."""
    elsewhere = stage.scene.story
    theirs = await Person.of(
        stage.scene.outside, elsewhere.domain_id, Login(f"guest-{uuid.uuid4().hex}", PHR, ("hwk",))
    )
    await stage.dba.execute(ROLE_HERE, stage.story.project_id, theirs.subject)
    answers: list[Answer] = []

    async def may_act() -> bool:
        answers.append(await stage.issue(theirs.edge))
        return answers[-1].status != 403

    before = await stage.traces()
    await eventually(may_act)
    await stage.refused(answers[-1], "401 step_up_required", session=["ssh"], step_up=["foreign_provider"])
    assert answers[-1].headers["WWW-Authenticate"] == ERROR
    assert await stage.traces() == before


async def test_what_an_older_login_gave_is_no_stronger_for_the_newer_one(stage: Stage) -> None:
    """The older and the weaker access token, and the older session in the browser, after a step-up beside them."""
    name = f"p-{uuid.uuid4().hex[:12]}"
    older = await stage.person(Login(name, PHR, ("hwk",), 900))
    weaker = await Person.of(stage.scene.outside, stage.story.domain_id, Login(name, "", ("hwk",)))
    newer = await Person.of(stage.scene.outside, stage.story.domain_id, Login(name, PHR, ("hwk",)))
    await stage.granted_once(await stage.issue(newer.edge))
    tries = [(older.edge, "auth_time_stale"), (weaker.edge, "acr_missing")]
    for one, missing in ((older, "auth_time_stale"), (weaker, "acr_missing")):
        # Nor does approving a device move anything.
        token = await stage.scene.outside.access_token(one.browser, domain_id=stage.story.domain_id)
        tries.append((stage.scene.edge.as_bearer(token), missing))
    async with stage.nothing_issued():
        for edge, missing in tries:
            await stage.refused(await stage.issue(edge), "401 step_up_required", session=["ssh"], step_up=[missing])


async def signed_out(stage: Stage) -> Edge:
    person = await stage.person()
    assert (await person.browser.call("DELETE", "/v1/auth/whoami")).status == 204

    async def ended() -> bool:
        return (await person.edge.call("GET", "/v1/auth/whoami")).status == 401

    # For up to a second, until the edge hears of it.
    await eventually(ended, 3)
    return person.edge


async def everywhere_signed_out(stage: Stage) -> Edge:
    person = await stage.person()
    assert (await person.edge.call("POST", "/v1/auth/sign-out/global")).status == 204

    async def ended() -> bool:
        return (await person.edge.call("GET", "/v1/auth/whoami")).status == 401

    await eventually(ended, 3)
    return person.edge


async def node_bearer(stage: Stage) -> Edge:
    return stage.scene.edge.as_bearer(stage.story.node_a.bearer)


async def cookie(stage: Stage) -> Edge:
    return (await stage.person()).browser


async def cookie_as_bearer(stage: Stage) -> Edge:
    return stage.scene.edge.as_bearer((await stage.person()).browser.cookies["plexsphere_session"])


async def session_token(stage: Stage) -> Edge:
    issued = await stage.issue((await stage.person()).edge)
    return stage.scene.edge.as_bearer(issued.json["token"])


UNKNOWN: dict[str, Who] = {
    "after its sign-out": signed_out, "after the sign-out everywhere": everywhere_signed_out,
    "node bearer": node_bearer, "session cookie": cookie, "session cookie as a bearer": cookie_as_bearer,
    "session token": session_token,
}  # fmt: skip
# Anybody can cause it, so one row of a minute stands for it, in the platform's chain.
COUNTED = """
SELECT count(*) FROM audit.entries WHERE context -> 'action' ->> 0 = 'edge.credential_refused'
AND context -> 'credential' ->> 0 = 'unauthenticated' AND context -> 'minute' ->> 0 = ANY ($1)
"""
MINUTE = """SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"')"""


@pytest.mark.parametrize("name", UNKNOWN)
async def test_what_is_no_operators_credential_is_nobodys(stage: Stage, name: str) -> None:
    edge = await UNKNOWN[name](stage)
    async with stage.nothing_issued():
        minutes = {await stage.dba.fetchval(MINUTE)}
        for _turn in range(2):
            answer = await stage.issue(edge)
            assert str(answer) == "401 unauthenticated"
            assert "insufficient_user_authentication" not in answer.headers["WWW-Authenticate"]
            no_token(answer)
        minutes.add(await stage.dba.fetchval(MINUTE))
        rows = await stage.dba.fetchval(COUNTED, list(minutes))
        # Without any credential that is looked at there is nothing to count.
        assert rows in ({0, 1, 2} if name == "session cookie" else {1, len(minutes)})


async def no_role(stage: Stage) -> Edge:
    return (await stage.person(relation="")).edge


async def viewer(stage: Stage) -> Edge:
    return (await stage.person(relation="viewer")).edge


async def beyond_scope(stage: Stage) -> Edge:
    return await token_of(stage, await stage.person(), scope=["read"], ttl_seconds=600)


UNRELATED: dict[str, tuple[Who, str]] = {
    "no role": (no_role, "out_of_scope"), "only a viewer": (viewer, "insufficient_relation"),
    "a token for reading": (beyond_scope, "insufficient_relation"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNRELATED)
async def test_without_the_relation_nobody_hears_of_step_up(stage: Stage, name: str) -> None:
    who, reason = UNRELATED[name]
    edge = await who(stage)
    async with stage.nothing_issued():
        answer = await stage.issue(edge)
        await stage.refused(answer, "403 permission_denied", reason, session=["ssh"], step_up=None)
        assert (answer.json["reason"], "WWW-Authenticate" in answer.headers) == (reason, False)


async def test_a_resource_that_is_not_there_is_as_one_that_is_not_ones_own(stage: Stage) -> None:
    person = await stage.person(relation="")
    async with stage.nothing_issued():
        answers = [await stage.issue(person.edge, resource_id=one) for one in (stage.resources[0], str(uuid.uuid4()))]
        bodies = [answer.json | {"correlation_id": ""} for answer in answers]
        assert bodies[0] == bodies[1]
        assert [(await stage.row(answer))["reason"] for answer in answers] == ["out_of_scope"] * 2
