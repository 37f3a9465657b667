"""The access policy: what it may say, and what a kind of session asks for by it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.access_policy import (
    HIGHEST_LIMITS,
    KINDS,
    LONGEST_TTL_S,
    AccessPolicy,
    Override,
    SecretLimits,
    Strength,
    checked,
)
from libs.errors import InvalidRequest

pytestmark = pytest.mark.unit

PHR, MFA, PWD = "urn:acr:phr", "urn:acr:mfa", "urn:acr:pwd"
BASE = Strength((PHR, MFA), ("otp",), 300)
VALUES = st.lists(st.sampled_from([PHR, MFA, PWD]), max_size=3).map(tuple)


def test_the_default_asks_for_what_the_binding_asks_for() -> None:
    assert AccessPolicy().required("ssh", (MFA,)) == Strength((MFA,), (), 300)
    assert AccessPolicy().required("ssh", ()).required_acr == ()
    assert checked(AccessPolicy()) == AccessPolicy()


def test_a_policys_own_values_come_before_the_bindings() -> None:
    assert AccessPolicy(BASE).required("ssh", (PWD,)) == BASE


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        (Override(), BASE),
        (Override(required_acr=(PHR,)), replace(BASE, required_acr=(PHR,))),
        (Override(required_acr=(PWD,)), replace(BASE, required_acr=())),
        (Override(required_amr=("hwk", "otp")), replace(BASE, required_amr=("otp", "hwk"))),
        (Override(max_auth_age_s=60), replace(BASE, max_auth_age_s=60)),
        (Override(max_auth_age_s=900), BASE),
    ],
)
def test_an_override_narrows_its_own_kind(override: Override, wanted: Strength) -> None:
    policy = AccessPolicy(BASE, {"ssh": override})
    assert policy.required("ssh", ()) == wanted
    assert policy.required("tcp", ()) == BASE


@given(VALUES, VALUES, VALUES, st.integers(1, 900), st.none() | st.integers(1, 900))
def test_no_override_lets_in_what_its_policy_does_not(
    acr: tuple[str, ...], own: tuple[str, ...], binding: tuple[str, ...], age: int, own_age: int | None
) -> None:
    policy = AccessPolicy(Strength(acr, ("otp",), age), {"ssh": Override(own, ("hwk",), own_age)})
    base, narrowed = policy.required("tcp", binding), policy.required("ssh", binding)
    assert set(narrowed.required_acr) <= set(base.required_acr)
    assert set(narrowed.required_amr) >= set(base.required_amr)
    assert narrowed.max_auth_age_s <= base.max_auth_age_s


@pytest.mark.parametrize(
    "wrong",
    [
        AccessPolicy(Strength(max_auth_age_s=0)),
        AccessPolicy(Strength(max_auth_age_s=86_401)),
        AccessPolicy(Strength(required_acr=("two words",))),
        AccessPolicy(Strength(required_acr=('quo"te',))),
        AccessPolicy(Strength(required_acr=("",))),
        AccessPolicy(Strength(required_amr=("back\\slash",))),
        AccessPolicy(Strength(required_amr=tuple(f"m{n}" for n in range(17)))),
        AccessPolicy(max_ttl_s=LONGEST_TTL_S + 1),
        AccessPolicy(default_ttl_s=901, max_ttl_s=900),
        AccessPolicy(default_ttl_s=0),
        AccessPolicy(max_active_per_identity=0),
        AccessPolicy(max_active_per_node=-1),
        AccessPolicy(issue_rate_per_minute=10_001),
        *(AccessPolicy(secret_limits=SecretLimits(**{name: 0})) for name in HIGHEST_LIMITS),
        *(AccessPolicy(secret_limits=SecretLimits(**{name: most + 1})) for name, most in HIGHEST_LIMITS.items()),
        AccessPolicy(kinds={"rdp": Override()}),
        AccessPolicy(BASE, {"ssh": Override(required_acr=(PWD,))}),
        AccessPolicy(BASE, {"ssh": Override(max_auth_age_s=301)}),
        AccessPolicy(BASE, {"ssh": Override(max_auth_age_s=0)}),
        AccessPolicy(BASE, {"ssh": Override(required_amr=("\n",))}),
    ],
)
def test_a_policy_that_cannot_be_kept(wrong: AccessPolicy) -> None:
    with pytest.raises(InvalidRequest):
        checked(wrong)


def test_a_policy_whose_kinds_are_stricter_is_kept() -> None:
    policy = AccessPolicy(BASE, {kind: Override((PHR,), ("hwk",), 60) for kind in KINDS})
    assert checked(policy) is policy


def test_limits_of_secrets_are_kept_up_to_the_platforms_bounds() -> None:
    policy = AccessPolicy(secret_limits=SecretLimits(**HIGHEST_LIMITS))
    assert checked(policy) is policy


@pytest.mark.parametrize(("requested", "granted"), [(0, 900), (1, 1), (900, 900), (3600, 3600), (3601, 3600)])
def test_a_lifetime_is_clamped(requested: int, granted: int) -> None:
    assert AccessPolicy().ttl_s(requested) == granted
