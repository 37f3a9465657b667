"""The rules of the directory: Domains, projects, adopted resources, bootstrap tokens, nodes in lists.

The relation is asked before existence is looked up, so that an id that does not exist answers as one that may not be
seen.
"""

import base64
import datetime
import hashlib
import ipaddress
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from libs.clock import Clock
from libs.cursor import Cursors
from libs.errors import (
    EmptyPatch,
    InvalidReachabilityPolicy,
    InvalidRequest,
    NotFound,
    TokenNotRevocable,
    Unprocessable,
)
from libs.ids import uuid7
from services.identity.authority import Act, Gate
from services.identity.model import (
    BootstrapToken,
    Caller,
    Domain,
    NodeSummary,
    Project,
    Reachability,
    Resource,
    Tuple,
)
from services.identity.ports import DirectoryStore, SigningKeys
from services.identity.schema import PLATFORM

NIL = UUID(int=0)
Row = TypeVar("Row", Domain, Project, Resource, NodeSummary, BootstrapToken)


def network(text: str) -> str:
    """Return a CIDR in canonical form; raises InvalidRequest for host bits or anything that is not a network."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise InvalidRequest("the address range is not a network in CIDR form") from None


def secret_text(bits: int) -> str:
    """Return random lower-case base32 (RFC 4648) without padding."""
    return base64.b32encode(os.urandom(bits // 8)).decode().rstrip("=").lower()


@dataclass(frozen=True)
class Identity:
    """The directory's rules."""

    store: DirectoryStore
    gate: Gate
    keys: SigningKeys
    cursors: Cursors
    clock: Clock

    # Domains ----------------------------------------------------------------------------------------------------------

    async def create_domain(
        self, caller: Caller, name: str, slug: str, description: str, region: str, mesh_cidr: str, policy: Reachability
    ) -> Domain:
        """Create a Domain with its signing key; its creator administers it."""
        now = self.clock.now()
        domain = Domain(uuid7(), name, slug, description, region, network(mesh_cidr), policy, now, now)
        if not policy.valid():
            raise InvalidReachabilityPolicy
        this = f"domain:{domain.id}"
        await self.gate.write(caller, "manage", PLATFORM, Act("domain.create", this))
        await self.keys.ensure(domain.id)
        await self.store.create_domain(
            domain, [Tuple(this, "platform", PLATFORM), Tuple(this, "admin", caller.reference)]
        )
        await self.gate.authority.deliver()
        return domain

    async def get_domain(self, caller: Caller, domain_id: UUID) -> Domain:
        """Return a Domain."""
        await self.gate.read(caller, "read", f"domain:{domain_id}")
        return found(await self.store.domain(domain_id))

    async def list_domains(self, caller: Caller, cursor: str, limit: int) -> tuple[list[Domain], str, bool]:
        """Return a page of the Domains that the caller may read, and whether there can be any."""
        visible = await self._visible(caller, "read", "domain", None)

        async def fetch(after: UUID, most: int) -> list[Domain]:
            return await self.store.domains(after, most, visible)

        return (*await self._page("domains", caller, cursor, limit, fetch), visible != [])

    async def update_domain(self, caller: Caller, domain_id: UUID, changes: dict[str, Any]) -> Domain:
        """Change a Domain."""
        this = f"domain:{domain_id}"
        await self.gate.write(caller, "manage", this, Act("domain.update", this, str(domain_id)))
        if not changes:
            raise EmptyPatch
        if "mesh_cidr" in changes:
            changes["mesh_cidr"] = network(changes["mesh_cidr"])
        if "reachability" in changes and not changes["reachability"].valid():
            raise InvalidReachabilityPolicy
        return found(await self.store.update_domain(domain_id, changes, self.clock.now()))

    async def delete_domain(self, caller: Caller, domain_id: UUID) -> None:
        """Delete an empty Domain."""
        this = f"domain:{domain_id}"
        await self.gate.write(caller, "manage", this, Act("domain.delete", this, str(domain_id)))
        rows = await self.store.delete_domain(domain_id)
        await self.gate.authority.revoke(found(rows))

    # Projects ---------------------------------------------------------------------------------------------------------

    async def create_project(
        self, caller: Caller, domain_id: UUID, name: str, slug: str, description: str, sub_range: str
    ) -> Project:
        """Create a project in a Domain."""
        now = self.clock.now()
        sub_range = network(sub_range) if sub_range else ""
        project = Project(uuid7(), domain_id, name, slug, description, sub_range, now, now)
        this = f"project:{project.id}"
        await self.gate.write(caller, "manage", f"domain:{domain_id}", Act("project.create", this, str(domain_id)))
        domain = found(await self.store.domain(domain_id))
        if sub_range and not inside(sub_range, domain.mesh_cidr):
            raise Unprocessable("sub_range_cidr is not within the Domain's range")
        await self.store.create_project(project, [Tuple(this, "domain", f"domain:{domain_id}")])
        await self.gate.authority.deliver()
        return project

    async def get_project(self, caller: Caller, project_id: UUID) -> Project:
        """Return a project."""
        await self.gate.read(caller, "read", f"project:{project_id}")
        return found(await self.store.project(project_id))

    async def list_projects(
        self, caller: Caller, domain_id: UUID | None, cursor: str, limit: int
    ) -> tuple[list[Project], str, bool]:
        """Return a page of the projects that the caller may read, and whether there can be any."""
        visible = await self._visible(caller, "read", "project", domain_id)

        async def fetch(after: UUID, most: int) -> list[Project]:
            return await self.store.projects(domain_id, after, most, visible)

        return (*await self._page(f"projects:{domain_id or ''}", caller, cursor, limit, fetch), visible != [])

    async def update_project(self, caller: Caller, project_id: UUID, changes: dict[str, Any]) -> Project:
        """Change a project; `sub_range_cidr` empty gives the range back."""
        this = f"project:{project_id}"
        before = await self.store.project(project_id)
        domain_id = str(before.domain_id) if before else ""
        await self.gate.write(caller, "manage", this, Act("project.update", this, domain_id))
        if not changes:
            raise EmptyPatch
        if changes.get("sub_range_cidr"):
            changes["sub_range_cidr"] = network(changes["sub_range_cidr"])
            domain = found(await self.store.domain(found(before).domain_id))
            if not inside(changes["sub_range_cidr"], domain.mesh_cidr):
                raise Unprocessable("sub_range_cidr is not within the Domain's range")
        return found(await self.store.update_project(project_id, changes, self.clock.now()))

    async def delete_project(self, caller: Caller, project_id: UUID) -> None:
        """Delete an empty project."""
        this = f"project:{project_id}"
        before = await self.store.project(project_id)
        domain_id = str(before.domain_id) if before else ""
        await self.gate.write(caller, "manage", this, Act("project.delete", this, domain_id))
        rows = await self.store.delete_project(project_id)
        await self.gate.authority.revoke(found(rows))

    # Resources and nodes ----------------------------------------------------------------------------------------------

    async def create_resource(
        self, caller: Caller, project_id: UUID, origin: str, kind: str, external_ref: str
    ) -> Resource:
        """Adopt a resource."""
        if origin != "adopted":
            raise Unprocessable("only adopted resources are supported")
        project = await self.store.project(project_id)
        now = self.clock.now()
        domain_id = project.domain_id if project else NIL
        resource = Resource(uuid7(), project_id, domain_id, kind, external_ref, origin, now, now)
        this, owner = f"resource:{resource.id}", f"project:{project_id}"
        act = Act("resource.create", this, str(domain_id) if project else "")
        await self.gate.write(caller, "deploy", owner, act)
        found(project)
        await self.store.create_resource(resource, [Tuple(this, "project", owner)])
        await self.gate.authority.deliver()
        return resource

    async def get_resource(self, caller: Caller, resource_id: UUID) -> Resource:
        """Return a resource."""
        await self.gate.read(caller, "read", f"resource:{resource_id}")
        return found(await self.store.resource(resource_id))

    async def list_resources(
        self, caller: Caller, project_id: UUID, cursor: str, limit: int
    ) -> tuple[list[Resource], str]:
        """Return a page of a project's resources."""
        await self.gate.read(caller, "read", f"project:{project_id}")

        async def fetch(after: UUID, most: int) -> list[Resource]:
            return await self.store.resources(project_id, after, most)

        return await self._page(f"resources:{project_id}", caller, cursor, limit, fetch)

    async def delete_resource(self, caller: Caller, resource_id: UUID) -> None:
        """Delete a resource and deregister its node: keys, relations and address are gone when it returns."""
        this = f"resource:{resource_id}"
        resource = await self.store.resource(resource_id)
        domain_id = str(resource.domain_id) if resource else ""
        await self.gate.write(caller, "deploy", this, Act("resource.delete", this, domain_id))
        found(resource)
        await self.gate.authority.revoke(await self.store.delete_resource(resource_id, self.clock.now()))

    async def list_nodes(
        self, caller: Caller, domain_id: UUID | None, cursor: str, limit: int
    ) -> tuple[list[NodeSummary], str]:
        """Return a page of the nodes that the caller may observe."""
        visible = await self._visible(caller, "observe", "node", domain_id)

        async def fetch(after: UUID, most: int) -> list[NodeSummary]:
            return await self.store.nodes(domain_id, after, most, visible)

        return await self._page(f"nodes:{domain_id or ''}", caller, cursor, limit, fetch)

    # Bootstrap tokens -------------------------------------------------------------------------------------------------

    async def issue_token(
        self, caller: Caller, project_id: UUID, kind: str, env_prefix: str, ttl_s: float
    ) -> tuple[BootstrapToken, str]:
        """Issue a bootstrap token and return its text, which is nowhere else."""
        project = await self.store.project(project_id)
        now = self.clock.now()
        selector, secret = secret_text(80), secret_text(160)
        token = BootstrapToken(
            id=uuid7(),
            project_id=project_id,
            kind=kind,
            env_prefix=env_prefix,
            selector=selector,
            digest=hashlib.sha256(secret.encode()).digest(),
            issued_by=UUID(caller.subject),
            issued_at=now,
            expires_at=now + datetime.timedelta(seconds=ttl_s),
        )
        domain_id = str(project.domain_id) if project else ""
        act = Act("bootstrap_token.issue", f"bootstrap_token:{token.id}", domain_id)
        await self.gate.write(caller, "manage", f"project:{project_id}", act)
        found(project)
        await self.store.add_token(token)
        return token, f"psb_{env_prefix}_{selector}_{kind}_{secret}"

    async def get_token(self, caller: Caller, project_id: UUID, token_id: UUID) -> BootstrapToken:
        """Return what is known of a token."""
        await self.gate.read(caller, "manage", f"project:{project_id}")
        return found(await self.store.token(project_id, token_id))

    async def list_tokens(
        self, caller: Caller, project_id: UUID, cursor: str, limit: int
    ) -> tuple[list[BootstrapToken], str]:
        """Return a page of a project's tokens."""
        await self.gate.read(caller, "manage", f"project:{project_id}")

        async def fetch(after: UUID, most: int) -> list[BootstrapToken]:
            return await self.store.tokens(project_id, after, most)

        return await self._page(f"tokens:{project_id}", caller, cursor, limit, fetch)

    async def revoke_token(self, caller: Caller, project_id: UUID, token_id: UUID) -> None:
        """Revoke an unused token."""
        project = await self.store.project(project_id)
        domain_id = str(project.domain_id) if project else ""
        act = Act("bootstrap_token.revoke", f"bootstrap_token:{token_id}", domain_id)
        await self.gate.write(caller, "manage", f"project:{project_id}", act)
        revoked = await self.store.revoke_token(project_id, token_id, self.clock.now())
        if not found(revoked):
            raise TokenNotRevocable

    # Lists ------------------------------------------------------------------------------------------------------------

    async def _visible(self, caller: Caller, permission: str, kind: str, domain_id: UUID | None) -> list[UUID] | None:
        """Return the ids that the caller may see in a Domain, or anywhere; None for all of them."""
        scope = f"domain:{domain_id}" if domain_id else PLATFORM
        found = await self.gate.authority.visible(caller.reference, permission, kind, scope)
        return None if found is None else [UUID(identifier) for identifier in found]

    async def _page(
        self, name: str, caller: Caller, cursor: str, limit: int, fetch: Callable[[UUID, int], Awaitable[list[Row]]]
    ) -> tuple[list[Row], str]:
        """Return a page; a short one is the last."""
        after = UUID(self.cursors.open(name, caller.reference, cursor)["after"]) if cursor else NIL
        page = await fetch(after, limit)
        if len(page) < limit:
            return page, ""
        return page, self.cursors.seal(name, caller.reference, {"after": str(page[-1].id)})


Found = TypeVar("Found")


def found(value: Found | None) -> Found:
    """Return the value; raises NotFound when there is none."""
    if value is None:
        raise NotFound
    return value


def inside(inner: str, outer: str) -> bool:
    """Whether one network lies within another."""
    small, large = ipaddress.ip_network(inner), ipaddress.ip_network(outer)
    return small.version == large.version and small.subnet_of(large)  # type: ignore[arg-type]  # versions are equal
