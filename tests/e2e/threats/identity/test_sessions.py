"""A session in a browser: what a page of another site cannot do with it, how long it lasts, and what ends with it."""

import datetime
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.e2e.outside import Edge, Login
from tests.e2e.threats.identity.visits import Party, party

pytestmark = pytest.mark.e2e

__all__ = ["party"]

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def dba(party: Party) -> AsyncIterator[asyncpg.Connection]:
    connection = await party.world.superuser()
    yield connection
    await connection.close()


async def signed_in(party: Party, subject: str) -> Edge:
    return party.browser(await (await party.visit(Login(subject))).finish())


async def live(edge: Edge) -> bool:
    return (await edge.call("GET", "/v1/auth/whoami")).status == 200


async def over(edge: Edge) -> bool:
    """Whether the edge stops believing a caller within a second; it may remember one until it hears of the end."""
    began = time.monotonic()
    while await live(edge):
        if time.monotonic() - began > 1:
            return False
    return True


def bare(browser: Edge) -> dict[str, str]:
    """Return the cookies of a browser as a header of a page that adds nothing itself."""
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}


FORGED: dict[str, tuple[dict[str, str], str]] = {
    "no token": ({"Origin": "edge"}, "csrf_token_mismatch"),
    "another token": ({"Origin": "edge", "X-Plexsphere-CSRF": "x"}, "csrf_token_mismatch"),
    "no origin": ({"X-Plexsphere-CSRF": "own"}, "csrf_origin_mismatch"),
    "another origin": ({"X-Plexsphere-CSRF": "own", "Origin": "https://evil.example"}, "csrf_origin_mismatch"),
    "origin of a sandbox": ({"X-Plexsphere-CSRF": "own", "Origin": "null"}, "csrf_origin_mismatch"),
    "page of a neighbour": ({"X-Plexsphere-CSRF": "own", "Sec-Fetch-Site": "same-site"}, "csrf_origin_mismatch"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_page_of_another_site_changes_nothing(party: Party, name: str) -> None:
    wanted, code = FORGED[name]
    browser = await signed_in(party, "surfer")
    own = {"edge": party.scene.edge.url, "own": browser.cookies["plexsphere_csrf"]}
    headers = {**bare(browser), **{header: own.get(value, value) for header, value in wanted.items()}}
    answer = await party.scene.edge.call("POST", "/v1/auth/sign-out/global", headers=headers)
    assert str(answer) == f"403 {code}"
    assert answer.json["reason"] == "caveat_violation"
    assert await live(browser)


async def test_our_own_page_is_told_by_fetch_metadata_and_reading_needs_nothing(party: Party) -> None:
    browser = await signed_in(party, "surfer")
    headers = {**bare(browser), "X-Plexsphere-CSRF": browser.cookies["plexsphere_csrf"], **SAME_ORIGIN}
    assert (await party.scene.edge.call("GET", "/v1/auth/whoami", headers=bare(browser))).status == 200
    assert (await party.scene.edge.call("POST", "/v1/auth/sign-out/global", headers=headers)).status == 204
    assert await over(browser)


async def test_a_bearer_needs_no_token_of_a_page(party: Party) -> None:
    token = await party.scene.outside.access_token(await signed_in(party, "surfer"))
    bearer = party.scene.edge.as_bearer(token)
    answer = await bearer.call("POST", "/v1/auth/sign-out/global", headers={"Origin": "https://evil.example"})
    assert answer.status == 204
    assert await over(bearer)


async def test_without_allowed_origins_no_cookie_changes_anything(party: Party) -> None:
    browser = await signed_in(party, "surfer")
    before = party.world.config("gateway")
    await party.world.restart("gateway", re.sub(r"(?m)^allowed_origins = .*$", "allowed_origins = []", before))
    try:
        answer = await browser.call("POST", "/v1/auth/sign-out/global", headers=SAME_ORIGIN)
    finally:
        await party.world.restart("gateway", before)
    assert str(answer) == "403 csrf_origin_not_configured"


async def test_signing_out_everywhere_takes_sessions_tokens_and_approvals(party: Party) -> None:
    one, other = await signed_in(party, "nomad"), await signed_in(party, "nomad")
    bystander = await signed_in(party, "bystander")
    token = party.scene.edge.as_bearer(await party.scene.outside.access_token(one))
    waiting = await party.scene.edge.call("POST", "/v1/auth/device-code", {"client_id": "plexctl"})
    approved = await other.call("POST", "/v1/auth/device/approve", {"user_code": waiting.json["user_code"]})
    assert approved.status == 200
    assert [await live(edge) for edge in (one, other, token)] == [True] * 3
    done = await one.call("POST", "/v1/auth/sign-out/global")
    assert done.status == 204
    assert [row["context"]["action"] for row in await party.rows(done)] == [["session.sign_out_everywhere"]]
    assert [await over(edge) for edge in (one, other, token)] == [True] * 3
    assert await live(bystander)
    poll = {"device_code": waiting.json["device_code"], "client_id": "plexctl"}
    assert (await party.scene.edge.call("POST", "/v1/auth/device-token", poll)).code == "invalid_grant"


AGES: dict[str, tuple[str, bool]] = {
    "idle for 29 minutes": ("last_seen_at = now() - interval '29 minutes'", True),
    "idle for 30 minutes": ("last_seen_at = now() - interval '30 minutes'", False),
    "at its end": ("expires_at = now()", False),
}


@pytest.mark.parametrize("name", AGES)
async def test_a_session_ends_by_itself(party: Party, dba: asyncpg.Connection, name: str) -> None:
    change, is_live = AGES[name]
    subject = f"sleeper-{name.replace(' ', '-')}"
    browser = await signed_in(party, subject)
    whose = "identity_id = (SELECT id FROM identity.identities WHERE subject = $1)"
    row = await dba.fetchrow(f"SELECT created_at, expires_at, digest FROM identity.sessions WHERE {whose}", subject)
    assert row is not None
    lifetime = row["expires_at"] - row["created_at"]
    assert datetime.timedelta(hours=11, minutes=59) < lifetime <= datetime.timedelta(hours=12)
    assert browser.cookies["plexsphere_session"].encode() not in row["digest"]
    await dba.execute(f"UPDATE identity.sessions SET {change} WHERE {whose}", subject)
    assert await live(browser) is is_live


@pytest.mark.parametrize(("path", "status"), [("/device", 200), ("/v1/docs", 400), ("//evil.example", 400)])
async def test_a_sign_in_leads_back_to_listed_places(party: Party, path: str, status: int) -> None:
    answer = await party.scene.edge.call("POST", "/v1/auth/sign-in", {"return_to": path})
    assert answer.status == status
    if status == 200:
        finished = await (await party.visit(return_to=path)).finish(accept="text/html")
        assert (finished.status, finished.headers["Location"]) == (303, path)


async def device(party: Party, **more: Any) -> tuple[str, dict[str, str]]:
    started = await party.scene.edge.call("POST", "/v1/auth/device-code", {"client_id": "plexctl", **more})
    return started.json["user_code"], {"device_code": started.json["device_code"], "client_id": "plexctl"}


async def test_a_person_denies_a_device_and_the_chain_says_so(party: Party) -> None:
    browser = await signed_in(party, "owner")
    user_code, poll = await device(party)
    denied = await browser.call("POST", "/v1/auth/device/deny", {"user_code": user_code})
    assert denied.status == 204
    assert [row["reason"] for row in await party.rows(denied)] == ["granted"]
    assert (await party.scene.edge.call("POST", "/v1/auth/device-token", poll)).code == "access_denied"
    late = await browser.call("POST", "/v1/auth/device/approve", {"user_code": user_code})
    assert str(late) == "404 device_code_not_found"
    assert await party.reasons(late) == ["device_code_not_found"]


async def test_who_approves_sees_who_asks_and_a_stranger_learns_nothing(party: Party) -> None:
    browser = await signed_in(party, "owner")
    started = await party.scene.edge.call(
        "POST", "/v1/auth/device-code", {"client_id": "cli\u202e<b>", "acr_values": ["urn:none"], "max_age": 60},
        headers={"User-Agent": "Phish/1 <script>" + "x" * 300},
    )  # fmt: skip
    code = {"user_code": started.json["user_code"]}
    seen = await browser.call("POST", "/v1/auth/device/inspect", code)
    told = seen.json
    assert (seen.status, told["client_id"], told["acr_values"], told["max_age"]) == (200, "cli<b>", ["urn:none"], 60)
    assert (told["client_ip"], told["step_up_needed"]) == ("127.0.0.1", True)
    assert told["user_agent"] == ("Phish/1 <script>" + "x" * 300)[:256]
    lasts = datetime.datetime.fromisoformat(told["expires_at"]) - datetime.datetime.fromisoformat(told["asked_at"])
    assert lasts == datetime.timedelta(minutes=10)
    (row,) = await party.rows(seen)
    assert (row["context"]["action"], row["reason"]) == (["device.inspect"], "granted")
    # It is looked at as often as one likes, by somebody who could decide about it; to all others it is no code at all.
    assert (await browser.call("POST", "/v1/auth/device/inspect", code)).json == told
    for wrong in ({"user_code": "AAAA-AAAA"}, await of_a_domain(party)):
        refused = [await browser.call("POST", f"/v1/auth/device/{verb}", wrong) for verb in ("inspect", "approve")]
        bare = [{**answer.json, "instance": "", "correlation_id": ""} for answer in refused]
        assert bare[0] == bare[1]
        assert str(refused[0]) == "404 device_code_not_found"
        assert await party.reasons(refused[0]) == ["device_code_not_found"]


async def of_a_domain(party: Party) -> dict[str, str]:
    user_code, _ = await device(party, domain_id=party.scene.story.domain_id)
    return {"user_code": user_code}


async def test_a_refused_approval_and_an_issued_token_have_their_rows(party: Party) -> None:
    # A login before the device asked is not one since.
    browser = party.browser(await (await party.visit(Login("owner", auth_age_s=30))).finish())
    user_code, _ = await device(party, max_age=0)
    refused = await browser.call("POST", "/v1/auth/device/approve", {"user_code": user_code})
    assert str(refused) == "401 step_up_required"
    assert await party.reasons(refused) == ["step_up_required"]
    user_code, poll = await device(party)
    assert (await browser.call("POST", "/v1/auth/device/approve", {"user_code": user_code})).status == 200
    issued = await party.scene.edge.call("POST", "/v1/auth/device-token", poll)
    assert issued.status == 200
    assert [row["context"]["action"] for row in await party.rows(issued)] == [["access_token.issue"]]


async def test_an_age_of_zero_asks_for_a_login_now(party: Party) -> None:
    assert (await (await party.visit(Login("owner"), max_age=0)).finish()).status == 303
    stale = await (await party.visit(Login("owner", auth_age_s=30), max_age=0)).finish()
    assert str(stale) == "400 sign_in_refused"
    assert await party.reasons(stale) == ["auth_time"]
