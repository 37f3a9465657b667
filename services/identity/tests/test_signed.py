"""Form, header, key and signature: each refusal is a one-line mutation of a valid token, named by its reason."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from services.identity.id_token import TokenRefused, validate
from services.identity.signed import ALGORITHMS, DEEPEST, header_of, verified
from services.identity.tests.id_tokens import (
    CLAIMS,
    CURVE_KEY,
    EDWARDS,
    EDWARDS_KEY,
    HALF_HASH,
    HEADER,
    KEYS,
    LONG_HASH,
    NOW,
    OTHER,
    PRIVATE,
    WANT,
    b64,
    compact,
    es256,
    hs256_with_the_public_key,
    literally,
    ps256,
    rs256,
    rsa_jwk,
    token,
)

pytestmark = pytest.mark.unit

WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
BOTH = [*KEYS, CURVE_KEY]


def with_header(raw: bytes) -> str:
    return compact(raw, json.dumps(CLAIMS).encode(), rs256(PRIVATE))


def altered() -> str:
    head, _, signature = token().split(".")
    return f"{head}.{b64(json.dumps(CLAIMS | {'sub': 'eve'}).encode())}.{signature}"


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "two megabytes": (lambda: "a" * 2_000_000, "too_long"),
    "two segments": (lambda: "a.b", "segments"),
    "five segments": (lambda: token() + ".a.b", "segments"),
    "padded segments": (lambda: token() + "==", "encoding"),
    "ordinary base64": (lambda: token().replace(".", "+.", 1), "encoding"),
    "a header of one letter": (lambda: "e.e.e", "encoding"),
    "header in bad UTF-8": (lambda: with_header(b'{"alg": "\xff"}'), "header_utf8"),
    "header that is no JSON": (lambda: with_header(b"alg"), "header_json"),
    "header that is a list": (lambda: with_header(b"[]"), "header_object"),
    "duplicate header member": (lambda: with_header(b'{"alg": "RS256", "alg": "none"}'), "header_duplicate"),
    "header without end": (lambda: with_header(b'{"a":' * 9), "header_json"),
    "header with a deep member": (lambda: with_header(b'{"a":' + b"[" * 20 + b"]" * 20 + b"}"), "header_nested"),
    "no alg": (lambda: token(header={"alg": ...}), "alg_form"),
    "a list of algs": (lambda: token(header={"alg": ["RS256"]}), "alg_form"),
    "alg none": (lambda: token(header={"alg": "none"}).rsplit(".", 1)[0] + ".", "alg_none"),
    "alg nOnE": (lambda: token(header={"alg": "nOnE"}).rsplit(".", 1)[0] + ".", "alg_none"),
    "HS256 with the public key": (
        lambda: token(header={"alg": "HS256"}, sign=hs256_with_the_public_key),
        "alg_symmetric",
    ),
    "alg that nobody knows": (lambda: token(header={"alg": "RS1"}), "alg_unknown"),
    "alg that is not pinned": (lambda: token(header={"alg": "PS256"}, sign=ps256(PRIVATE)), "alg_not_pinned"),
    "embedded jwk": (lambda: token(header={"jwk": KEYS[1]}, sign=rs256(OTHER)), "header_jwk"),
    "embedded jku": (lambda: token(header={"jku": "https://evil.example"}), "header_jku"),
    "embedded x5u": (lambda: token(header={"x5u": "https://evil.example"}), "header_x5u"),
    "embedded x5c": (lambda: token(header={"x5c": ["MIIB"]}), "header_x5c"),
    "unknown crit": (lambda: token(header={"crit": ["exp"]}), "header_crit"),
    "b64 false": (lambda: token(header={"b64": False}), "header_b64"),
    "access token (RFC 9068)": (lambda: token(header={"typ": "at+jwt"}), "typ"),
    "logout token": (lambda: token(header={"typ": "logout+jwt"}), "typ"),
    "our own session token": (lambda: token(header={"typ": "plexsphere-session+jwt"}), "typ"),
    "typ that is no text": (lambda: token(header={"typ": ["JWT"]}), "typ"),
    "token in a token": (lambda: token(header={"cty": "JWT"}), "cty"),
    "kid that is no text": (lambda: token(header={"kid": {"k": 1}}), "kid_form"),
    "kid that is null": (lambda: token(header={"kid": None}), "kid_form"),
    "unknown kid": (lambda: token(header={"kid": "k9"}), "kid_unknown"),
    "no kid with several keys": (lambda: token(header={"kid": ...}), "kid_missing"),
    "kid of a key of another type": (lambda: token(header={"alg": "ES256"}, sign=es256), "key_type"),
    "kid of another key": (lambda: token(header={"kid": "k2"}), "signature"),
    "signed by another key": (lambda: token(sign=rs256(OTHER)), "signature"),
    "altered": (altered, "signature"),
    "no signature": (lambda: token().rsplit(".", 1)[0] + ".", "signature"),
    "claims in bad UTF-8": (lambda: token(payload=b'{"sub": "\xff"}'), "claims_utf8"),
    "claims that are no JSON": (lambda: token(payload=b"sub"), "claims_json"),
    "claims that are a list": (lambda: token(payload=b"[]"), "claims_object"),
    "duplicate claim": (lambda: token(payload=json.dumps(CLAIMS).encode()[:-1] + b', "sub": "eve"}'),
                        "claims_duplicate"),
    "duplicate member further in": (lambda: token(payload=literally("x", '{"a": 1, "a": 2}')), "claims_duplicate"),
    "deep claims": (lambda: token(payload=literally("x", "[" * DEEPEST + "]" * DEEPEST)), "claims_nested"),
    "claims deeper than any parser": (lambda: token(payload=b"[" * 5000 + b"]" * 5000), "claims_nested"),
    "Python's infinity": (lambda: token(payload=literally("exp", "Infinity")), "claims_json"),
    "a number of 5,000 digits": (lambda: token(payload=literally("exp", "9" * 5000)), "claims_json"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_with_one_thing_wrong_is_refused_with_its_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(TokenRefused) as refused:
        validate(make(), KEYS, WANT)
    assert refused.value.reason == reason


SETS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no keys": ([], "kid_unknown"),
    "a key for encryption": ([KEYS[0] | {"use": "enc"}], "key_use"),
    "a key that may only sign": ([KEYS[0] | {"key_ops": ["sign"]}], "key_use"),
    "a key of another algorithm": ([KEYS[0] | {"alg": "PS256"}], "key_alg"),
    "the same kid twice": ([KEYS[0], KEYS[1] | {"kid": "k1"}], "kid_ambiguous"),
    "a symmetric key": ([{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}], "key_type"),
    "a key without its number": ([{"kty": "RSA", "kid": "k1"}], "key_broken"),
    "a number that is none": ([KEYS[0] | {"n": 7}], "key_broken"),
    "an empty exponent": ([KEYS[0] | {"e": ""}], "key_broken"),
    "a short RSA key": ([rsa_jwk(WEAK, "k1")], "key_weak"),
    "the attacker's key": ([rsa_jwk(OTHER, "k1")], "signature"),
}


@pytest.mark.parametrize("name", SETS)
def test_only_one_whole_key_for_this_use_verifies(name: str) -> None:
    keys, reason = SETS[name]
    with pytest.raises(TokenRefused) as refused:
        validate(token(), keys, WANT)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("header", "keys"),
    [
        ({"kid": ...}, KEYS[:1]),
        ({"kid": ...}, [KEYS[0], CURVE_KEY, KEYS[1] | {"use": "enc"}]),
        ({"typ": "JWT"}, KEYS),
        ({"typ": "application/jwt"}, KEYS),
        ({"x-vendor": "a" * 600}, KEYS),
        ({}, [KEYS[0], CURVE_KEY | {"kid": "k1"}]),
    ],
    ids=["no kid, one key", "no kid, one that fits", "typ", "long typ", "unknown member", "a kid per type"],
)
def test_what_is_unusual_and_right_is_accepted(header: dict[str, Any], keys: list[dict[str, Any]]) -> None:
    validate(token(header=header), keys, WANT)


def test_an_elliptic_key_verifies_and_a_wrong_signature_does_not() -> None:
    header = {"alg": "ES256", "kid": "c1"}
    validate(token(header=header, sign=es256), BOTH, WANT)
    with pytest.raises(TokenRefused, match="signature"):
        validate(token(header=header, sign=lambda signed: es256(signed + b".")), BOTH, WANT)


@pytest.mark.parametrize("algorithm", ["EdDSA", "Ed25519"])
@pytest.mark.parametrize("named", [{}, {"alg": "EdDSA"}, {"alg": "Ed25519"}])
def test_ed25519_has_two_names_and_a_longer_hash(algorithm: str, named: dict[str, str]) -> None:
    header = {"alg": algorithm, "kid": "e1"}
    validate(token({"at_hash": LONG_HASH}, header, EDWARDS.sign), [EDWARDS_KEY | named], WANT)
    # The half of SHA-256 belongs to RS256 and ES256.
    with pytest.raises(TokenRefused, match="at_hash"):
        validate(token({"at_hash": HALF_HASH}, header, EDWARDS.sign), [EDWARDS_KEY | named], WANT)


def test_eddsa_means_one_curve_only() -> None:
    with pytest.raises(TokenRefused, match="key_type"):
        validate(token(header={"alg": "EdDSA", "kid": "e1"}, sign=EDWARDS.sign), [EDWARDS_KEY | {"crv": "Ed448"}], WANT)


def test_a_binding_pins_its_algorithms() -> None:
    both, header = replace(WANT, algorithms=("PS256", "ES256")), {"alg": "PS256"}
    validate(token(header=header, sign=ps256(PRIVATE)), [rsa_jwk(PRIVATE, "k1")], both)
    with pytest.raises(TokenRefused, match="alg_not_pinned"):
        validate(token(), KEYS, both)
    for none_of_them in ((), ("HS256",), ("RS256", "none")):
        with pytest.raises(ValueError, match="asymmetric"):
            replace(WANT, algorithms=none_of_them)


def test_another_verifier_names_the_kinds_that_are_right_there() -> None:
    logout = token(header={"typ": "logout+jwt"})
    assert verified(logout, KEYS, ("RS256",), {"logout+jwt"})[0]["sub"] == "alice"
    with pytest.raises(TokenRefused, match="typ"):
        verified(logout, KEYS, ("RS256",))


# Whatever comes, there is a refusal or a login and no crash ----------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400) | st.just(NOW)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
CLAIM_NAMES = st.sampled_from([*CLAIMS, "nbf", "azp", "events", "x"])
HEADER_NAMES = st.sampled_from(["alg", "kid", "typ", "cty", "crit", "b64", "jwk", "x"])
MEMBERS = st.sampled_from(["kty", "n", "e", "crv", "x", "y", "kid", "use", "key_ops", "alg", "d", "x5c", "oth"])


@settings(deadline=None)
@given(st.dictionaries(CLAIM_NAMES, ANYTHING), st.dictionaries(HEADER_NAMES, ANYTHING | st.sampled_from([*ALGORITHMS])))
def test_any_claims_and_any_header_are_refused_or_believed(claims: dict[str, Any], header: dict[str, Any]) -> None:
    with contextlib.suppress(TokenRefused):
        validate(token(claims, header), KEYS, WANT)


@settings(deadline=None)
@given(st.binary(), st.text(), st.binary())
def test_any_bytes_are_refused(payload: bytes, text: str, header: bytes) -> None:
    for attempt in (text, token(payload=payload), with_header(header), f"{text}.{text}.{text}"):
        with pytest.raises(TokenRefused):
            validate(attempt, KEYS, WANT)


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(MEMBERS, ANYTHING | st.sampled_from(["RSA", "EC", "OKP", "P-256", "AQAB", "sig"])), max_size=3
    )
)
def test_any_keys_are_refused(keys: list[dict[str, Any]]) -> None:
    for known in (KEYS[0], CURVE_KEY, EDWARDS_KEY):
        for algorithm in ALGORITHMS:
            attack = token(header={"alg": algorithm, "kid": ...}, sign=rs256(OTHER))
            with pytest.raises(TokenRefused):
                validate(attack, [known | key for key in keys], WANT)


def test_the_header_that_picks_a_key_is_the_one_that_was_signed() -> None:
    assert header_of(token()) == HEADER
