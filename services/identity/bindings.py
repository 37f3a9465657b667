"""IdP bindings: which OpenID provider a Domain, or the platform, believes, and what of it."""

import datetime
import re
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from libs.clock import Clock
from libs.decision import ANONYMOUS
from libs.errors import BindingConflict, EmptyPatch, InvalidRequest, NotFound
from libs.ids import uuid7
from services.identity.access_policies import asked_to_bind
from services.identity.authority import Act, Gate
from services.identity.egress import is_issuer
from services.identity.model import Caller
from services.identity.ports import AccessPolicyStore
from services.identity.sign_in_model import ALGORITHMS, SCOPES, Binding
from services.identity.sign_in_ports import BindingStore, Provider

# RFC 6749, 3.3.
SCOPE = re.compile(r"[!#-\[\]-~]{1,256}")
TICK = datetime.timedelta(microseconds=1)
# What of the platform's binding is the settings file's to say.
STATED = ("client_id", "client_secret_ref", "discovery_url")
NIL = UUID(int=0)
TWINS = frozenset({"EdDSA", "Ed25519"})


def resource_of(domain_id: UUID | None) -> str:
    """Return the object whose `manage` decides about bindings."""
    return f"domain:{domain_id}" if domain_id else "platform:main"


def discovery_of(issuer: str) -> str:
    """Return where an issuer's discovery document is, and nowhere else (OpenID Connect Discovery 1.0, 4)."""
    return issuer.removesuffix("/") + "/.well-known/openid-configuration"


async def offered(store: BindingStore, domain_id: UUID | None) -> list[Binding]:
    """Return through which bindings somebody may sign in; an unknown Domain answers as one without any."""
    own = await store.bindings(domain_id) if domain_id else []
    return [one for one in own or await store.bindings(None) if one.status == "active"]


def checked(binding: Binding) -> Binding:
    """Return a binding in full; raises InvalidRequest for one that cannot be believed, or lets nobody in."""
    owner = str(binding.domain_id or "platform")
    if not is_issuer(binding.issuer):
        raise InvalidRequest("issuer must be an https URL without query and fragment")
    # A document elsewhere could name this issuer with keys of its own, and sign in as anybody whom it has here.
    if binding.discovery_url != discovery_of(binding.issuer):
        raise InvalidRequest(f"discovery_url must be {discovery_of(binding.issuer)}: the issuer says where it is")
    # An owner names only its own secrets: identity would hand another one's to the provider that this binding names.
    if not re.fullmatch(rf"kv/idp/{owner}/[a-z0-9][a-z0-9-]{{0,62}}", binding.client_secret_ref):
        raise InvalidRequest(f"client_secret_ref must be a reference like kv/idp/{owner}/<name>, never the secret")
    if not binding.client_id:
        raise InvalidRequest("client_id is empty")
    if not all(map(SCOPE.fullmatch, binding.scopes)):
        raise InvalidRequest("a scope has characters that no scope may have")
    if not set(binding.algorithms) <= set(ALGORITHMS):
        raise InvalidRequest(f"id_tokens may be signed with {', '.join(ALGORITHMS)} only")
    if binding.accepted_amr and not set(binding.required_amr) <= set(binding.accepted_amr):
        raise InvalidRequest("required_amr asks for a method that accepted_amr refuses")
    algorithms = dict.fromkeys(binding.algorithms or ALGORITHMS)
    algorithms |= dict.fromkeys(sorted(TWINS)) if TWINS & algorithms.keys() else {}
    scopes = dict.fromkeys(("openid", *(binding.scopes or SCOPES)))
    return replace(binding, scopes=tuple(scopes), algorithms=tuple(algorithms))


@dataclass(frozen=True)
class Bindings:
    """Creates, shows, changes and takes away bindings."""

    store: BindingStore
    provider: Provider
    gate: Gate
    policies: AccessPolicyStore
    clock: Clock

    async def create(self, caller: Caller, binding: Binding) -> Binding:
        """Create a binding; the client secret stays in OpenBao, behind its reference."""
        now = self.clock.now()
        binding = checked(replace(binding, id=uuid7(), status="active", created_at=now, updated_at=now))
        act = await self._decision(caller, binding.domain_id, Act("idp_binding.create", f"idp_binding:{binding.id}"))
        await self.gate.write(caller, "manage", resource_of(binding.domain_id), act)
        # Whoever binds hears at once that nobody could sign in like this.
        await self.provider.metadata(binding)
        await self.store.add_binding(binding)
        return binding

    async def ensure(self, stated: Binding) -> None:
        """Let the platform's binding be as the settings file states it, with a row when that changes something."""
        known = next((one for one in await self.store.bindings(None) if one.issuer == stated.issuer), None)
        if known and all(getattr(known, name) == getattr(stated, name) for name in STATED):
            return
        verb, this = ("update", known.id) if known else ("create", stated.id)
        # Whoever writes the file is nobody that the system knows.
        await self.gate.record(Caller(ANONYMOUS, ""), "manage", Act(f"idp_binding.{verb}", f"idp_binding:{this}"))
        await self.store.ensure_binding(stated)

    async def get(self, caller: Caller, binding_id: UUID) -> Binding:
        """Return a binding; who may not manage its Domain learns nothing of it."""
        binding = await self.store.binding(binding_id)
        await self.gate.read(caller, "manage", resource_of(binding.domain_id if binding else None))
        if binding is None:
            raise NotFound
        return binding

    async def update(
        self, caller: Caller, binding_id: UUID, changes: dict[str, Any], decided_on: datetime.datetime | None
    ) -> Binding:
        """Change a binding; raises BindingConflict when it changed after `decided_on`, or for a second primary."""
        before = await self._act(caller, binding_id, "update", changed=sorted(changes))
        if not changes:
            raise EmptyPatch
        if decided_on not in {None, before.updated_at}:
            raise BindingConflict("the binding was changed meanwhile")
        # Two changes within one tick of the clock are two states.
        at = max(self.clock.now(), before.updated_at + TICK)
        after = checked(replace(before, **changes, updated_at=at))
        await self.store.change_binding(before, after)
        return after

    async def set_status(self, caller: Caller, binding_id: UUID, status: str) -> Binding:
        """Activate or deactivate; what people hold through a deactivated one is worth nothing when it returns."""
        await self._act(caller, binding_id, "activate" if status == "active" else "deactivate")
        binding = await self.store.set_binding_status(binding_id, status, self.clock.now())
        if binding is None:
            raise NotFound
        return binding

    async def delete(self, caller: Caller, binding_id: UUID) -> None:
        """Delete a binding with its people: what they hold and what they may do is gone when it returns."""
        await self._act(caller, binding_id, "delete")
        rows = await self.store.remove_binding(binding_id)
        if rows is None:
            raise NotFound
        await self.gate.authority.revoke(rows)

    async def _act(self, caller: Caller, binding_id: UUID, verb: str, **context: list[str]) -> Binding:
        binding = await self.store.binding(binding_id)
        domain_id = binding.domain_id if binding else None
        act = Act(f"idp_binding.{verb}", f"idp_binding:{binding_id}", context=context)
        act = await self._decision(caller, domain_id, act)
        await self.gate.write(caller, "manage", resource_of(domain_id), act)
        if binding is None:
            raise NotFound
        return binding

    async def _decision(self, caller: Caller, domain_id: UUID | None, act: Act) -> Act:
        """Return an act as one that is done in person, with a login as strong as the Domain asks for."""
        required = asked_to_bind(caller, await self.policies.in_force(domain_id or NIL, UUID(caller.subject)))
        return replace(act, domain_id=str(domain_id or ""), in_person=True, required=required)

    async def list(self, caller: Caller, domain_id: UUID | None) -> list[Binding]:
        """Return a Domain's bindings, or the platform's."""
        await self.gate.read(caller, "manage", resource_of(domain_id))
        return await self.store.bindings(domain_id)
