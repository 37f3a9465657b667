"""F-4, F-5: what a provider says of a login, one wrong thing at a time, and what its limits are to the moment."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from tests.e2e.outside import JSON, Answer, Login
from tests.e2e.sessions import MFA, PHR, claims, put_policy
from tests.e2e.threats.access.conftest import POLICY, STRONG, Stage

pytestmark = pytest.mark.e2e

HWK = ("hwk",)
ERROR = 'Bearer error="insufficient_user_authentication"'
ACR, AGE = f', acr_values="{PHR}"', ', max_age="300"'


@dataclass(frozen=True)
class Case:
    """A login that is not enough: what the row names, and what the challenge asks for."""

    login: Login
    names: list[str]
    challenge: str
    policy: JSON = field(default_factory=dict)


CASES = {
    "missing acr": Case(Login("", "", HWK), ["acr_missing"], ACR),
    "wrong acr class": Case(Login("", MFA, HWK), ["acr_insufficient"], ACR),
    "acr that only begins like it": Case(Login("", PHR[:-1], HWK), ["acr_insufficient"], ACR),
    "acr that only ends otherwise": Case(Login("", PHR + "x", HWK), ["acr_insufficient"], ACR),
    "acr in capitals": Case(Login("", PHR.upper(), HWK), ["acr_insufficient"], ACR),
    "acr with another beside it": Case(Login("", f"{PHR} {MFA}", HWK), ["acr_insufficient"], ACR),
    "acr with an empty list of methods": Case(Login("", PHR), ["amr_missing"], ""),
    "another method": Case(Login("", PHR, ("otp", "pwd")), ["amr_missing"], ""),
    "one of two methods": Case(STRONG, ["amr_missing"], "", {"required_amr": ["hwk", "user"]}),
    "amr only": Case(Login("", "", ("hwk", "mfa", PHR)), ["acr_missing"], ACR),
    "stale auth_time": Case(Login("", PHR, HWK, 3600), ["auth_time_stale"], AGE),
    "auth_time one second past": Case(Login("", PHR, HWK, 301), ["auth_time_stale"], AGE),
    "auth_time of 1970": Case(Login("", PHR, HWK, int(time.time()) - 1), ["auth_time_stale"], AGE),
    "a clock ahead beyond the skew": Case(Login("", PHR, HWK, -25), ["auth_time_future"], AGE),
    "all at once": Case(Login("", "", (), 3600), ["acr_missing", "auth_time_stale", "amr_missing"], ACR + AGE),
    "a kind that asks for a fresher login": Case(
        Login("", PHR, HWK, 90), ["auth_time_stale"], ', max_age="60"',
        {"kinds": {"ssh": {"max_auth_age_seconds": 60}}},
    ),
    "a kind that asks for one more method": Case(
        STRONG, ["amr_missing"], "", {"kinds": {"ssh": {"required_amr": ["user"]}}}
    ),
    "nobody said what strong is": Case(STRONG, ["acr_unconfigured"], "", {"required_acr": []}),
}  # fmt: skip


async def refuses(stage: Stage, answer: Answer, names: list[str], challenge: str) -> None:
    """See a login refused: the row names what is missing, and the client is told what helps."""
    await stage.refused(answer, "401 step_up_required", session=["ssh"], step_up=names)
    assert answer.headers["WWW-Authenticate"] == ERROR + challenge


@pytest.mark.parametrize("name", CASES)
async def test_a_login_that_is_not_enough_issues_nothing(stage: Stage, name: str) -> None:
    case = CASES[name]
    await stage.policy(**case.policy)
    person = await stage.person(case.login)
    async with stage.nothing_issued():
        await refuses(stage, await stage.issue(person.edge), case.names, case.challenge)


async def test_without_a_policy_the_platforms_default_holds(stage: Stage) -> None:
    person = await stage.person(Login("", PHR, HWK, 301))
    await stage.dba.execute("DELETE FROM identity.access_policies WHERE domain_id = $1", stage.story.domain_id)
    async with stage.nothing_issued():
        await refuses(stage, await stage.issue(person.edge), ["acr_unconfigured", "auth_time_stale"], AGE)


@pytest.mark.parametrize("ahead_s", [0, 4], ids=["now", "a clock ahead within the skew"])
async def test_a_login_that_is_enough_is_issued_its_session(stage: Stage, ahead_s: int) -> None:
    # Else the table could pass because nobody gets anything.
    person = await stage.person(Login("", PHR, HWK, -ahead_s))
    async with stage.listen() as node:
        session_id = await stage.granted_once(await stage.issue(person.edge))
        assert (await node.hears("session_setup")).envelope["payload"]["session_id"] == session_id


async def test_a_clock_far_ahead_does_not_even_sign_in(stage: Stage) -> None:
    with pytest.raises(AssertionError, match="auth_error"):
        await stage.person(Login("", PHR, HWK, -90))


async def test_the_challenge_followed_to_the_letter_gets_through(stage: Stage) -> None:
    person = await stage.person(Login("", MFA, HWK, 3600))
    async with stage.nothing_issued():
        refused = await stage.issue(person.edge)
        await refuses(stage, refused, ["acr_insufficient", "auth_time_stale"], ACR + AGE)
    # The provider says of the new login what is true of it, and the challenge says what is asked for.
    stepped_up = await person.step_up(refused, STRONG)
    await stage.granted_once(await stage.issue(stepped_up.edge))
    # What the older login gave keeps its old claims.
    async with stage.nothing_issued():
        await refuses(stage, await stage.issue(person.edge), ["acr_insufficient", "auth_time_stale"], ACR + AGE)


async def test_a_policy_that_was_tightened_since_the_step_up_holds_at_once(stage: Stage) -> None:
    person = await stage.person(Login("", PHR, HWK, 30))
    await stage.granted_once(await stage.issue(person.edge))
    tighter = {
        "required_amr": (["hwk", "user"], ["amr_missing"], ""),
        "required_acr": (["urn:other"], ["acr_insufficient"], ', acr_values="urn:other"'),
        "max_auth_age_seconds": (20, ["auth_time_stale"], ', max_age="20"'),
    }
    for member, (value, names, challenge) in tighter.items():
        put = await put_policy(stage.story, **(POLICY | {member: value}))
        assert put.status == 200, put.body
        async with stage.nothing_issued():
            await refuses(stage, await stage.issue(person.edge), names, challenge)


async def test_the_limit_of_age_is_kept_to_the_moment(stage: Stage) -> None:
    """One second inside, all around the limit, and one second past: fresh up to and including it, and no leeway."""
    person = await stage.person(Login("", PHR, HWK, 100))
    first = await stage.issue(person.edge)
    auth_time = int((await claims(stage.story, first.json["token"]))["auth_time"])
    limit = int(time.time()) + 4 - auth_time
    await stage.policy(max_auth_age_seconds=limit)
    ends = auth_time + limit
    answers: list[Answer] = []

    async def ask(at: float) -> None:
        await asyncio.sleep(at - time.time())
        answers.append(await stage.issue(person.edge))

    # Ten: of the same refusal no more have a row in a minute.
    await asyncio.gather(*(ask(ends + offset) for offset in (-1, -0.3, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 1)))
    moments: dict[bool, list[float]] = {True: [], False: []}
    for answer in answers:
        if answer.status == 201:
            issued = "SELECT issued_at FROM access.sessions WHERE id::text = $1"
            moments[True].append((await stage.dba.fetchval(issued, answer.json["session_id"])).timestamp())
        else:
            await refuses(stage, answer, ["auth_time_stale"], f', max_age="{limit}"')
            moments[False].append((await stage.row(answer))["occurred_at"].timestamp())
    assert max(moments[True]) <= ends < min(moments[False])
    assert ends - max(moments[True]) < 1.2, "no answer was near the limit"
    assert min(moments[False]) - ends < 1.2, "no refusal was near the limit"
