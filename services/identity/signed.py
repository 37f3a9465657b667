"""Tokens that an OpenID provider signed (RFC 7515, RFC 8725): form, header, key and signature, each refused by name.

A maintained JOSE library verifies; which key and which algorithm it may use is decided here, never by the token.
"""

import base64
import functools
import json
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

# What each asks of a key, and the hash that `at_hash` takes (OpenID Connect Core 1.0, 3.1.3.6). RFC 9864 renamed EdDSA
# to Ed25519; providers send both, and here both mean that curve only.
ALGORITHMS: dict[str, tuple[str, str | None, str]] = {
    "RS256": ("RSA", None, "sha256"),
    "PS256": ("RSA", None, "sha256"),
    "ES256": ("EC", "P-256", "sha256"),
    "Ed25519": ("OKP", "Ed25519", "sha512"),
    "EdDSA": ("OKP", "Ed25519", "sha512"),
}
EDWARDS = ("EdDSA", "Ed25519")
SYMMETRIC = ("HS256", "HS384", "HS512")
LONGEST = 16_384
DEEPEST = 16
SEGMENTS = 3
# RFC 7518, 3.3.
SHORTEST_RSA_KEY = 2048
BANNED_HEADERS = ("jwk", "jku", "x5u", "x5c", "crit", "b64")
PLAIN_KIND = frozenset({"jwt"})
ALPHABET = re.compile(r"[A-Za-z0-9_.-]*")
# Only these members of a key are used, so that nothing else in it has a say.
MATERIAL: dict[str, tuple[type[RSAKey | ECKey | OKPKey], tuple[str, ...]]] = {
    "RSA": (RSAKey, ("n", "e")),
    "EC": (ECKey, ("crv", "x", "y")),
    "OKP": (OKPKey, ("crv", "x")),
}

JSON = dict[str, Any]


# The library's own; it knows EdDSA by its new name only.
VERIFY = JWSRegistry.algorithms | {"EdDSA": JWSRegistry.algorithms["Ed25519"]}


class TokenRefused(Exception):
    """A token that is not believed; `reason` names the check."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _has(name: str) -> Callable[[JSON, Collection[str]], bool]:
    return lambda header, _: name in header


def _is_of_another_kind(header: JSON, kinds: Collection[str]) -> bool:
    kind = header.get("typ", "jwt")
    return not isinstance(kind, str) or kind.lower().removeprefix("application/") not in kinds


# In this order; the first that is so is the reason.
DOUBTS: tuple[tuple[str, Callable[[JSON, Collection[str]], bool]], ...] = (
    ("alg_form", lambda header, _: not isinstance(header.get("alg"), str)),
    ("alg_none", lambda header, _: header["alg"].lower() == "none"),
    ("alg_symmetric", lambda header, _: header["alg"] in SYMMETRIC),
    ("alg_unknown", lambda header, _: header["alg"] not in ALGORITHMS),
    *((f"header_{name}", _has(name)) for name in BANNED_HEADERS),
    # Another kind of token of the same provider, signed with the same key (RFC 8725, 3.11).
    ("typ", _is_of_another_kind),
    # A token in a token (RFC 7519, 5.2).
    ("cty", _has("cty")),
    ("kid_form", lambda header, _: not isinstance(header.get("kid", ""), str)),
)


def header_of(token: str, kinds: Collection[str] = PLAIN_KIND) -> Mapping[str, Any]:
    """Return the protected header; raises TokenRefused when there is none that may be believed enough to pick a key.

    `kinds` are the values of `typ` that are right here, in small letters; a token without one passes, because most
    providers send none.
    """
    if len(token) > LONGEST:
        raise TokenRefused("too_long")
    if token.count(".") != SEGMENTS - 1:
        raise TokenRefused("segments")
    if not ALPHABET.fullmatch(token):
        raise TokenRefused("encoding")
    return _header(token.partition(".")[0], frozenset(kinds))


# A provider writes the same few headers again and again; a refused one is not kept.
@functools.lru_cache(maxsize=256)
def _header(segment: str, kinds: frozenset[str]) -> Mapping[str, Any]:
    header = _object(_decoded(segment), "header")
    for reason, is_so in DOUBTS:
        if is_so(header, kinds):
            raise TokenRefused(reason)
    return MappingProxyType(header)


def verified(
    token: str, keys: list[JSON], algorithms: Collection[str], kinds: Collection[str] = PLAIN_KIND
) -> tuple[JSON, str]:
    """Return the claims and the algorithm of a token that one of the keys signed; raises TokenRefused."""
    header = header_of(token, kinds)
    algorithm: str = header["alg"]
    if algorithm not in algorithms:
        raise TokenRefused("alg_not_pinned")
    key = _imported(*_material(_chosen(header, keys)))
    signed, _, signature = token.rpartition(".")
    try:
        # The library's verification alone: it would read form and header, which are decided above, a second time.
        believed = VERIFY[algorithm].verify(signed.encode(), _decoded(signature), key)
    except (JoseError, ValueError):
        believed = False
    if not believed:
        raise TokenRefused("signature")
    return _object(_decoded(signed.partition(".")[2]), "claims"), algorithm


def unverified(token: str, kinds: Collection[str] = PLAIN_KIND) -> JSON:
    """Return what a token says of itself, to find out whose keys to try; raises TokenRefused."""
    header_of(token, kinds)
    return _object(_decoded(token.split(".")[1]), "claims")


def _chosen(header: Mapping[str, Any], keys: list[JSON]) -> JSON:
    # What is left after each question; the first that leaves nothing is the reason.
    algorithm = header["alg"]
    names = EDWARDS if algorithm in EDWARDS else (algorithm,)
    questions: tuple[tuple[str, Callable[[JSON], bool]], ...] = (
        ("kid_unknown", lambda key: "kid" not in header or key.get("kid") == header["kid"]),
        ("key_use", lambda key: key.get("use", "sig") == "sig" and _may_verify(key)),
        ("key_type", lambda key: _is_of_type(key, algorithm)),
        # A key may say EdDSA where the token says Ed25519, and the other way round.
        ("key_alg", lambda key: key.get("alg", algorithm) in names),
    )
    for reason, fits in questions:
        keys = [key for key in keys if fits(key)]
        if not keys:
            raise TokenRefused(reason)
    if len(keys) > 1:
        raise TokenRefused("kid_ambiguous" if "kid" in header else "kid_missing")
    return keys[0]


def _may_verify(key: JSON) -> bool:
    uses = key.get("key_ops", ["verify"])
    return isinstance(uses, list) and "verify" in uses


def _is_of_type(key: JSON, algorithm: str) -> bool:
    kind, curve, _ = ALGORITHMS[algorithm]
    return key.get("kty") == kind and (curve is None or key.get("crv") == curve)


def _material(key: JSON) -> tuple[str, ...]:
    values = [key.get(name) for name in ("kty", *MATERIAL[key["kty"]][1])]
    texts = [value for value in values if isinstance(value, str) and value]
    if len(texts) != len(values):
        raise TokenRefused("key_broken")
    return tuple(texts)


@functools.lru_cache(maxsize=256)
def _imported(kind: str, *material: str) -> RSAKey | ECKey | OKPKey:
    importer, names = MATERIAL[kind]
    try:
        if kind == "RSA" and int.from_bytes(_decoded(material[0])).bit_length() < SHORTEST_RSA_KEY:
            raise TokenRefused("key_weak")
        return importer.import_key({"kty": kind, **dict(zip(names, material, strict=True))})
    except (JoseError, ValueError):
        raise TokenRefused("key_broken") from None


def _decoded(segment: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError:
        raise TokenRefused("encoding") from None


def _no_constant(name: str) -> None:
    # NaN and Infinity are Python's, not JSON's (RFC 8259, 6).
    raise ValueError(name)


class _Duplicate(Exception):
    """A member that occurs twice."""


def _unique(pairs: list[tuple[str, Any]]) -> JSON:
    if len(members := dict(pairs)) != len(pairs):
        raise _Duplicate
    return members


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _object(raw: bytes, what: str) -> JSON:
    try:
        value = DECODER.decode(raw.decode("utf-8"))
    except _Duplicate:
        raise TokenRefused(f"{what}_duplicate") from None
    except UnicodeDecodeError:
        raise TokenRefused(f"{what}_utf8") from None
    except ValueError:
        raise TokenRefused(f"{what}_json") from None
    except RecursionError:
        raise TokenRefused(f"{what}_nested") from None
    if not isinstance(value, dict):
        raise TokenRefused(f"{what}_object")
    _shallow(value, what)
    return value


def _shallow(value: JSON, what: str) -> None:
    # How deep Python's own parser goes depends on its version; how deep a token may be does not.
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [inner for inner in level if isinstance(inner, (dict, list))]
        if not level:
            return
    raise TokenRefused(f"{what}_nested")
