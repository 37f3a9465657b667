"""The step-up decision: cases in the threat's words, and all of them against the policy's own text."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.access_policy import AccessPolicy, Override, Strength
from libs.principal import SKEW_S, Principal
from libs.step_up import Login, StepUp, login_of, step_up

pytestmark = pytest.mark.unit

PHR, MFA, PWD = "urn:acr:phr", "urn:acr:mfa", "urn:acr:pwd"
NOW = 1_900_000_000.0
REQUIRED = Strength((PHR, MFA), ("otp", "hwk"), 300)
STRONG = Login(True, MFA, ("pwd", "otp", "hwk"), int(NOW) - 10)
ACR, AGE = REQUIRED.required_acr, REQUIRED.max_auth_age_s


@pytest.mark.parametrize(
    ("name", "login", "lacks"),
    [
        ("all of it", STRONG, None),
        ("the other class", replace(STRONG, acr=PHR), None),
        ("no acr", replace(STRONG, acr=""), StepUp(("acr_missing",), ACR)),
        ("wrong class", replace(STRONG, acr=PWD), StepUp(("acr_insufficient",), ACR)),
        ("a class that begins like one", replace(STRONG, acr=MFA + "x"), StepUp(("acr_insufficient",), ACR)),
        ("one second inside", replace(STRONG, auth_time=int(NOW) - 299), None),
        ("exactly at", replace(STRONG, auth_time=int(NOW) - 300), None),
        ("one second past", replace(STRONG, auth_time=int(NOW) - 301), StepUp(("auth_time_stale",), (), AGE)),
        ("no auth_time", replace(STRONG, auth_time=None), StepUp(("auth_time_missing",), (), AGE)),
        ("ahead within the skew", replace(STRONG, auth_time=int(NOW) + SKEW_S), None),
        ("ahead", replace(STRONG, auth_time=int(NOW) + SKEW_S + 1), StepUp(("auth_time_future",), (), AGE)),
        ("amr only", replace(STRONG, amr=("otp",)), StepUp(("amr_missing",))),
        ("no amr", replace(STRONG, amr=()), StepUp(("amr_missing",))),
        ("acr and age", replace(STRONG, acr="", auth_time=0), StepUp(("acr_missing", "auth_time_stale"), ACR, AGE)),
        ("nobody vouches", replace(STRONG, believed=False), StepUp(("idp_claims",), ACR, AGE)),
    ],
)  # fmt: skip
def test_a_login(name: str, login: Login, lacks: StepUp | None) -> None:
    assert step_up(REQUIRED, login, NOW) == lacks


def test_where_nothing_is_required_nothing_is_enough_and_nothing_helps() -> None:
    assert step_up(Strength(), STRONG, NOW) == StepUp(("acr_unconfigured",))
    assert step_up(Strength(), replace(STRONG, acr=""), NOW) == StepUp(("acr_unconfigured",))


def test_the_skew_never_makes_a_login_younger() -> None:
    for past in (0.001, 0.5, SKEW_S, SKEW_S + 1):
        assert step_up(REQUIRED, replace(STRONG, auth_time=int(NOW) - 300), NOW + past) is not None


@pytest.mark.parametrize(
    ("kind", "credential", "believed"),
    [
        ("user", "session", True),
        ("user", "access_token", True),
        ("user", "api_token", False),
        ("service", "service_token", False),
        ("service", "api_token", False),
        ("service", "session", False),
        ("node", "node_key", False),
        ("user", "", False),
    ],
)
def test_only_a_person_who_signed_in_is_vouched_for(kind: str, credential: str, believed: bool) -> None:  # noqa: FBT001 — a case
    principal = Principal("someone", kind, credential, acr=MFA, amr=("otp", "hwk"), auth_time=int(NOW))
    login = login_of(principal)
    assert login.believed is believed
    assert (step_up(REQUIRED, login, NOW) is None) is believed


AGES = (1, 60, 299, 300, 301, 900)
SINCE = (0, 1, 59, 60, 61, 299, 300, 301, 302, 899, 900, 901, -4, -5, -6, -600)


class Case:
    """A policy and a login, made from one number: drawing them part by part would take a hundred times as long."""

    def __init__(self, number: int) -> None:
        self.dice = random.Random(number)
        kinds = {kind: self.override() for kind in ("ssh", "k8s") if self.of((True, False))}
        self.policy = AccessPolicy(
            Strength(self.some(PHR, MFA, PWD), self.some("pwd", "otp", "hwk"), self.of(AGES)), kinds
        )
        self.kind, self.binding_acr = self.of(("ssh", "k8s", "tcp")), self.some(PHR, MFA, PWD)
        since = self.of((None, *SINCE))
        auth_time = None if since is None else int(NOW) - since
        believed = self.of((True, True, True, True, False))
        amr = self.of((("pwd", "otp", "hwk"), self.some("pwd", "otp", "hwk")))
        self.login = Login(believed, self.of(("", PHR, PHR, MFA, PWD, "other")), amr, auth_time)

    def of(self, choices: tuple[Any, ...]) -> Any:
        return self.dice.choice(choices)

    def some(self, *values: str) -> tuple[str, ...]:
        return tuple(value for value in values if self.of((False, True)))

    def override(self) -> Override:
        return Override(self.some(PHR, MFA, PWD), self.some("pwd", "otp", "hwk"), self.of((None, *AGES)))


CASES = st.integers(0, 2**64).map(Case)


def written_out(policy: AccessPolicy, kind: str, binding_acr: tuple[str, ...], login: Login) -> bool:  # noqa: PLR0911 — a sentence is a line
    """The policy's text, sentence by sentence; each says why not, and who is left may."""
    own = policy.kinds.get(kind)
    if not login.believed:
        return False
    # Any one of the acr values; without values the binding's; without these either, refuse.
    if policy.strength.required_acr and login.acr not in policy.strength.required_acr:
        return False
    if not policy.strength.required_acr and login.acr not in binding_acr:
        return False
    # All of the amr values.
    if any(method not in login.amr for method in policy.strength.required_amr):
        return False
    # A maximum age; a time in the future beyond the skew is none at all.
    if login.auth_time is None or login.auth_time - NOW > 5:
        return False
    if login.auth_time + policy.strength.max_auth_age_s < NOW:
        return False
    # What a kind asks for comes on top of that.
    if own is None:
        return True
    if own.required_acr and login.acr not in own.required_acr:
        return False
    if any(method not in login.amr for method in own.required_amr):
        return False
    return own.max_auth_age_s is None or login.auth_time + own.max_auth_age_s >= NOW


@settings(max_examples=10_000)
@given(CASES)
def test_decision_and_policy_text_never_disagree(case: Case) -> None:
    lacks = step_up(case.policy.required(case.kind, case.binding_acr), case.login, NOW)
    assert (lacks is None) is written_out(case.policy, case.kind, case.binding_acr, case.login)


@given(CASES)
def test_whoever_does_what_the_challenge_says_lacks_only_what_it_could_not_name(case: Case) -> None:
    required = case.policy.required(case.kind, case.binding_acr)
    lacks = step_up(required, case.login, NOW)
    if lacks is None:
        return
    acr = lacks.acr_values[0] if lacks.acr_values else case.login.acr
    fresh = int(NOW) if lacks.max_age_s is not None else case.login.auth_time
    after = step_up(required, Login(True, acr, case.login.amr, fresh), NOW)
    assert after is None or set(after.missing) <= {"amr_missing", "acr_unconfigured"}
