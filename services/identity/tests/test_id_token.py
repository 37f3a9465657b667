"""id_token validation: each refusal is a one-line mutation of a valid token, named by its reason."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import ECKey, RSAKey

from services.identity.id_token import LONGEST, Expected, TokenRefused, validate

pytestmark = pytest.mark.unit

NOW = 1_776_249_000
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ISSUER, CLIENT, NONCE, ACCESS = "https://op.example", "plexsphere", "n-0S6_WzA2Mj", "access"
WANT = Expected(ISSUER, CLIENT, NONCE, NOW, ACCESS)
AT_HASH = base64.urlsafe_b64encode(hashlib.sha256(ACCESS.encode()).digest()[:16]).decode().rstrip("=")
CLAIMS: dict[str, Any] = {
    "iss": ISSUER, "sub": "alice", "aud": CLIENT, "exp": NOW + 300, "iat": NOW, "nonce": NONCE, "at_hash": AT_HASH,
    "auth_time": NOW - 10, "acr": "urn:mfa", "amr": ["pwd", "otp"],
}  # fmt: skip
HEADER = {"alg": "RS256", "kid": "k1"}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def jwk(key: rsa.RSAPrivateKey, kid: str) -> dict[str, Any]:
    public = RSAKey.import_key(key.public_key().public_numbers().public_key().public_bytes(*_spki()))
    return {**public.as_dict(private=False), "kid": kid, "use": "sig", "alg": "RS256"}


def _spki() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Encoding.PEM, PublicFormat.SubjectPublicKeyInfo


KEYS = [jwk(PRIVATE, "k1"), jwk(OTHER, "k2")]


def token(
    claims: Any = None, header: Any = None, key: rsa.RSAPrivateKey = PRIVATE, payload: bytes | None = None
) -> str:
    body = payload if payload is not None else json.dumps(CLAIMS | (claims or {})).encode()
    signed = f"{b64(json.dumps(HEADER | (header or {})).encode())}.{b64(body)}"
    return f"{signed}.{b64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def without(*names: str) -> bytes:
    return json.dumps({name: value for name, value in CLAIMS.items() if name not in names}).encode()


def hs256_with_the_public_key() -> str:
    signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'k1'}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    tag = hmac.HMAC(PRIVATE.public_key().public_bytes(*_spki()), hashes.SHA256())
    tag.update(signed.encode())
    return f"{signed}.{b64(tag.finalize())}"


def numbered(name: str, literal: str) -> bytes:
    return json.dumps(CLAIMS | {name: "here"}).replace('"here"', literal).encode()


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "wrong issuer": (lambda: token({"iss": "https://evil.example"}), "iss"),
    "issuer with a slash more": (lambda: token({"iss": ISSUER + "/"}), "iss"),
    "missing issuer": (lambda: token(payload=without("iss")), "iss"),
    "missing subject": (lambda: token(payload=without("sub")), "sub"),
    "subject that is no text": (lambda: token({"sub": 7}), "sub"),
    "wrong audience": (lambda: token({"aud": "other"}), "aud"),
    "missing audience": (lambda: token(payload=without("aud")), "aud"),
    "several audiences without azp": (lambda: token({"aud": [CLIENT, "other"]}), "azp_missing"),
    "several audiences, another azp": (lambda: token({"aud": [CLIENT, "other"], "azp": "other"}), "azp"),
    "another azp": (lambda: token({"azp": "other"}), "azp"),
    "expired": (lambda: token({"exp": NOW - 31}), "exp"),
    "expired at the leeway": (lambda: token({"exp": NOW - 30}), "exp"),
    "expiry that never comes": (lambda: token(payload=numbered("exp", "1e400")), "exp"),
    "expiry that is Python's infinity": (lambda: token(payload=numbered("exp", "Infinity")), "form"),
    "missing expiry": (lambda: token(payload=without("exp")), "exp"),
    "expiry that is no number": (lambda: token({"exp": "soon"}), "exp"),
    "not yet valid": (lambda: token({"nbf": NOW + 31}), "nbf"),
    "issued in the future": (lambda: token({"iat": NOW + 31}), "iat"),
    "missing issue time": (lambda: token(payload=without("iat")), "iat"),
    "wrong nonce": (lambda: token({"nonce": "other"}), "nonce"),
    "missing nonce": (lambda: token(payload=without("nonce")), "nonce"),
    "wrong at_hash": (lambda: token({"at_hash": "other"}), "at_hash"),
    "login before all time": (lambda: token(payload=numbered("auth_time", "-1e400")), "auth_time_form"),
    "login at a time below zero": (lambda: token({"auth_time": -1}), "auth_time_form"),
    "login at a time that is no number": (lambda: token({"auth_time": "now"}), "auth_time_form"),
    "subject with NUL": (lambda: token({"sub": "a\x00"}), "sub"),
    "subject beyond ASCII": (lambda: token({"sub": "\u0430lice"}), "sub"),
    "subject too long": (lambda: token({"sub": "a" * 256}), "sub"),
    "class that is no text": (lambda: token({"acr": ["urn:mfa"]}), "acr_form"),
    "class with NUL": (lambda: token({"acr": "urn:mfa\x00"}), "acr_form"),
    "methods in one text": (lambda: token({"amr": "otp"}), "amr_form"),
    "methods that are lists": (lambda: token({"amr": [["otp"]]}), "amr_form"),
    "more methods than there are": (lambda: token({"amr": ["otp"] * 33}), "amr_form"),
    "login in the future": (lambda: token({"auth_time": NOW + 31}), "auth_time_future"),
    "signed by another key": (lambda: token(key=OTHER), "signature"),
    "unknown kid": (lambda: token(header={"kid": "k9"}), "kid"),
    "no kid with several keys": (lambda: token(header={"kid": None}).replace("x", "x"), "kid"),
    "alg none": (lambda: token(header={"alg": "none"}).rsplit(".", 1)[0] + ".", "alg"),
    "HS256 with the public key": (hs256_with_the_public_key, "alg"),
    "another asymmetric alg": (lambda: token(header={"alg": "PS256"}), "alg"),
    "alg of another key type": (lambda: token(header={"alg": "ES256"}), "kid"),
    "embedded jwk": (lambda: token(header={"jwk": KEYS[1]}), "header_jwk"),
    "embedded jku": (lambda: token(header={"jku": "https://evil.example"}), "header_jku"),
    "embedded x5u": (lambda: token(header={"x5u": "https://evil.example"}), "header_x5u"),
    "unknown crit": (lambda: token(header={"crit": ["exp"]}), "header_crit"),
    "b64 false": (lambda: token(header={"b64": False}), "header_b64"),
    "duplicate claim": (
        lambda: token(payload=json.dumps(CLAIMS).encode()[:-1] + b', "sub": "eve"}'),
        "duplicate_claim",
    ),
    "bad UTF-8": (lambda: token(payload=b'{"sub": "\xff"}'), "form"),
    "no object": (lambda: token(payload=b"[]"), "form"),
    "no token": (lambda: "a.b", "form"),
    "two megabytes": (lambda: "a" * 2_000_000, "too_long"),
    "altered": (lambda: altered(), "signature"),  # noqa: PLW0108 — defined below
}


def altered() -> str:
    head, _, signature = token().split(".")
    return f"{head}.{b64(json.dumps(CLAIMS | {'sub': 'eve'}).encode())}.{signature}"


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_with_one_thing_wrong_is_refused_with_its_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(TokenRefused) as refused:
        validate(make(), KEYS, WANT)
    assert refused.value.reason == reason


def test_a_valid_token_says_how_somebody_signed_in() -> None:
    claims, login = validate(token(), KEYS, WANT)
    assert (claims["sub"], login.acr, login.amr, login.auth_time) == ("alice", "urn:mfa", ("pwd", "otp"), NOW - 10)


@pytest.mark.parametrize(
    ("claims", "want"),
    [
        ({"exp": NOW - 29}, WANT),
        ({"iat": NOW + 30}, WANT),
        ({"nbf": NOW + 30}, WANT),
        ({"aud": [CLIENT]}, WANT),
        ({"aud": [CLIENT, "other"], "azp": CLIENT}, WANT),
        ({"auth_time": NOW - 60}, replace(WANT, max_age_s=60)),
        ({"acr": "b"}, replace(WANT, required_acr=("a", "b"))),
        ({"amr": ["otp", "pwd", "geo"]}, replace(WANT, required_amr=("pwd", "otp"))),
    ],
)
def test_at_the_boundary_it_is_accepted(claims: dict[str, Any], want: Expected) -> None:
    validate(token(claims), KEYS, want)


@pytest.mark.parametrize(
    ("claims", "want", "reason"),
    [
        ({"auth_time": NOW - 61}, replace(WANT, max_age_s=60), "auth_time"),
        ({"auth_time": NOW - 61}, replace(WANT, max_age_s=60, leeway_s=60), "auth_time"),
        ({"auth_time": None}, replace(WANT, max_age_s=60), "auth_time"),
        ({"acr": "c"}, replace(WANT, required_acr=("a", "b")), "acr"),
        ({"acr": None}, replace(WANT, required_acr=("a",)), "acr"),
        ({"amr": ["pwd"]}, replace(WANT, required_amr=("pwd", "otp")), "amr"),
        ({"amr": "pwd otp"}, replace(WANT, required_amr=("pwd",)), "amr_form"),
        ({"acr": "a"}, replace(WANT, asked_acr=("b",)), "acr_asked"),
        # Asking for less must not lower what the binding demands.
        ({"acr": "a"}, replace(WANT, required_acr=("b",), asked_acr=("a",)), "acr"),
    ],
)
def test_what_was_asked_for_must_come_back(claims: dict[str, Any], want: Expected, reason: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        validate(token(claims), KEYS, want)
    assert refused.value.reason == reason


def test_a_key_of_another_use_does_not_count() -> None:
    with pytest.raises(TokenRefused, match="kid"):
        validate(token(), [KEYS[0] | {"use": "enc"}], WANT)
    assert LONGEST < 2_000_000
    assert ECKey.generate_key("P-256").as_dict(private=False)["kty"] == "EC"


def ed25519_token(algorithm: str, claims: dict[str, Any]) -> str:
    body = b64(json.dumps(CLAIMS | claims).encode())
    signed = f"{b64(json.dumps({'alg': algorithm, 'kid': 'e1'}).encode())}.{body}"
    return f"{signed}.{b64(EDWARDS.sign(signed.encode()))}"


EDWARDS = Ed25519PrivateKey.generate()
EDWARDS_JWK = {"kty": "OKP", "crv": "Ed25519", "x": b64(EDWARDS.public_key().public_bytes_raw()), "kid": "e1"}
LONG_HASH = b64(hashlib.sha512(ACCESS.encode()).digest()[:32])


@pytest.mark.parametrize("algorithm", ["EdDSA", "Ed25519"])
@pytest.mark.parametrize("named", [{}, {"alg": "EdDSA"}, {"alg": "Ed25519"}])
def test_ed25519_has_two_names_and_a_longer_hash(algorithm: str, named: dict[str, str]) -> None:
    validate(ed25519_token(algorithm, {"at_hash": LONG_HASH}), [EDWARDS_JWK | named], WANT)
    # The half of SHA-256 belongs to RS256 and ES256.
    with pytest.raises(TokenRefused, match="at_hash"):
        validate(ed25519_token(algorithm, {"at_hash": AT_HASH}), [EDWARDS_JWK | named], WANT)


def test_eddsa_means_one_curve_only() -> None:
    with pytest.raises(TokenRefused, match="kid"):
        validate(ed25519_token("EdDSA", {}), [EDWARDS_JWK | {"crv": "Ed448"}], WANT)


def test_a_short_rsa_key_does_not_count() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(TokenRefused, match="key_weak"):
        validate(token(key=weak), [KEYS[0] | {"n": b64(weak.public_key().public_numbers().n.to_bytes(128))}], WANT)


def test_a_header_member_that_nobody_knows_is_ignored() -> None:
    validate(token(header={"x-vendor": "a" * 600}), KEYS, WANT)


@pytest.mark.parametrize("broken", [{"n": 7}, {"n": None}, {"n": ""}, {"e": ""}])
def test_a_broken_key_is_a_refusal(broken: dict[str, Any]) -> None:
    with pytest.raises(TokenRefused, match=r"signature|key_weak"):
        validate(token(), [KEYS[0] | broken], WANT)
