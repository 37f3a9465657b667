"""The rules of who is in a Domain: people as providers vouched for them, and service identities."""

import hashlib
import hmac
from dataclasses import dataclass, replace
from uuid import UUID

from libs.clock import Clock
from libs.cursor import Cursors
from libs.custody import Secret
from libs.errors import NotFound
from libs.ids import uuid7
from services.identity.authority import Act, Gate
from services.identity.model import Caller
from services.identity.token_model import Identity, ServiceIdentity
from services.identity.token_ports import IdentityStore

NIL = UUID(int=0)
SERVICE = "service-identity"


@dataclass(frozen=True)
class People:
    """Lists people and service identities, and creates and deletes the latter."""

    store: IdentityStore
    gate: Gate
    cursors: Cursors
    clock: Clock
    pseudonym_key: Secret

    def pseudonym(self, row: Identity) -> str:
        """Return the pseudonym of a provider's subject: HMAC-SHA256 (RFC 2104) under a key of the Domain's own."""
        domain = hmac.digest(self.pseudonym_key.reveal(), row.domain_id.bytes, hashlib.sha256)
        return hmac.digest(domain, f"{row.kind}\n{row.issuer}\n{row.subject}".encode(), hashlib.sha256).hex()

    async def list(
        self, caller: Caller, domain_id: UUID, kind: str, cursor: str, limit: int
    ) -> tuple[list[Identity], str]:
        """Return a page without what is personal; a short page is the last one."""
        await self.gate.read(caller, "read", f"domain:{domain_id}")
        name = f"identities:{domain_id}:{kind}"
        after = UUID(self.cursors.open(name, caller.reference, cursor)["after"]) if cursor else NIL
        rows = await self.store.identities(domain_id, kind, after, limit + 1)
        page = rows[:limit]
        more = self.cursors.seal(name, caller.reference, {"after": str(page[-1].id)}) if len(rows) > limit else ""
        return page, more

    async def get(self, caller: Caller, domain_id: UUID, identity_id: UUID) -> tuple[Identity, bool]:
        """Return one, and whether the caller may see what is personal: who manages the Domain may."""
        this = f"domain:{domain_id}"
        await self.gate.read(caller, "read", this)
        row = await self.store.identity(domain_id, identity_id)
        if row is None:
            raise NotFound
        return row, (await self.gate.authority.decide(caller.reference, "manage", this)).granted

    async def create(self, caller: Caller, row: ServiceIdentity) -> Identity:
        """Create a service identity; it may do nothing until relations say so."""
        row = replace(row, id=uuid7(), created_at=self.clock.now())
        act = Act("service_identity.create", f"service_identity:{row.id}", str(row.domain_id), in_person=True)
        await self.gate.write(caller, "manage", f"domain:{row.domain_id}", act)
        await self.store.add_service_identity(row)
        return Identity(
            row.id, SERVICE, row.domain_id, row.display_name, row.audience, row.subject, "", None, row.created_at,
            row.created_at,
        )  # fmt: skip

    async def delete(self, caller: Caller, domain_id: UUID, identity_id: UUID) -> None:
        """Delete a service identity; its tokens and relations are gone when this returns."""
        act = Act("service_identity.delete", f"service_identity:{identity_id}", str(domain_id), in_person=True)
        await self.gate.write(caller, "manage", f"domain:{domain_id}", act)
        rows = await self.store.delete_service_identity(domain_id, identity_id)
        if rows is None:
            raise NotFound
        await self.gate.authority.revoke(rows)
