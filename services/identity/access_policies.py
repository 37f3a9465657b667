"""The rules of access policies: what a Domain asks of people before they get a privileged session."""

from dataclasses import dataclass
from uuid import UUID

from libs.access_policy import AccessPolicy, checked
from libs.clock import Clock
from services.identity.authority import Act, Gate
from services.identity.model import Caller
from services.identity.ports import AccessPolicyStore


@dataclass(frozen=True)
class AccessPolicies:
    """Shows and replaces policies."""

    store: AccessPolicyStore
    gate: Gate
    clock: Clock

    async def get(self, caller: Caller, domain_id: UUID) -> AccessPolicy:
        """Return a Domain's policy; without one of its own the platform's default holds."""
        await self.gate.read(caller, "read", f"domain:{domain_id}")
        return await self.store.access_policy(domain_id) or AccessPolicy()

    async def put(self, caller: Caller, domain_id: UUID, policy: AccessPolicy) -> AccessPolicy:
        """Replace a Domain's policy; what it asks for is asked from the next request for a session on."""
        policy, this = checked(policy), f"domain:{domain_id}"
        await self.gate.write(
            caller, "manage", this, Act("access_policy.put", this, str(domain_id), in_person=True)
        )  # fmt: skip
        await self.store.put_access_policy(domain_id, policy, self.clock.now())
        return policy
