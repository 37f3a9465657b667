"""The rules of access policies: what a Domain asks of people before they get a privileged session."""

from dataclasses import dataclass, replace
from uuid import UUID

from libs.access_policy import KINDS, AccessPolicy, Strength, checked
from libs.clock import Clock
from libs.step_up import FRESH_FOR_S, IN_PERSON
from services.identity.authority import Act, Gate
from services.identity.model import Caller, InForce
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
        asked = await self.store.in_force(domain_id, UUID(caller.subject))
        required = asked_to_loosen(caller, asked, policy)
        act = Act("access_policy.put", this, str(domain_id), in_person=True, required=required)
        await self.gate.write(caller, "manage", this, act)
        await self.store.put_access_policy(domain_id, asked.policy, policy, self.clock.now())
        return policy


def asked_to_loosen(caller: Caller, asked: InForce, after: AccessPolicy) -> tuple[Strength, ...]:
    """Return what a login must be to put a policy for the one in force."""
    if not caller.domain_id:
        return (of_the_platform(asked),)
    before = asked.policy
    # Without values of its own a policy takes those of each person's binding, of which some may ask for less.
    dropped = bool(before.strength.required_acr) and not after.strength.required_acr
    changes = [
        (strictly(before, kind, acr), after.required(kind, acr))
        for kind in KINDS
        for acr in asked.bindings_acr or ((),)
    ]
    return (IN_PERSON, *dict.fromkeys(old for old, new in changes if dropped or not new.within(old)))


def asked_to_bind(caller: Caller, asked: InForce) -> tuple[Strength, ...]:
    """Return what a login must be to decide who is believed in a Domain: whoever does could believe himself."""
    if not caller.domain_id:
        return (of_the_platform(asked),)
    every = [strictly(asked.policy, kind, acr) for kind in KINDS for acr in asked.bindings_acr or ((),)]
    return tuple(dict.fromkeys(replace(one, max_auth_age_s=FRESH_FOR_S) for one in every))


def asked_to_give(caller: Caller, asked: InForce) -> tuple[Strength, ...]:
    """Return what a login must be to give a role: a weak one would give it to somebody whose own is strong."""
    if not caller.domain_id:
        return (of_the_platform(asked),)
    own = asked.policy.strength
    return (Strength(own.required_acr or asked.own_acr, own.required_amr, FRESH_FOR_S),)


def strictly(policy: AccessPolicy, kind: str, binding_acr: tuple[str, ...]) -> Strength:
    """Return what a kind asks for, and where no login could satisfy it what it names all the same.

    Or a kind would be loosened in two steps: first to what nobody has, and from there to anything.
    """
    found, override = policy.required(kind, binding_acr), policy.kinds.get(kind)
    if found.required_acr or override is None:
        return found
    return replace(found, required_acr=override.required_acr)


def of_the_platform(asked: InForce) -> Strength:
    """Return what is asked of the platform's people: what their own provider can say, as a Domain's is not theirs."""
    return Strength(asked.own_acr, (), FRESH_FOR_S)
