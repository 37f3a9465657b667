"""The step-up decision: whether a login is strong and fresh enough, and if not, what would be (RFC 9470)."""

from dataclasses import dataclass

from libs.access_policy import Strength
from libs.errors import StepUpRequired
from libs.principal import SKEW_S, Principal

# How old a login may be that decides in person who is believed, or who may what. As long as an access token lasts:
# whoever has just signed in on a device need not do so again.
FRESH_FOR_S = 15 * 60
IN_PERSON = Strength(max_auth_age_s=FRESH_FOR_S)
# What a person gets by signing in. Everything else lies in files, and no provider vouches for who holds it now.
BY_PERSON = frozenset({"session", "access_token"})


@dataclass(frozen=True)
class Login:
    """What identity verified of a login; `believed` is False where there was none. Times are Unix seconds."""

    believed: bool = False
    acr: str = ""
    amr: tuple[str, ...] = ()
    auth_time: int | None = None


@dataclass(frozen=True)
class StepUp:
    """What is missing, by name, and what a client asks its provider for: nothing where nothing helps."""

    missing: tuple[str, ...]
    acr_values: tuple[str, ...] = ()
    max_age_s: int | None = None


def login_of(principal: Principal) -> Login:
    """Return the login behind a caller."""
    if principal.kind != "user" or principal.credential not in BY_PERSON:
        return Login()
    return Login(True, principal.acr, principal.amr, principal.auth_time)


def step_up(required: Strength, login: Login, now: float) -> StepUp | None:
    """Return what a login lacks; None when it lacks nothing.

    Where nobody said what strong is, nothing is.
    """
    found = lacking(required, login, now)
    if required.required_acr or not login.believed:
        return found
    found = found or StepUp(())
    return StepUp(("acr_unconfigured", *found.missing), (), found.max_age_s)


def lacking(required: Strength, login: Login, now: float) -> StepUp | None:
    """Return what a login lacks of what is asked for; None when it lacks nothing.

    A login is fresh while its age is at most the limit. The skew concerns only clocks that are ahead: it never makes an
    old login younger.
    """
    if not login.believed:
        return StepUp(("idp_claims",), required.required_acr, required.max_auth_age_s)
    acr, age = _acr(required, login), _age(required, login, now)
    amr = ("amr_missing",) if not set(required.required_amr) <= set(login.amr) else ()
    if not (acr or age or amr):
        return None
    return StepUp((*acr, *age, *amr), required.required_acr if acr else (), required.max_auth_age_s if age else None)


def _acr(required: Strength, login: Login) -> tuple[str, ...]:
    if not required.required_acr:
        return ()
    if not login.acr:
        return ("acr_missing",)
    return () if login.acr in required.required_acr else ("acr_insufficient",)


def _age(required: Strength, login: Login, now: float) -> tuple[str, ...]:
    if login.auth_time is None:
        return ("auth_time_missing",)
    if login.auth_time > now + SKEW_S:
        return ("auth_time_future",)
    return ("auth_time_stale",) if now - login.auth_time > required.max_auth_age_s else ()


def challenge(lacks: StepUp) -> StepUpRequired:
    """Return the refusal that tells a client what to ask its provider for (RFC 9470)."""
    return StepUpRequired(
        f"the sign-in is not enough: {', '.join(lacks.missing)}",
        missing=list(lacks.missing),
        acr_values=list(lacks.acr_values),
        max_age_s=lacks.max_age_s,
    )
