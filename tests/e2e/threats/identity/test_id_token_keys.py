"""F-3 over the wire, who signed and how: algorithms, keys and forms that an attacker would have us believe."""

import base64
import json

import pytest
from aiohttp import web

from tests.e2e.outside import JSON
from tests.e2e.threats.identity.conftest import Case, Ring
from tests.e2e.threats.identity.hostile import Genuine
from tests.e2e.threats.identity.signing import ATTACKER, CURVE, SECOND, WEAK, Altered, Hmac, Nothing, Pss, b64, compact

pytestmark = pytest.mark.e2e

JKU = "https://evil.example/jwks"


def unsigned(genuine: Genuine, name: str) -> str:
    return genuine.signed(Nothing(), {"alg": name})


def with_the_public_key(genuine: Genuine, secret: bytes = b"") -> str:
    return genuine.signed(Hmac(secret or genuine.key.pem), {"alg": "HS256"})


def altered(genuine: Genuine) -> str:
    head, _, signature = genuine.token.split(".")
    return f"{head}.{b64(json.dumps(genuine.claims | {'sub': 'operator'}).encode())}.{signature}"


def of_megabytes(genuine: Genuine) -> web.Response:
    return web.json_response(genuine.answer | {"id_token": genuine.says(padding="a" * 2_000_000)})


def with_header(genuine: Genuine, raw: bytes) -> str:
    return compact(raw, json.dumps(genuine.claims).encode(), genuine.key)


def twice(genuine: Genuine, member: str) -> bytes:
    return json.dumps(genuine.claims).encode()[:-1] + b", " + member.encode() + b"}"


ALGORITHMS = {
    "none": Case("alg_none", lambda g: unsigned(g, "none")),
    "NoNe": Case("alg_none", lambda g: unsigned(g, "NoNe")),
    "none with a signature": Case("alg_none", lambda g: g.headed(alg="none")),
    "HS256 with the public key": Case("alg_symmetric", with_the_public_key),
    "HS256 with the modulus": Case("alg_symmetric", lambda g: with_the_public_key(g, g.keys[0]["n"].encode())),
    "HS256 with nothing": Case("alg_symmetric", lambda g: g.signed(Hmac(b""), {"alg": "HS256"})),
    "RS512": Case("alg_unknown", lambda g: g.headed(alg="RS512")),
    "a list of algorithms": Case("alg_form", lambda g: g.headed(alg=["RS256"])),
    "no algorithm": Case("alg_form", lambda g: g.headed(alg=...)),
    "signed by the attacker": Case("signature", lambda g: g.forged(sub="operator")),
    "signed by another provider": Case("kid_unknown", lambda g: g.signed(SECOND, {"kid": "of-another-provider"})),
    "altered": Case("signature", altered),
    "without a signature": Case("signature", lambda g: g.token.rpartition(".")[0] + "."),
    "embedded jwk": Case("header_jwk", lambda g: g.signed(ATTACKER, {"jwk": ATTACKER.jwk("evil")})),
    "embedded jku": Case("header_jku", lambda g: g.signed(ATTACKER, {"jku": JKU, "kid": "evil"})),
    "embedded x5u": Case("header_x5u", lambda g: g.signed(ATTACKER, {"x5u": JKU})),
    "embedded x5c": Case("header_x5c", lambda g: g.signed(ATTACKER, {"x5c": ["MIIB"]})),
    "unknown crit": Case("header_crit", lambda g: g.headed(crit=["evil"], evil=1)),
    "b64 false": Case("header_b64", lambda g: g.headed(b64=False)),
    "unknown kid": Case("kid_unknown", lambda g: g.headed(kid="evil")),
    "a kid that is a path": Case("kid_unknown", lambda g: g.headed(kid="../../dev/null")),
    "a kid that is a number": Case("kid_form", lambda g: g.headed(kid=1)),
}
# Each with a binding of its own, because it is the provider's key set that differs.
KEYS = {
    "without a kid, several keys": Case(
        "kid_missing", lambda g: g.headed(kid=...), lambda keys: [*keys, SECOND.jwk("second")]
    ),
    "a kid of a key of another type": Case(
        "key_type", lambda g: g.signed(g.key, {"kid": "curve"}), lambda keys: [*keys, CURVE.jwk("curve")]
    ),
    "ES256 under the kid of an RSA key": Case(
        "key_type", lambda g: g.signed(CURVE, {"alg": "ES256"}), lambda keys: [*keys, CURVE.jwk("curve")]
    ),
    "a key for encryption": Case("key_use", jwks=lambda keys: [key | {"use": "enc"} for key in keys]),
    "a key that only signs": Case("key_use", jwks=lambda keys: [key | {"key_ops": ["sign"]} for key in keys]),
    "a key for another algorithm": Case("key_alg", jwks=lambda keys: [key | {"alg": "PS256"} for key in keys]),
    "a kid of two keys": Case("kid_ambiguous", jwks=lambda keys: [*keys, SECOND.jwk(keys[0]["kid"])]),
    "an RSA key of 1024 bits": Case(
        "key_weak", lambda g: g.signed(WEAK, {"kid": "weak"}), lambda keys: [*keys, WEAK.jwk("weak")]
    ),
    "a key without its number": Case("key_broken", jwks=lambda keys: [key | {"n": ""} for key in keys]),
    "a shared secret among the keys": Case(
        "alg_symmetric",
        lambda g: g.signed(Hmac(b"secret"), {"alg": "HS256", "kid": "oct"}),
        lambda keys: [*keys, {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"}],
    ),
    "a wrong signature of an elliptic key": Case(
        "signature",
        lambda g: g.signed(Altered(CURVE), {"alg": "ES256", "kid": "curve"}),
        lambda keys: [*keys, CURVE.jwk("curve")],
    ),
    "an elliptic key": Case(
        "", lambda g: g.signed(CURVE, {"alg": "ES256", "kid": "curve"}), lambda keys: [*keys, CURVE.jwk("curve")]
    ),
    "without a kid, one key": Case("", lambda g: g.headed(kid=...), lambda keys: keys[:1]),
}
FORMS = {
    "two megabytes": Case("too_long", of_megabytes),
    "a token of 20 kilobytes": Case("too_long", lambda g: g.says(padding="a" * 20_000)),
    "two segments": Case("segments", lambda g: g.token.rpartition(".")[0]),
    "a token of encryption, five segments": Case("segments", lambda g: g.token + ".a.b"),
    "padded base64": Case("encoding", lambda g: g.token + "="),
    "header in bad UTF-8": Case("header_utf8", lambda g: with_header(g, b'{"alg": "RS256", "kid": "\xff"}')),
    "header that is no JSON": Case("header_json", lambda g: with_header(g, b"RS256")),
    "header that is a list": Case("header_object", lambda g: with_header(g, b'["RS256"]')),
    "duplicate header member": Case(
        "header_duplicate", lambda g: with_header(g, b'{"alg": "none", "alg": "RS256"}')
    ),
    "duplicate claim": Case("claims_duplicate", lambda g: g.raw(twice(g, '"sub": "operator"'))),
    "duplicate member further in": Case("claims_duplicate", lambda g: g.raw(twice(g, '"x": {"a": 1, "a": 2}'))),
    "claims in bad UTF-8": Case("claims_utf8", lambda g: g.raw(twice(g, '"x": "?"').replace(b"?", b"\xff"))),
    "claims in UTF-16": Case("claims_utf8", lambda g: g.raw(json.dumps(g.claims).encode("utf-16"))),
    "claims that are no JSON": Case("claims_json", lambda g: g.raw(b"sub=ada")),
    "claims with Python's infinity": Case("claims_json", lambda g: g.raw(twice(g, '"exp2": Infinity'))),
    "claims that are a list": Case("claims_object", lambda g: g.raw(json.dumps([g.claims]).encode())),
    "claims in claims, nested deep": Case("claims_nested", lambda g: g.raw(twice(g, '"x": ' + "[" * 40 + "]" * 40))),
    "claims nested deeper than a parser goes": Case("claims_nested", lambda g: g.raw(b"[" * 5000 + b"]" * 5000)),
    "a token in a token": Case("cty", lambda g: g.raw(g.token.encode(), header={"cty": "JWT"})),
    "a token in base64 once more": Case("segments", lambda g: base64.b64encode(g.token.encode()).decode()),
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
async def test_the_token_does_not_choose_how_it_is_verified(ring: Ring, name: str) -> None:
    await ring.attempt(await ring.bound("algorithms"), ALGORITHMS[name])


@pytest.mark.parametrize("name", KEYS)
async def test_only_one_whole_key_of_the_provider_verifies(ring: Ring, name: str) -> None:
    await ring.attempt(await ring.bound(f"keys: {name}", KEYS[name].jwks), KEYS[name])


@pytest.mark.parametrize(("pinned", "reason"), [("RS256", "alg_not_pinned"), ("PS256", "")])
async def test_a_binding_pins_its_algorithms(ring: Ring, pinned: str, reason: str) -> None:
    def for_all(keys: list[JSON]) -> list[JSON]:
        return [{name: value for name, value in key.items() if name != "alg"} for key in keys]

    bound = await ring.bound(f"pinned: {pinned}", for_all, id_token_algorithms=[pinned])
    await ring.attempt(bound, Case(reason, lambda g: g.signed(Pss(g.key), {"alg": "PS256"}), for_all))


@pytest.mark.parametrize("name", FORMS)
async def test_a_form_that_two_parsers_could_read_differently_is_refused(ring: Ring, name: str) -> None:
    await ring.attempt(await ring.bound("forms"), FORMS[name])
