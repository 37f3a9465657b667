"""id_token claims: each refusal is a one-line mutation of a valid token, named by its reason."""

from dataclasses import replace
from typing import Any

import pytest

from services.identity.id_token import Expected, TokenRefused, validate
from services.identity.tests.id_tokens import CLIENT, ISSUER, KEYS, NOW, WANT, literally, token

pytestmark = pytest.mark.unit

HUGE = 10**400
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "wrong issuer": ({"iss": "https://evil.example"}, "iss"),
    "issuer with a slash more": ({"iss": ISSUER + "/"}, "iss"),
    "missing issuer": ({"iss": ...}, "iss_missing"),
    "issuer that is null": ({"iss": None}, "iss_missing"),
    "issuer that is a list": ({"iss": [ISSUER]}, "iss_form"),
    "missing subject": ({"sub": ...}, "sub_missing"),
    "subject that is no text": ({"sub": 7}, "sub_form"),
    "empty subject": ({"sub": ""}, "sub_form"),
    "subject with NUL": ({"sub": "a\x00"}, "sub_form"),
    "nonce without an encoding": ({"nonce": "\ud800"}, "nonce_form"),
    "subject beyond ASCII": ({"sub": "\u0430lice"}, "sub_form"),
    "subject too long": ({"sub": "a" * 256}, "sub_form"),
    "wrong audience": ({"aud": "other"}, "aud"),
    "missing audience": ({"aud": ...}, "aud_missing"),
    "audience of nobody": ({"aud": []}, "aud_form"),
    "audience with a number": ({"aud": [CLIENT, 7]}, "aud_form"),
    "audience that only begins as ours": ({"aud": CLIENT + "x"}, "aud"),
    "several audiences without azp": ({"aud": [CLIENT, "other"]}, "azp_missing"),
    "several audiences, another azp": ({"aud": [CLIENT, "other"], "azp": "other"}, "azp"),
    "several audiences, our azp": ({"aud": [CLIENT, "other"], "azp": CLIENT}, "aud_untrusted"),
    "another azp": ({"azp": "other"}, "azp"),
    "azp that is a list": ({"azp": [CLIENT]}, "azp_form"),
    "expired": ({"exp": NOW - 31}, "exp"),
    "expired at the leeway": ({"exp": NOW - 30}, "exp"),
    "missing expiry": ({"exp": ...}, "exp_missing"),
    "expiry that is no number": ({"exp": "soon"}, "exp_form"),
    "expiry that is true": ({"exp": True}, "exp_form"),
    "expiry of 400 digits": ({"exp": HUGE}, "exp_form"),
    "expiry below all numbers": ({"exp": -HUGE}, "exp_form"),
    "not yet valid": ({"nbf": NOW + 31}, "nbf"),
    "start that is no number": ({"nbf": "now"}, "nbf_form"),
    "issued in the future": ({"iat": NOW + 31}, "iat"),
    "missing issue time": ({"iat": ...}, "iat_missing"),
    "issue time that is no number": ({"iat": []}, "iat_form"),
    "wrong nonce": ({"nonce": "other"}, "nonce"),
    "missing nonce": ({"nonce": ...}, "nonce_missing"),
    "nonce that is no text": ({"nonce": 7}, "nonce_form"),
    "wrong at_hash": ({"at_hash": "other"}, "at_hash"),
    "at_hash that is no text": ({"at_hash": 7}, "at_hash_form"),
    "login at a time below zero": ({"auth_time": -1}, "auth_time_form"),
    "login at a time that is no number": ({"auth_time": "now"}, "auth_time_form"),
    "login in the future": ({"auth_time": NOW + 31}, "auth_time_future"),
    "class that is no text": ({"acr": ["urn:mfa"]}, "acr_form"),
    "class with NUL": ({"acr": "urn:mfa\x00"}, "acr_form"),
    "methods in one text": ({"amr": "otp"}, "amr_form"),
    "methods that are lists": ({"amr": [["otp"]]}, "amr_form"),
    "more methods than there are": ({"amr": ["otp"] * 17}, "amr_form"),
    "logout token": ({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, "events"),
    "access token without a nonce": ({"nonce": ..., "scope": "openid", "client_id": CLIENT}, "nonce_missing"),
}


def reason_of(claims: dict[str, Any], want: Expected = WANT) -> str:
    with pytest.raises(TokenRefused) as refused:
        validate(token(claims), KEYS, want)
    return refused.value.reason


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_with_one_thing_wrong_is_refused_with_its_reason(name: str) -> None:
    claims, reason = REFUSED[name]
    assert reason_of(claims) == reason


@pytest.mark.parametrize(("name", "literal"), [("exp", "1e400"), ("auth_time", "-1e400"), ("iat", "1" * 400)])
def test_numbers_that_python_makes_infinite_are_no_times(name: str, literal: str) -> None:
    with pytest.raises(TokenRefused, match=f"{name}_form"):
        validate(token(payload=literally(name, literal)), KEYS, WANT)


def test_a_valid_token_says_how_somebody_signed_in() -> None:
    claims, login = validate(token(), KEYS, WANT)
    assert (claims["sub"], login.acr, login.amr, login.auth_time) == ("alice", "urn:mfa", ("pwd", "otp"), NOW - 10)


def test_what_a_token_leaves_out_or_calls_null_is_unknown() -> None:
    for nothing in (..., None):
        _, login = validate(token(dict.fromkeys(("acr", "amr", "auth_time", "at_hash"), nothing)), KEYS, WANT)
        assert (login.acr, login.amr, login.auth_time) == ("", (), None)


@pytest.mark.parametrize("leeway_s", [0, 30, 60])
def test_the_leeway_ends_to_the_second(leeway_s: int) -> None:
    want = replace(WANT, leeway_s=leeway_s)
    for inside in ({"exp": NOW - leeway_s + 1}, {"nbf": NOW + leeway_s}, {"iat": NOW + leeway_s}):
        validate(token(inside), KEYS, want)
    for name, moment in (("exp", NOW - leeway_s), ("nbf", NOW + leeway_s + 1), ("iat", NOW + leeway_s + 1)):
        assert reason_of({name: moment}, want) == name


@pytest.mark.parametrize("leeway_s", [-1, 61])
def test_no_binding_has_a_leeway_over_a_minute(leeway_s: int) -> None:
    with pytest.raises(ValueError, match="leeway"):
        replace(WANT, leeway_s=leeway_s)


@pytest.mark.parametrize(
    ("claims", "want"),
    [
        ({"aud": [CLIENT]}, WANT),
        ({"aud": [CLIENT, CLIENT], "azp": CLIENT}, WANT),
        ({"auth_time": NOW - 60}, replace(WANT, max_age_s=60)),
        ({"acr": "b"}, replace(WANT, required_acr=("a", "b"))),
        ({"amr": ["otp", "pwd", "geo"]}, replace(WANT, required_amr=("pwd", "otp"))),
        ({"amr": ["otp"]}, replace(WANT, accepted_amr=("pwd", "otp"))),
    ],
)
def test_at_the_boundary_it_is_accepted(claims: dict[str, Any], want: Expected) -> None:
    validate(token(claims), KEYS, want)


@pytest.mark.parametrize(
    ("claims", "want", "reason"),
    [
        ({"auth_time": NOW - 61}, replace(WANT, max_age_s=60), "auth_time"),
        ({"auth_time": NOW - 61}, replace(WANT, max_age_s=60, leeway_s=60), "auth_time"),
        ({"auth_time": ...}, replace(WANT, max_age_s=60), "auth_time_missing"),
        ({"acr": "c"}, replace(WANT, required_acr=("a", "b")), "acr"),
        ({"acr": ...}, replace(WANT, required_acr=("a",)), "acr_missing"),
        ({"amr": ["pwd"]}, replace(WANT, required_amr=("pwd", "otp")), "amr"),
        ({"amr": ["pwd", "sms"]}, replace(WANT, accepted_amr=("pwd", "otp")), "amr_accepted"),
        # Who says nothing of the methods says nothing of accepted ones.
        ({"amr": ...}, replace(WANT, accepted_amr=("pwd",)), "amr_accepted"),
        ({"acr": "a"}, replace(WANT, asked_acr=("b",)), "acr_asked"),
        # Asking for less must not lower what the binding demands.
        ({"acr": "a"}, replace(WANT, required_acr=("b",), asked_acr=("a",)), "acr"),
    ],
)
def test_what_was_asked_for_must_come_back(claims: dict[str, Any], want: Expected, reason: str) -> None:
    assert reason_of(claims, want) == reason
