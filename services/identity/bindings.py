"""IdP bindings: which OpenID provider a Domain, or the platform, believes."""

import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit
from uuid import UUID

from libs.clock import Clock
from libs.errors import InvalidRequest, NotFound
from libs.ids import uuid7
from services.identity.authority import Act, Gate
from services.identity.model import Caller
from services.identity.sign_in_model import Binding
from services.identity.sign_in_ports import SignInStore

REFERENCE = re.compile(r"kv/idp/[a-z0-9][a-z0-9-]{0,62}")


def resource_of(domain_id: UUID | None) -> str:
    """Return the object whose `manage` decides about bindings."""
    return f"domain:{domain_id}" if domain_id else "platform:main"


def https(url: str) -> bool:
    """Whether a URL is absolute and https."""
    parts = urlsplit(url)
    return parts.scheme == "https" and bool(parts.hostname) and not parts.username


async def offered(store: SignInStore, domain_id: UUID | None) -> list[Binding]:
    """Return through which bindings somebody may sign in; an unknown Domain answers as one without any."""
    own = await store.bindings(domain_id) if domain_id else []
    return [one for one in own or await store.bindings(None) if one.status == "active"]


@dataclass(frozen=True)
class Bindings:
    """Creates and shows bindings."""

    store: SignInStore
    gate: Gate
    clock: Clock

    async def create(self, caller: Caller, binding: Binding) -> Binding:
        """Create a binding; the client secret stays in OpenBao, behind its reference."""
        if not https(binding.issuer) or not https(binding.discovery_url):
            raise InvalidRequest("issuer and discovery_url must be https URLs")
        if not REFERENCE.fullmatch(binding.client_secret_ref):
            raise InvalidRequest("client_secret_ref must be a reference like kv/idp/<name>, never the secret")
        now = self.clock.now()
        binding = replace(binding, id=uuid7(), status="active", created_at=now, updated_at=now)
        owner = str(binding.domain_id or "")
        act = Act("idp_binding.create", f"idp_binding:{binding.id}", owner)
        await self.gate.write(caller, "manage", resource_of(binding.domain_id), act)
        await self.store.add_binding(binding)
        return binding

    async def list(self, caller: Caller, domain_id: UUID | None) -> list[Binding]:
        """Return a Domain's bindings, or the platform's."""
        await self.gate.read(caller, "manage", resource_of(domain_id))
        return await self.store.bindings(domain_id)

    async def get(self, caller: Caller, binding_id: UUID) -> Binding:
        """Return a binding; who may not manage its Domain learns nothing of it."""
        binding = await self.store.binding(binding_id)
        await self.gate.read(caller, "manage", resource_of(binding.domain_id if binding else None))
        if binding is None:
            raise NotFound
        return binding
