"""id_token validation (OpenID Connect Core 1.0, 3.1.3.7): a table of small checks, each with its own reason.

Signature and form first, by a maintained JOSE library with the algorithms pinned; then the claims. The reason goes to
log, metric and audit; outwards there is one code.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from services.identity.sign_in_model import Login

# What each asks of a key, and the hash that `at_hash` takes (OpenID Connect Core 1.0, 3.1.3.6). RFC 9864 renamed EdDSA
# to Ed25519; providers send both, and here both mean that curve only.
ALGORITHMS: dict[str, tuple[str, str | None, str]] = {
    "RS256": ("RSA", None, "sha256"),
    "ES256": ("EC", "P-256", "sha256"),
    "Ed25519": ("OKP", "Ed25519", "sha512"),
    "EdDSA": ("OKP", "Ed25519", "sha512"),
}
LONGEST = 16_384
SEGMENTS = 3
LEEWAY_S = 30
# OpenID Connect Core 1.0, 2.
LONGEST_SUBJECT = 255
MOST_METHODS = 32
# RFC 7518, 3.3.
SHORTEST_RSA_KEY = 2048
BANNED_HEADERS = ("jwk", "jku", "x5u", "x5c", "crit", "b64")

Claims = dict[str, Any]


class Registry(JWSRegistry):
    """The pinned algorithms; members of the header that nobody knows are ignored (RFC 7515, 4)."""

    algorithms = JWSRegistry.algorithms | {"EdDSA": JWSRegistry.algorithms["Ed25519"]}
    max_header_length = LONGEST


REGISTRY = Registry(algorithms=tuple(ALGORITHMS), strict_check_header=False)


class TokenRefused(Exception):
    """An id_token that is not believed; `reason` names the check."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Expected:
    """What an id_token must say; `now` is Unix seconds.

    `required_acr` is the binding's floor, `asked_acr` what this sign-in asked for: asking must not lower the floor.
    """

    issuer: str
    client_id: str
    nonce: str
    now: float
    access_token: str = ""
    required_acr: tuple[str, ...] = ()
    asked_acr: tuple[str, ...] = ()
    required_amr: tuple[str, ...] = ()
    max_age_s: int | None = None
    leeway_s: int = LEEWAY_S
    algorithm: str = "RS256"


def _number(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    # 1e400 is valid JSON, and infinite here.
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if numeric else None


def _plain(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_SUBJECT and value.isprintable()


def _audiences(claims: Claims) -> list[Any]:
    audience = claims.get("aud")
    return audience if isinstance(audience, list) else [audience]


def _at_hash(want: Expected) -> str:
    whole = hashlib.new(ALGORITHMS[want.algorithm][2], want.access_token.encode()).digest()
    return base64.urlsafe_b64encode(whole[: len(whole) // 2]).decode().rstrip("=")


def _subject_is_plain(claims: Claims, _: Expected) -> bool:
    subject = claims.get("sub")
    return isinstance(subject, str) and subject != "" and _plain(subject) and subject.isascii()


def _methods_are_plain(claims: Claims, _: Expected) -> bool:
    methods = claims.get("amr", [])
    return isinstance(methods, list) and len(methods) <= MOST_METHODS and all(map(_plain, methods))


def _auth_time_is_a_time(claims: Claims, _: Expected) -> bool:
    moment = _number(claims, "auth_time")
    return claims.get("auth_time") is None or (moment is not None and moment >= 0)


def _within_max_age(claims: Claims, want: Expected) -> bool:
    # The leeway is for clocks, never for the age of a login.
    moment = _number(claims, "auth_time")
    return want.max_age_s is None or (moment is not None and want.now - moment <= want.max_age_s)


def _acr_is_required(claims: Claims, want: Expected) -> bool:
    return not want.required_acr or claims.get("acr") in want.required_acr


def _acr_was_asked_for(claims: Claims, want: Expected) -> bool:
    return not want.asked_acr or claims.get("acr") in want.asked_acr


def _not_before(claims: Claims, want: Expected) -> bool:
    moment = _number(claims, "nbf")
    return "nbf" not in claims or (moment is not None and moment <= want.now + want.leeway_s)


# In this order; the first that fails is the reason.
CHECKS: tuple[tuple[str, Callable[[Claims, Expected], bool]], ...] = (
    ("iss", lambda claims, want: claims.get("iss") == want.issuer),
    ("sub", _subject_is_plain),
    ("aud", lambda claims, want: want.client_id in _audiences(claims)),
    ("azp_missing", lambda claims, _: len(_audiences(claims)) == 1 or "azp" in claims),
    ("azp", lambda claims, want: claims.get("azp", want.client_id) == want.client_id),
    ("exp", lambda claims, want: (_number(claims, "exp") or 0) > want.now - want.leeway_s),
    ("nbf", _not_before),
    ("iat", lambda claims, want: (_number(claims, "iat") or float("inf")) <= want.now + want.leeway_s),
    ("nonce", lambda claims, want: claims.get("nonce") == want.nonce),
    ("at_hash", lambda claims, want: "at_hash" not in claims or claims["at_hash"] == _at_hash(want)),
    ("auth_time_form", _auth_time_is_a_time),
    ("auth_time_future", lambda claims, want: (_number(claims, "auth_time") or 0) <= want.now + want.leeway_s),
    ("auth_time", _within_max_age),
    ("acr_form", lambda claims, _: claims.get("acr") is None or _plain(claims["acr"])),
    ("acr", _acr_is_required),
    ("acr_asked", _acr_was_asked_for),
    ("amr_form", _methods_are_plain),
    ("amr", lambda claims, want: set(want.required_amr) <= set(claims.get("amr", []))),
)


def validate(token: str, keys: list[dict[str, Any]], want: Expected) -> tuple[Claims, Login]:
    """Return the claims and the login; raises TokenRefused with the reason of the first check that fails."""
    claims, algorithm = _signed_claims(token, keys)
    want = replace(want, algorithm=algorithm)
    for reason, check in CHECKS:
        if not check(claims, want):
            raise TokenRefused(reason)
    moment = _number(claims, "auth_time")
    login = Login(claims.get("acr") or "", tuple(claims.get("amr", [])), int(moment) if moment is not None else None)
    return claims, login


def header_of(token: str) -> dict[str, Any]:
    """Return the protected header; raises TokenRefused when there is none that may be believed enough to pick a key."""
    if len(token) > LONGEST:
        raise TokenRefused("too_long")
    parts = token.split(".")
    if len(parts) != SEGMENTS:
        raise TokenRefused("form")
    try:
        header = _object(base64.b64decode(parts[0] + "=" * (-len(parts[0]) % 4), altchars=b"-_", validate=True))
    except ValueError:
        raise TokenRefused("form") from None
    if header.get("alg") not in ALGORITHMS:
        raise TokenRefused("alg")
    banned = [name for name in BANNED_HEADERS if name in header]
    if banned:
        raise TokenRefused(f"header_{banned[0]}")
    return header


def _signed_claims(token: str, keys: list[dict[str, Any]]) -> tuple[Claims, str]:
    header = header_of(token)
    fitting = [key for key in keys if key.get("use", "sig") == "sig" and _fits(key, header["alg"])]
    if "kid" in header:
        fitting = [key for key in fitting if key.get("kid") == header["kid"]]
    if len(fitting) != 1:
        raise TokenRefused("kid")
    # The algorithm was compared above, where both names of Ed25519 count as one.
    usable = {name: value for name, value in fitting[0].items() if name != "alg"}
    try:
        if usable["kty"] == "RSA" and _modulus(usable).bit_length() < SHORTEST_RSA_KEY:
            raise TokenRefused("key_weak")
        key = KeySet.import_key_set({"keys": [usable]}).keys[0]
        payload = jws.deserialize_compact(token.encode(), key, registry=REGISTRY).payload
    except (JoseError, LookupError, ValueError, TypeError):
        raise TokenRefused("signature") from None
    return _object(payload), header["alg"]


def _modulus(key: dict[str, Any]) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(key["n"] + "=="))


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    kind, curve, _ = ALGORITHMS[algorithm]
    named = key.get("alg", algorithm)
    # A key may say EdDSA where the token says Ed25519, and the other way round.
    same = named == algorithm or {named, algorithm} == {"EdDSA", "Ed25519"}
    return key.get("kty") == kind and (curve is None or key.get("crv") == curve) and same


def _no_constant(name: str) -> None:
    # NaN and Infinity are Python's, not JSON's (RFC 8259, 6).
    raise ValueError(name)


def _object(payload: bytes) -> Claims:
    def unique(pairs: list[tuple[str, Any]]) -> Claims:
        names = [name for name, _ in pairs]
        if len(names) != len(set(names)):
            raise TokenRefused("duplicate_claim")
        return dict(pairs)

    try:
        claims = json.loads(payload.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise TokenRefused("form") from None
    if not isinstance(claims, dict):
        raise TokenRefused("form")
    return claims
