"""F-3 over the wire, what a token says: each attack is one change of a genuine token, signed as the provider signs."""

import pytest

from tests.e2e.outside import JSON
from tests.e2e.threats.identity.conftest import Case, Ring

pytestmark = pytest.mark.e2e

LOGOUT: JSON = {"http://schemas.openid.net/event/backchannel-logout": {}}
# The proxy signs a moment before identity looks at its clock. The second itself is tested with a clock that stands
# (services/identity/tests/test_id_token.py); here what is young stays young enough, and what is old gets older.
TIME = {
    "expired": Case("exp", lambda g: g.says(exp=g.now - 3600)),
    "expired just beyond the leeway": Case("exp", lambda g: g.says(exp=g.now - 31)),
    "expired within the leeway": Case("", lambda g: g.says(exp=g.now - 20)),
    "without an expiry": Case("exp_missing", lambda g: g.says(exp=...)),
    "an expiry that is a text": Case("exp_form", lambda g: g.says(exp=str(g.now + 300))),
    "an expiry of 400 digits": Case("exp_form", lambda g: g.says(exp=10**400)),
    "early": Case("nbf", lambda g: g.says(nbf=g.now + 3600)),
    "early beyond the leeway": Case("nbf", lambda g: g.says(nbf=g.now + 40)),
    "early within the leeway": Case("", lambda g: g.says(nbf=g.now + 29)),
    "a start that is a list": Case("nbf_form", lambda g: g.says(nbf=[g.now])),
    "issued in the future": Case("iat", lambda g: g.says(iat=g.now + 3600)),
    "issued beyond the leeway": Case("iat", lambda g: g.says(iat=g.now + 40)),
    "issued within the leeway": Case("", lambda g: g.says(iat=g.now + 29)),
    "without an issue time": Case("iat_missing", lambda g: g.says(iat=...)),
    "an issue time that is true": Case("iat_form", lambda g: g.says(iat=True)),
    "a login in the future": Case("auth_time_future", lambda g: g.says(auth_time=g.now + 3600)),
    "a login before all time": Case("auth_time_form", lambda g: g.says(auth_time=-1)),
    # 61 s and 89 s are within a leeway of 30 s of the age; it must not count here.
    "a login just older than asked for": Case(
        "auth_time", lambda g: g.says(auth_time=g.now - 61), sign_in={"max_age": 60}
    ),
    "a login older by less than the leeway": Case(
        "auth_time", lambda g: g.says(auth_time=g.now - 89), sign_in={"max_age": 60}
    ),
    "a login as young as asked for": Case("", lambda g: g.says(auth_time=g.now - 50), sign_in={"max_age": 60}),
    "no login time though an age was asked for": Case(
        "auth_time_missing", lambda g: g.says(auth_time=...), sign_in={"max_age": 60}
    ),
}
PARTIES = {
    "another issuer": Case("iss", lambda g: g.says(iss="https://evil.example")),
    "the issuer with a slash more": Case("iss", lambda g: g.says(iss=g.claims["iss"] + "/")),
    "without an issuer": Case("iss_missing", lambda g: g.says(iss=...)),
    "a list of issuers": Case("iss_form", lambda g: g.says(iss=[g.claims["iss"]])),
    "another audience": Case("aud", lambda g: g.says(aud="other-client")),
    "without an audience": Case("aud_missing", lambda g: g.says(aud=...)),
    "an empty audience": Case("aud_form", lambda g: g.says(aud=[])),
    "several audiences without azp": Case("azp_missing", lambda g: g.says(aud=[g.claims["aud"], "other"])),
    "several audiences, another azp": Case("azp", lambda g: g.says(aud=[g.claims["aud"], "other"], azp="other")),
    "several audiences, our azp": Case(
        "aud_untrusted", lambda g: g.says(aud=[g.claims["aud"], "other"], azp=g.claims["aud"])
    ),
    "one audience, another azp": Case("azp", lambda g: g.says(azp="other")),
    "one audience in a list, our azp": Case("", lambda g: g.says(aud=[g.claims["aud"]], azp=g.claims["aud"])),
    "without a subject": Case("sub_missing", lambda g: g.says(sub=...)),
    "a subject with NUL": Case("sub_form", lambda g: g.says(sub="ada\x00")),
    "a subject in another alphabet": Case("sub_form", lambda g: g.says(sub="\u0430da")),
    "another nonce": Case("nonce", lambda g: g.says(nonce="n-0S6_WzA2Mj")),
    "without a nonce": Case("nonce_missing", lambda g: g.says(nonce=...)),
    "a nonce that is a number": Case("nonce_form", lambda g: g.says(nonce=7)),
    "the hash of another access token": Case("at_hash", lambda g: g.says(at_hash="MTIzNDU2Nzg5MDEyMzQ1Ng")),
}
KINDS = {
    "an access token (RFC 9068)": Case("typ", lambda g: g.headed(typ="at+jwt")),
    "a logout token": Case("typ", lambda g: g.signed(g.key, {"typ": "logout+jwt"}, events=LOGOUT, nonce=...)),
    "a logout token that calls itself JWT": Case("events", lambda g: g.says(events=LOGOUT)),
    "an access token that calls itself JWT": Case(
        "nonce_missing", lambda g: g.signed(g.key, {"typ": "JWT"}, nonce=..., scope="openid", jti="1")
    ),
    "a session token of ours": Case("typ", lambda g: g.headed(typ="plexsphere-session+jwt")),
    "the opaque access token itself": Case("segments", lambda g: g.answer["access_token"]),
    "no token": Case("id_token_missing", lambda _: None),
    "a list of tokens": Case("id_token_missing", lambda g: [g.token]),
    "a token that says typ JWT": Case("", lambda g: g.headed(typ="JWT")),
    "a class below what was asked for": Case(
        "acr_asked", lambda g: g.says(acr="urn:plexsphere:acr:pwd"), sign_in={"acr_values": ["urn:plexsphere:acr:mfa"]}
    ),
    "no class though one was asked for": Case(
        "acr_missing", lambda g: g.says(acr=...), sign_in={"acr_values": ["urn:plexsphere:acr:mfa"]}
    ),
    "a class that is a list": Case("acr_form", lambda g: g.says(acr=["urn:plexsphere:acr:mfa"])),
    "methods in one text": Case("amr_form", lambda g: g.says(amr="pwd otp")),
}


@pytest.mark.parametrize("name", TIME)
async def test_a_time_is_held_against_the_clock(ring: Ring, name: str) -> None:
    await ring.attempt(await ring.bound("time"), TIME[name])


@pytest.mark.parametrize("name", PARTIES)
async def test_a_token_is_from_our_provider_for_us_and_for_this_sign_in(ring: Ring, name: str) -> None:
    await ring.attempt(await ring.bound("parties"), PARTIES[name])


async def test_the_issuer_of_another_binding_is_another_issuer(ring: Ring) -> None:
    bound, other = await ring.bound("parties"), await ring.bound("another Domain")
    # The same provider, client and key.
    await ring.attempt(bound, Case("iss", lambda g: g.says(iss=ring.hostile.issuer)))
    await ring.attempt(bound, Case("iss", lambda g: g.says(iss=other.door.url)))


@pytest.mark.parametrize("name", KINDS)
async def test_another_kind_of_token_is_no_id_token(ring: Ring, name: str) -> None:
    await ring.attempt(await ring.bound("kinds"), KINDS[name])
