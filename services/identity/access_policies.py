"""The rules of access policies: what a Domain asks of people before they get a privileged session."""

from dataclasses import dataclass
from uuid import UUID

from libs.access_policy import KINDS, AccessPolicy, Strength, checked
from libs.clock import Clock
from services.identity.authority import FRESH_FOR_S, IN_PERSON, Act, Gate
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
        """Replace a Domain's policy; what it asks for is asked from the next request for a session on.

        Whoever makes it laxer satisfies the one in force, or a weak login would open what it cannot enter.
        """
        policy, this = checked(policy), f"domain:{domain_id}"
        before, binding_acr = await self.store.in_force(domain_id, UUID(caller.subject))
        required = asked_to_loosen(caller, before, policy, binding_acr)
        act = Act("access_policy.put", this, str(domain_id), in_person=True, required=required)
        await self.gate.write(caller, "manage", this, act)
        await self.store.put_access_policy(domain_id, before, policy, self.clock.now())
        return policy


def asked_to_loosen(
    caller: Caller, before: AccessPolicy, after: AccessPolicy, binding_acr: tuple[str, ...]
) -> tuple[Strength, ...]:
    """Return what a login must be to put one policy for another."""
    if not caller.domain_id:
        return (of_the_platform(binding_acr),)
    # Without values of its own a policy takes those of each person's binding, of which some may ask for less.
    dropped = bool(before.strength.required_acr) and not after.strength.required_acr
    asked = [(before.required(kind, binding_acr), after.required(kind, binding_acr)) for kind in KINDS]
    return (IN_PERSON, *dict.fromkeys(old for old, new in asked if dropped or not new.within(old)))


def asked_to_decide(caller: Caller, policy: AccessPolicy, binding_acr: tuple[str, ...]) -> tuple[Strength, ...]:
    """Return what a login must be to decide who is believed in a Domain, or who may what: it could be himself."""
    if not caller.domain_id:
        return (of_the_platform(binding_acr),)
    own = policy.strength
    return (Strength(own.required_acr or binding_acr, own.required_amr, FRESH_FOR_S),)


def of_the_platform(binding_acr: tuple[str, ...]) -> Strength:
    """Return what is asked of the platform's people: what their own provider can say, as a Domain's is not theirs."""
    return Strength(binding_acr, (), FRESH_FOR_S)
