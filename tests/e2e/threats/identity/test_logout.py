"""Signing out at the provider ends what it gave, at once; nobody else can make it do so."""

import json
import time
import uuid
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from joserfc import jws
from joserfc.jwk import RSAKey

from tests.e2e.outside import JSON, Answer, Edge, Login
from tests.e2e.threats.identity.visits import Party, Visit, party

pytestmark = pytest.mark.e2e

__all__ = ["party"]

EVENT = "http://schemas.openid.net/event/backchannel-logout"
SUBJECT = "leaver"


async def gone(edge: Edge) -> float:
    """Return after how many seconds the edge no longer believed the caller."""
    began = time.monotonic()
    while (await edge.call("GET", "/v1/auth/whoami")).status != 401:
        assert time.monotonic() - began < 5
    return time.monotonic() - began


async def signed_in(party: Party, subject: str = SUBJECT) -> tuple[Visit, Edge]:
    visit = await party.visit(Login(subject))
    return visit, party.browser(await visit.finish())


async def test_signing_out_at_the_provider_ends_session_token_and_approval_within_a_second(party: Party) -> None:
    visit, browser = await signed_in(party)
    _, bystander = await signed_in(party)
    token = party.scene.edge.as_bearer(await party.scene.outside.access_token(browser))
    waiting = await party.scene.edge.call("POST", "/v1/auth/device-code", {"client_id": "plexctl"})
    approved = await browser.call("POST", "/v1/auth/device/approve", {"user_code": waiting.json["user_code"]})
    assert approved.status == 200
    for edge in (browser, token):
        # Once before: what the edge remembers of a caller must go as well.
        assert (await edge.call("GET", "/v1/auth/whoami")).status == 200
    await party.leave(visit, party.world.env["PLEX_OIDC_A_ISSUER"])
    assert [await gone(edge) < 1 for edge in (browser, token)] == [True, True]
    poll = {"device_code": waiting.json["device_code"], "client_id": "plexctl"}
    assert (await party.scene.edge.call("POST", "/v1/auth/device-token", poll)).code == "invalid_grant"
    # It was one session of the provider, and not all of the person's.
    assert (await bystander.call("GET", "/v1/auth/whoami")).status == 200


async def test_whoever_signs_out_here_is_led_to_the_provider_and_back(party: Party) -> None:
    visit, browser = await signed_in(party)
    answer = await browser.call("DELETE", "/v1/auth/whoami")
    assert answer.status == 204
    there = answer.headers["X-Plexsphere-Logout-Url"]
    issuer = party.world.env["PLEX_OIDC_A_ISSUER"]
    assert there.startswith(issuer)
    assert await party.leave(visit, issuer, there) == f"{party.scene.edge.url}/"


def provider_key(party: Party, name: str = "oidc-a") -> RSAKey:
    """Return the real provider's key: whoever has it can say what the provider would not."""
    keys = json.loads((party.world.state / f"secrets/{name}.jwks.json").read_text())["keys"]
    return RSAKey.import_key(keys[0])


def logout_token(party: Party, key: RSAKey | None = None, header: JSON | None = None, **changed: object) -> str:
    now = int(time.time())
    plain = {
        "iss": party.world.env["PLEX_OIDC_A_ISSUER"], "aud": party.world.env["PLEX_OIDC_A_CLIENT_ID"], "iat": now,
        "exp": now + 120, "jti": str(uuid.uuid4()), "sub": SUBJECT, "events": {EVENT: {}},
    }  # fmt: skip
    claims = {name: value for name, value in (plain | changed).items() if value is not ...}
    real = provider_key(party)
    head = {"alg": "RS256", "kid": real.kid, "typ": "logout+jwt"} | (header or {})
    return jws.serialize_compact(head, json.dumps(claims).encode(), key or real, algorithms=["RS256"])


async def post(party: Party, token: str) -> Answer:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({"logout_token": token}).encode()
    return await party.scene.edge.call("POST", "/v1/auth/backchannel-logout", body, headers=form)


FORGED: dict[str, tuple[Callable[[Party], str], str]] = {
    "key of the attacker": (lambda party: logout_token(party, RSAKey.generate_key(2048)), "signature"),
    "provider of another Domain": (
        lambda party: logout_token(party, provider_key(party, "oidc-b"), {"kid": provider_key(party, "oidc-b").kid}),
        "kid_unknown",
    ),
    "issuer that nobody believes": (lambda party: logout_token(party, iss="https://evil.example"), "iss_unknown"),
    "audience of another client": (lambda party: logout_token(party, aud="another"), "aud"),
    "id_token in its place": (
        lambda party: logout_token(party, header={"typ": "JWT"}, events=..., nonce="n"),
        "events",
    ),
    "access token in its place": (lambda party: logout_token(party, header={"typ": "at+jwt"}), "typ"),
    "nonce inside": (lambda party: logout_token(party, nonce="n"), "nonce"),
    "no events": (lambda party: logout_token(party, events=...), "events"),
    "expired": (lambda party: logout_token(party, exp=int(time.time()) - 60), "exp"),
    "from the future": (lambda party: logout_token(party, iat=int(time.time()) + 120), "iat"),
    "no id of its own": (lambda party: logout_token(party, jti=...), "jti"),
    "nobody named": (lambda party: logout_token(party, sub=...), "sub_sid"),
    "everybody named": (lambda party: logout_token(party, sub=..., sid=""), "sub_sid"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_logout_ends_nothing_and_is_recorded(party: Party, name: str) -> None:
    make, reason = FORGED[name]
    _, browser = await signed_in(party)
    answer = await post(party, make(party))
    assert (str(answer), answer.headers["Cache-Control"]) == ("400 logout_refused", "no-store")
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 200
    # A row stands for a reason and minute; another case may have written it.
    assert await party.reasons(answer) in ([reason], [])
    assert reason in await party.recorded("logout_token")


async def test_a_logout_token_counts_once(party: Party) -> None:
    _, before = await signed_in(party)
    token = logout_token(party)
    accepted = await post(party, token)
    assert (accepted.status, accepted.headers["Cache-Control"]) == (200, "no-store")
    # Each binding to that provider takes it for its own people, and says so once in its own chain.
    rows = await party.rows(accepted)
    assert {row["reason"] for row in rows} == {"granted"}
    assert [row["chain"] for row in rows].count("platform") == 1
    assert await gone(before) < 1
    _, after = await signed_in(party)
    assert str(await post(party, token)) == "400 logout_refused"
    assert (await after.call("GET", "/v1/auth/whoami")).status == 200
    assert "jti_replayed" in await party.recorded("logout_token")


async def test_the_subject_of_one_provider_is_nobody_at_another(party: Party) -> None:
    """A Domain's own provider names a person of the platform: its word is for its own people."""
    _, browser = await signed_in(party)
    key = provider_key(party, "oidc-b")
    issuer = party.world.env["PLEX_OIDC_B_ISSUER"]
    answer = await post(party, logout_token(party, key, {"kid": key.kid}, iss=issuer))
    assert answer.status == 200
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 200
