"""id_token validation (OpenID Connect Core 1.0, 3.1.3.7): tables of small checks, each with its own reason.

Signature and form first (signed.py), then the form of each claim, then what it says. The reason goes to log, metric and
audit; outwards there is one code.
"""

import base64
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from services.identity.sign_in_model import Login
from services.identity.signed import ALGORITHMS, JSON, LONGEST, TokenRefused, header_of, verified

LEEWAY_S, LONGEST_LEEWAY_S = 30, 60
# OpenID Connect Core 1.0, 2.
LONGEST_SUBJECT = 255
# As many as the contract shows of them.
MOST_METHODS = 16
# Beyond it a JSON number is no longer exact (RFC 8259, 6).
LAST_MOMENT = 2**53


@dataclass(frozen=True)
class Expected:
    """What an id_token must say; `now` is Unix seconds.

    `required_acr` is the binding's floor, `asked_acr` what this sign-in asked for: asking must not lower the floor.
    Every method of `amr` must be in `accepted_amr`, and there must be one, unless that is empty; all of `required_amr`
    must be among them. `max_age_s` is the smaller of what the binding and the sign-in ask for; `leeway_s` never widens
    it. Raises ValueError for a leeway over a minute, and for algorithms that are none of the asymmetric ones.
    """

    issuer: str
    client_id: str
    nonce: str
    now: float
    access_token: str = ""
    required_acr: tuple[str, ...] = ()
    asked_acr: tuple[str, ...] = ()
    required_amr: tuple[str, ...] = ()
    accepted_amr: tuple[str, ...] = ()
    max_age_s: int | None = None
    leeway_s: int = LEEWAY_S
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)

    def __post_init__(self) -> None:
        if not 0 <= self.leeway_s <= LONGEST_LEEWAY_S:
            raise ValueError("the leeway is 0 to 60 s")
        if not self.algorithms or not set(self.algorithms) <= set(ALGORITHMS):
            raise ValueError("only asymmetric algorithms can be pinned")


def _is_text(value: object) -> bool:
    # A lone surrogate is valid JSON, and has no encoding; it is not printable either.
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_SUBJECT and value.isprintable()


def _is_subject(value: object) -> bool:
    return isinstance(value, str) and value != "" and _is_plain(value) and value.isascii()


def _is_moment(value: object) -> bool:
    # 1e400 is valid JSON, and infinite here; an integer of 400 digits is not even a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LAST_MOMENT


def _are_audiences(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and value != [] and all(map(_is_text, value)))


def _are_methods(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MOST_METHODS and all(map(_is_plain, value))


REQUIRED = ("iss", "sub", "aud", "exp", "iat", "nonce")
FORMS: dict[str, Callable[[object], bool]] = {
    "iss": _is_text,
    "sub": _is_subject,
    "aud": _are_audiences,
    "azp": _is_text,
    "exp": _is_moment,
    "nbf": _is_moment,
    "iat": _is_moment,
    "nonce": _is_text,
    "at_hash": _is_text,
    "auth_time": _is_moment,
    "acr": _is_plain,
    "amr": _are_methods,
    # OpenID Connect Back-Channel Logout 1.0, 2.1.
    "sid": _is_plain,
}


def _audiences(claims: JSON) -> set[str]:
    audience = claims["aud"]
    return set(audience) if isinstance(audience, list) else {audience}


def _at_hash(access_token: str, algorithm: str) -> str:
    whole = hashlib.new(ALGORITHMS[algorithm][2], access_token.encode()).digest()
    return base64.urlsafe_b64encode(whole[: len(whole) // 2]).decode().rstrip("=")


def _methods_are_accepted(claims: JSON, want: Expected) -> bool:
    methods = set(claims.get("amr", ()))
    return not want.accepted_amr or (methods != set() and methods <= set(want.accepted_amr))


# In this order; the first that fails is the reason. Each may count on the form of the claims.
CHECKS: tuple[tuple[str, Callable[[JSON, Expected], Any]], ...] = (
    # Only a logout token has it (OpenID Connect Back-Channel Logout 1.0, 2.4).
    ("events", lambda claims, _: "events" not in claims),
    ("iss", lambda claims, want: claims["iss"] == want.issuer),
    ("aud", lambda claims, want: want.client_id in _audiences(claims)),
    ("azp_missing", lambda claims, _: len(_audiences(claims)) == 1 or "azp" in claims),
    ("azp", lambda claims, want: claims.get("azp", want.client_id) == want.client_id),
    # Who else may present it could present it here; a binding names nobody whom it trusts with that (3.1.3.7, 3).
    ("aud_untrusted", lambda claims, _: len(_audiences(claims)) == 1),
    ("exp", lambda claims, want: claims["exp"] > want.now - want.leeway_s),
    ("nbf", lambda claims, want: claims.get("nbf", 0) <= want.now + want.leeway_s),
    ("iat", lambda claims, want: claims["iat"] <= want.now + want.leeway_s),
    ("nonce", lambda claims, want: claims["nonce"] == want.nonce),
    ("auth_time_future", lambda claims, want: claims.get("auth_time", 0) <= want.now + want.leeway_s),
    ("auth_time_missing", lambda claims, want: want.max_age_s is None or "auth_time" in claims),
    # The leeway is for clocks, never for the age of a login.
    ("auth_time", lambda claims, want: want.max_age_s is None or want.now - claims["auth_time"] <= want.max_age_s),
    ("acr_missing", lambda claims, want: "acr" in claims or not (want.required_acr or want.asked_acr)),
    ("acr", lambda claims, want: not want.required_acr or claims["acr"] in want.required_acr),
    ("acr_asked", lambda claims, want: not want.asked_acr or claims["acr"] in want.asked_acr),
    ("amr", lambda claims, want: set(want.required_amr) <= set(claims.get("amr", ()))),
    ("amr_accepted", _methods_are_accepted),
)


def formed(claims: JSON, required: Collection[str] = REQUIRED) -> JSON:
    """Return the claims that say something; raises TokenRefused for a required one that does not, or a wrong form."""
    claims = {name: value for name, value in claims.items() if value is not None}
    for name in required:
        if name not in claims:
            raise TokenRefused(f"{name}_missing")
    for name, has_form in FORMS.items():
        if name in claims and not has_form(claims[name]):
            raise TokenRefused(f"{name}_form")
    return claims


def credential(answer: JSON, name: str) -> str:
    """Return a token of a token endpoint's answer, or nothing; raises TokenRefused when it cannot be one."""
    value = answer.get(name)
    if value is None:
        return ""
    # RFC 6749, A.12 and A.17.
    if not (isinstance(value, str) and len(value) <= LONGEST and value.isascii() and value.isprintable()):
        raise TokenRefused(f"{name}_form")
    return value


def validate(token: str, keys: list[JSON], want: Expected) -> tuple[JSON, Login]:
    """Return the claims and the login; raises TokenRefused with the reason of the first check that fails."""
    claims, algorithm = verified(token, keys, want.algorithms)
    claims = formed(claims)
    for reason, check in CHECKS:
        if not check(claims, want):
            raise TokenRefused(reason)
    if "at_hash" in claims and claims["at_hash"] != _at_hash(want.access_token, algorithm):
        raise TokenRefused("at_hash")
    moment = claims.get("auth_time")
    login = Login(claims.get("acr", ""), tuple(claims.get("amr", ())), None if moment is None else int(moment))
    return claims, login


__all__ = ["Expected", "TokenRefused", "credential", "formed", "header_of", "validate"]
