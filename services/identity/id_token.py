"""id_token validation (OpenID Connect Core 1.0, 3.1.3.7): a table of small checks, each with its own reason.

Signature and form first, by a maintained JOSE library with the algorithms pinned; then the claims. The reason goes to
log, metric and audit; outwards there is one code.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.identity.sign_in_model import Login

ALGORITHMS = ("RS256", "ES256", "Ed25519")
LONGEST = 16_384
SEGMENTS = 3
LEEWAY_S = 30
# OpenID Connect Core 1.0, 2.
LONGEST_SUBJECT = 255
BANNED_HEADERS = ("jwk", "jku", "x5u", "x5c", "crit", "b64")

Claims = dict[str, Any]


class TokenRefused(Exception):
    """An id_token that is not believed; `reason` names the check."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Expected:
    """What an id_token must say; `now` is Unix seconds."""

    issuer: str
    client_id: str
    nonce: str
    now: float
    access_token: str = ""
    required_acr: tuple[str, ...] = ()
    required_amr: tuple[str, ...] = ()
    max_age_s: int | None = None
    leeway_s: int = LEEWAY_S


def _number(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _audiences(claims: Claims) -> list[Any]:
    audience = claims.get("aud")
    return audience if isinstance(audience, list) else [audience]


def _at_hash(access_token: str) -> str:
    half = hashlib.sha256(access_token.encode()).digest()[:16]
    return base64.urlsafe_b64encode(half).decode().rstrip("=")


def _within_max_age(claims: Claims, want: Expected) -> bool:
    # The leeway is for clocks, never for the age of a login.
    moment = _number(claims, "auth_time")
    return want.max_age_s is None or (moment is not None and want.now - moment <= want.max_age_s)


def _acr_is_required(claims: Claims, want: Expected) -> bool:
    return not want.required_acr or claims.get("acr") in want.required_acr


def _amr_is_complete(claims: Claims, want: Expected) -> bool:
    methods = claims.get("amr", [])
    return isinstance(methods, list) and set(want.required_amr) <= {str(method) for method in methods}


def _not_before(claims: Claims, want: Expected) -> bool:
    moment = _number(claims, "nbf")
    return "nbf" not in claims or (moment is not None and moment <= want.now + want.leeway_s)


# In this order; the first that fails is the reason.
CHECKS: tuple[tuple[str, Callable[[Claims, Expected], bool]], ...] = (
    ("iss", lambda claims, want: claims.get("iss") == want.issuer),
    ("sub", lambda claims, _: isinstance(claims.get("sub"), str) and 0 < len(claims["sub"]) <= LONGEST_SUBJECT),
    ("aud", lambda claims, want: want.client_id in _audiences(claims)),
    ("azp_missing", lambda claims, _: len(_audiences(claims)) == 1 or "azp" in claims),
    ("azp", lambda claims, want: claims.get("azp", want.client_id) == want.client_id),
    ("exp", lambda claims, want: (_number(claims, "exp") or 0) > want.now - want.leeway_s),
    ("nbf", _not_before),
    ("iat", lambda claims, want: (_number(claims, "iat") or float("inf")) <= want.now + want.leeway_s),
    ("nonce", lambda claims, want: claims.get("nonce") == want.nonce),
    ("at_hash", lambda claims, want: "at_hash" not in claims or claims["at_hash"] == _at_hash(want.access_token)),
    ("auth_time_future", lambda claims, want: (_number(claims, "auth_time") or 0) <= want.now + want.leeway_s),
    ("auth_time", _within_max_age),
    ("acr", _acr_is_required),
    ("amr", _amr_is_complete),
)


def validate(token: str, keys: list[dict[str, Any]], want: Expected) -> tuple[Claims, Login]:
    """Return the claims and the login; raises TokenRefused with the reason of the first check that fails."""
    claims = _signed_claims(token, keys)
    for reason, check in CHECKS:
        if not check(claims, want):
            raise TokenRefused(reason)
    acr, moment = claims.get("acr"), _number(claims, "auth_time")
    methods = tuple(str(method) for method in claims.get("amr", []))
    return claims, Login(acr if isinstance(acr, str) else "", methods, int(moment) if moment is not None else None)


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


def _signed_claims(token: str, keys: list[dict[str, Any]]) -> Claims:
    header = header_of(token)
    usable = [key for key in keys if key.get("use", "sig") == "sig" and _fits(key, header["alg"])]
    if "kid" in header:
        usable = [key for key in usable if key.get("kid") == header["kid"]]
    if len(usable) != 1:
        raise TokenRefused("kid")
    try:
        key = KeySet.import_key_set({"keys": usable}).keys[0]
        payload = jws.deserialize_compact(token.encode(), key, algorithms=[header["alg"]]).payload
    except (JoseError, ValueError, TypeError):
        raise TokenRefused("signature") from None
    return _object(payload)


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    kinds = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "Ed25519": ("OKP", "Ed25519")}
    kind, curve = kinds[algorithm]
    return (
        key.get("kty") == kind and (curve is None or key.get("crv") == curve) and key.get("alg", algorithm) == algorithm
    )


def _object(payload: bytes) -> Claims:
    def unique(pairs: list[tuple[str, Any]]) -> Claims:
        names = [name for name, _ in pairs]
        if len(names) != len(set(names)):
            raise TokenRefused("duplicate_claim")
        return dict(pairs)

    try:
        claims = json.loads(payload.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise TokenRefused("form") from None
    if not isinstance(claims, dict):
        raise TokenRefused("form")
    return claims
