"""Who reads and replaces a Domain's access policy, and that it is recorded before it holds."""

import time
from dataclasses import replace
from typing import Any

import pytest

from libs.access_policy import AccessPolicy, Override, SecretLimits, Strength
from libs.clock import FixedClock
from libs.errors import AuditUnavailable, Forbidden, InvalidRequest, StepUpRequired
from libs.ids import uuid7
from libs.step_up import FRESH_FOR_S
from services.identity.access_policies import AccessPolicies, asked_to_bind
from services.identity.authority import Gate
from services.identity.grpc_access import packed, unpacked
from services.identity.model import Caller, InForce
from services.identity.tests.fakes import NOW, FakeAudit, FakeAuthority, FakePolicyStore, FakeStore, signed_in

pytestmark = pytest.mark.unit

ADMIN = signed_in()
POLICY = AccessPolicy(
    Strength(("urn:mfa", "urn:phr"), ("otp",), 120), {"ssh": Override(("urn:phr",), ("hwk",), 60), "tcp": Override()}
)


class Desk:
    def __init__(self) -> None:
        self.trace: list[str] = []
        self.domain_id = uuid7()
        this = f"domain:{self.domain_id}"
        self.authority = FakeAuthority(self.trace, {(ADMIN.reference, name, this) for name in ("read", "manage")})
        self.audit, self.store = FakeAudit(self.trace), FakePolicyStore(self.trace)
        directory = FakeStore(self.trace)
        self.rules = AccessPolicies(self.store, Gate(self.authority, self.audit, directory), FixedClock(NOW))


async def test_a_domain_without_a_policy_has_the_platforms() -> None:
    desk = Desk()
    assert await desk.rules.get(ADMIN, desk.domain_id) == AccessPolicy()


async def test_a_policy_is_recorded_and_then_kept() -> None:
    desk = Desk()
    assert await desk.rules.put(ADMIN, desk.domain_id, POLICY) == POLICY
    assert await desk.rules.get(ADMIN, desk.domain_id) == POLICY
    assert desk.trace[-3:] == ["audit", "put", "relation"]
    (row,) = desk.audit.rows
    assert (row.action, row.reason, row.object_id) == ("access_policy.put", "granted", str(desk.domain_id))


async def test_without_its_row_nothing_is_kept() -> None:
    desk = Desk()
    desk.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await desk.rules.put(ADMIN, desk.domain_id, POLICY)
    assert desk.store.policies == {}


@pytest.mark.parametrize("credential", ["api_token", "service_token", ""])
async def test_a_policy_is_put_in_person(credential: str) -> None:
    desk = Desk()
    with pytest.raises(Forbidden):
        await desk.rules.put(replace(ADMIN, credential=credential), desk.domain_id, POLICY)
    assert desk.store.policies == {}
    assert [(row.reason, row.context) for row in desk.audit.rows] == [("caveat_violation", {"token": ["credential"]})]


LAXER = {
    "another class": replace(POLICY, strength=replace(POLICY.strength, required_acr=("urn:mfa", "urn:phr", "urn:pwd"))),
    "no class of its own": replace(POLICY, strength=replace(POLICY.strength, required_acr=()), kinds={}),
    "fewer methods": replace(POLICY, strength=replace(POLICY.strength, required_amr=())),
    "older logins": replace(POLICY, strength=replace(POLICY.strength, max_auth_age_s=86_400)),
    "one kind without what it asked for": replace(POLICY, kinds={}),
}
TIGHTER = {
    "one class less": replace(POLICY, strength=replace(POLICY.strength, required_acr=("urn:phr",))),
    "one method more": replace(POLICY, strength=replace(POLICY.strength, required_amr=("otp", "hwk"))),
    "younger logins": replace(POLICY, strength=replace(POLICY.strength, max_auth_age_s=60)),
    "other bounds": replace(POLICY, max_ttl_s=1200),
}
STRONG: dict[str, Any] = {"acr": "urn:phr", "amr": ("otp", "hwk")}


def put_by(desk: Desk, **login: Any) -> Caller:
    """Return an administrator of the Domain who has just signed in there."""
    who = signed_in(str(desk.domain_id), **login)
    desk.authority.granted.add((who.reference, "manage", f"domain:{desk.domain_id}"))
    desk.store.policies[desk.domain_id] = POLICY
    return who


@pytest.mark.parametrize("name", LAXER)
async def test_who_makes_a_policy_laxer_satisfies_it(name: str) -> None:
    desk = Desk()
    weak = put_by(desk, acr="urn:pwd", amr=("pwd",))
    with pytest.raises(StepUpRequired) as refused:
        await desk.rules.put(weak, desk.domain_id, LAXER[name])
    assert set(refused.value.extra["acr_values"]) <= {"urn:mfa", "urn:phr"}
    assert refused.value.extra["acr_values"]
    assert desk.store.policies == {desk.domain_id: POLICY}
    (row,) = desk.audit.rows
    assert (row.reason, row.context["step_up"][0]) == ("caveat_violation", "acr_insufficient")
    strong = put_by(desk, **STRONG)
    assert await desk.rules.put(strong, desk.domain_id, LAXER[name]) == LAXER[name]


@pytest.mark.parametrize("name", TIGHTER)
async def test_a_policy_is_tightened_by_whoever_may_and_has_just_signed_in(name: str) -> None:
    desk = Desk()
    weak = put_by(desk, acr="urn:pwd", amr=("pwd",))
    assert await desk.rules.put(weak, desk.domain_id, TIGHTER[name]) == TIGHTER[name]


@pytest.mark.parametrize("policy", [*LAXER.values(), *TIGHTER.values()])
@pytest.mark.parametrize("age_s", [None, FRESH_FOR_S + 5, -300])
async def test_no_policy_is_put_with_an_old_login(policy: AccessPolicy, age_s: int | None) -> None:
    desk = Desk()
    old = put_by(desk, **STRONG, auth_time=None if age_s is None else int(time.time()) - age_s)
    with pytest.raises(StepUpRequired):
        await desk.rules.put(old, desk.domain_id, policy)
    assert desk.store.policies == {desk.domain_id: POLICY}


async def test_a_first_policy_is_put_where_nobody_has_said_yet_what_strong_is() -> None:
    desk = Desk()
    who = put_by(desk)
    desk.store.policies.clear()
    assert await desk.rules.put(who, desk.domain_id, POLICY) == POLICY


async def test_what_a_binding_asks_for_counts_where_the_policy_has_no_class_of_its_own() -> None:
    desk = Desk()
    desk.store.binding_acr = ("urn:mfa",)
    weak, wanted = put_by(desk, acr="urn:pwd"), AccessPolicy(Strength(("urn:pwd",)))
    desk.store.policies.clear()
    with pytest.raises(StepUpRequired):
        await desk.rules.put(weak, desk.domain_id, wanted)
    strong = put_by(desk, acr="urn:mfa")
    desk.store.policies.clear()
    assert await desk.rules.put(strong, desk.domain_id, wanted) == wanted


async def test_a_kind_is_not_loosened_by_way_of_what_nobody_satisfies() -> None:
    desk = Desk()
    desk.store.binding_acr = ("urn:mfa", "urn:phr")
    weak = put_by(desk, acr="urn:mfa")
    desk.store.policies[desk.domain_id] = AccessPolicy(Strength(), {"ssh": Override(("urn:phr",))})
    nobodys = AccessPolicy(Strength(), {"ssh": Override(("zz",))})
    assert await desk.rules.put(weak, desk.domain_id, nobodys) == nobodys
    with pytest.raises(StepUpRequired):
        await desk.rules.put(weak, desk.domain_id, AccessPolicy())


async def test_a_weaker_provider_of_a_domain_does_not_speak_for_the_others() -> None:
    desk = Desk()
    weak = put_by(desk, acr="urn:pwd")
    desk.store.policies.clear()
    desk.store.binding_acr, desk.store.bindings_acr = (), ((), ("urn:phr",))
    with pytest.raises(StepUpRequired) as refused:
        await desk.rules.put(weak, desk.domain_id, AccessPolicy(Strength(("urn:pwd",))))
    assert refused.value.extra["acr_values"] == ["urn:phr"]


def test_who_binds_a_provider_satisfies_the_strictest_kind_and_every_binding() -> None:
    who = signed_in(str(uuid7()))
    policy = AccessPolicy(Strength(("a", "b")), {"ssh": Override(("a",), ("hwk",), 60)})
    asked = asked_to_bind(who, InForce(policy, ("b",), (("b",), ("c",))))
    assert Strength(("a",), ("hwk",), FRESH_FOR_S) in asked
    open_policy = asked_to_bind(who, InForce(AccessPolicy(), (), ((), ("c",))))
    assert Strength(("c",), (), FRESH_FOR_S) in open_policy


async def test_the_platforms_people_mend_a_policy_that_nobody_satisfies() -> None:
    desk = Desk()
    desk.store.policies[desk.domain_id] = POLICY
    desk.store.binding_acr = ("urn:platform",)
    with pytest.raises(StepUpRequired):
        await desk.rules.put(ADMIN, desk.domain_id, AccessPolicy())
    strong = signed_in(acr="urn:platform")
    desk.authority.granted.add((strong.reference, "manage", f"domain:{desk.domain_id}"))
    assert await desk.rules.put(strong, desk.domain_id, AccessPolicy()) == AccessPolicy()


async def test_a_stranger_neither_reads_nor_puts() -> None:
    desk, stranger = Desk(), signed_in()
    with pytest.raises(Forbidden):
        await desk.rules.get(stranger, desk.domain_id)
    with pytest.raises(Forbidden):
        await desk.rules.put(stranger, desk.domain_id, POLICY)
    assert desk.store.policies == {}


async def test_a_laxer_kind_is_refused_before_anything() -> None:
    desk = Desk()
    with pytest.raises(InvalidRequest):
        await desk.rules.put(ADMIN, desk.domain_id, replace(POLICY, kinds={"ssh": Override(max_auth_age_s=121)}))
    assert desk.trace == []


@pytest.mark.parametrize("policy", [AccessPolicy(), POLICY, AccessPolicy(secret_limits=SecretLimits(1, None, 3))])
def test_a_policy_travels_whole(policy: AccessPolicy) -> None:
    assert unpacked(packed(policy)) == policy
