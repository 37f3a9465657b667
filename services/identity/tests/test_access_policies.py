"""Who reads and replaces a Domain's access policy, and that it is recorded before it holds."""

import datetime
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from libs.access_policy import AccessPolicy, Override, SecretLimits, Strength
from libs.clock import FixedClock
from libs.errors import AuditUnavailable, Forbidden, InvalidRequest
from libs.ids import uuid7
from services.identity.access_policies import AccessPolicies
from services.identity.authority import Gate
from services.identity.grpc_access import packed, unpacked
from services.identity.model import Caller, SessionTerms
from services.identity.tests.fakes import NOW, FakeAudit, FakeAuthority, FakeStore

pytestmark = pytest.mark.unit

ADMIN = Caller("user", str(uuid7()), "session")
POLICY = AccessPolicy(
    Strength(("urn:mfa", "urn:phr"), ("otp",), 120), {"ssh": Override(("urn:phr",), ("hwk",), 60), "tcp": Override()}
)


@dataclass
class FakePolicyStore:
    trace: list[str]
    policies: dict[UUID, AccessPolicy] = field(default_factory=dict)

    async def access_policy(self, domain_id: UUID) -> AccessPolicy | None:
        return self.policies.get(domain_id)

    async def put_access_policy(self, domain_id: UUID, policy: AccessPolicy, at: datetime.datetime) -> None:
        self.trace.append("put")
        self.policies[domain_id] = policy

    async def session_terms(self, resource_id: UUID, identity_id: UUID) -> SessionTerms | None:
        raise NotImplementedError

    async def ended_sign_ins(self, sign_in_ids: list[UUID]) -> list[UUID]:
        raise NotImplementedError


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


async def test_a_stranger_neither_reads_nor_puts() -> None:
    desk, stranger = Desk(), Caller("user", str(uuid7()), "session")
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
