"""A sign-in belongs to the browser that started it and to one provider, and it replaces the session that was there."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.outside import Login
from tests.e2e.threats.identity.visits import Party, Visit, party

pytestmark = pytest.mark.e2e

__all__ = ["party"]


async def test_a_sign_in_of_another_browser_is_refused(party: Party) -> None:
    visit = await party.visit(Login("attacker"))
    answer = await visit.finish(own=False)
    assert (str(answer), "Set-Cookie" in answer.headers) == ("400 sign_in_state_invalid", False)
    assert await party.reasons(answer) == ["state_foreign"]
    # The state is used up: its own browser comes too late.
    again = await visit.finish()
    assert str(again) == "400 sign_in_state_invalid"
    assert await party.reasons(again) == ["state_replayed"]


async def test_the_cookie_of_another_sign_in_is_not_its_own(party: Party) -> None:
    mine, theirs = await party.visit(Login("victim")), await party.visit(Login("attacker"))
    theirs.started = mine.started
    answer = await theirs.finish()
    assert str(answer) == "400 sign_in_state_invalid"
    assert await party.reasons(answer) == ["state_foreign"]


async def test_a_browser_is_told_of_a_foreign_state_without_a_cookie(party: Party) -> None:
    answer = await (await party.visit()).finish(own=False, accept="text/html")
    assert answer.status == 303
    assert "auth_error_kind=sign_in_state_invalid&auth_error_status=400" in answer.headers["Location"]
    assert "Set-Cookie" not in answer.headers


async def test_a_replayed_state_has_one_row_however_often_it_comes(party: Party) -> None:
    visit = await party.visit()
    assert (await visit.finish()).status == 303
    answers = [await visit.finish() for _ in range(3)]
    assert {str(answer) for answer in answers} == {"400 sign_in_state_invalid"}
    assert [await party.reasons(answer) for answer in answers] == [["state_replayed"], [], []]


async def test_invented_states_share_rows_of_a_minute(party: Party) -> None:
    visit = await party.visit()
    answers = [await visit.finish(visit.with_query(state=f"invented-{number}")) for number in range(20)]
    assert {str(answer) for answer in answers} == {"400 sign_in_state_invalid"}
    assert sum([len(await party.rows(answer)) for answer in answers]) <= 2


async def test_an_answer_without_a_code_uses_the_state_up(party: Party) -> None:
    visit = await party.visit()
    answer = await visit.finish(visit.with_query(code=""))
    assert str(answer) == "400 sign_in_refused"
    assert await party.reasons(answer) == ["code_missing"]
    assert await party.reasons(await visit.finish()) == ["state_replayed"]


MIXED: dict[str, tuple[Callable[[Visit, Visit, Party], str], str]] = {
    # The code and the issuer of the honest provider, in a sign-in that the other one began.
    "code and issuer of another provider": (lambda mine, _, __: mine.with_query(), "response_iss"),
    "code of another provider without an issuer": (lambda mine, _, __: mine.with_query(iss=""), "response_iss"),
    "code of another provider under the right name": (
        lambda mine, _, party: mine.with_query(iss=party.world.env["PLEX_OIDC_B_ISSUER"]),
        "code_refused",
    ),
    "at the place of a binding that nobody has": (
        lambda mine, _, __: mine.with_query("/v1/auth/callback/0190a000-0000-7000-8000-000000000000", iss=""),
        "response_binding",
    ),
}


@pytest.mark.parametrize("name", MIXED)
async def test_what_one_provider_answered_fits_no_sign_in_at_another(party: Party, name: str) -> None:
    make, reason = MIXED[name]
    mine = await party.visit(Login("victim"))
    theirs = await party.visit(Login("victim"), party.scene.story.domain_id)
    url = make(mine, theirs, party).replace(mine.state, theirs.state)
    answer = await theirs.finish(url)
    assert (answer.status, "Set-Cookie" in answer.headers) == (400, False)
    assert await party.reasons(answer) == [reason]


@pytest.mark.parametrize("more", [{}, {"acr_values": ["urn:plexsphere:acr:mfa"]}], ids=["again", "step-up"])
async def test_a_sign_in_ends_the_session_that_the_browser_had(party: Party, more: Any) -> None:
    login = Login("operator", acr="urn:plexsphere:acr:mfa", amr=("pwd", "otp"))
    before = party.browser(await (await party.visit(login)).finish())
    other = party.browser(await (await party.visit(login)).finish())
    # A browser keeps a strict cookie to itself when it comes back from another site: only the start has it.
    visit = await party.visit(login, browser=before, **more)
    assert (await before.call("GET", "/v1/auth/whoami")).status == 200
    after = party.browser(await visit.finish())

    async def ended() -> bool:
        return (await before.call("GET", "/v1/auth/whoami")).status == 401

    await eventually(ended, 1)
    for alive in (after, other):
        assert (await alive.call("GET", "/v1/auth/whoami")).status == 200
    for name in ("plexsphere_session", "plexsphere_csrf"):
        assert before.cookies[name] != after.cookies[name]
