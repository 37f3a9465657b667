"""All SQL of the directory; each method is one transaction, and the race is decided in SQL."""

import datetime
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from libs.errors import (
    AlreadyExists,
    DomainNotEmpty,
    MeshCidrOverlap,
    NotFound,
    ProjectNotEmpty,
    SlugTaken,
    SubRangeInvalidatesAllocation,
    SubRangeOverlap,
    Unprocessable,
)
from libs.outbox import add_event
from libs.pg import connection, transaction
from services.identity.model import (
    BootstrapToken,
    Domain,
    NodePlace,
    NodeSummary,
    Project,
    Reachability,
    Resource,
    Tuple,
)
from services.identity.relation_store import add_tuples, mark_tuples, notify
from services.identity.relations import Revocation

DOMAIN = """id, name, slug, description, region, mesh_cidr, heartbeat_interval_s, stale_after_s, unreachable_after_s,
created_at, updated_at"""
PROJECT = "id, domain_id, name, slug, description, sub_range_cidr, created_at, updated_at"
RESOURCE = "id, project_id, domain_id, kind, external_ref, origin, created_at, updated_at"
BOOTSTRAP = """id, project_id, kind, env_prefix, selector, digest, issued_by, issued_at, expires_at, consumed_at,
revoked_at, nonce, public_key, node_id"""
OF_OBJECTS = """(resource_type, resource_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
OR (subject_type, subject_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))"""
# Addresses of a Domain are given out, and ranges changed, by one transaction at a time.
LOCK_RANGES = "SELECT pg_advisory_xact_lock(hashtextextended('mesh:' || $1, 0))"
# An exclusion constraint alone lets two overlapping inserts wait for each other.
LOCK_DOMAINS = "SELECT pg_advisory_xact_lock(hashtextextended('domains', 0))"
FOREIGN_ADDRESS = """
SELECT 1 FROM identity.nodes WHERE domain_id = $1 AND project_id <> $2 AND mesh_ip <<= $3::cidr LIMIT 1
"""
OUTSIDE_DOMAIN = """
SELECT 1 FROM identity.nodes WHERE domain_id = $1 AND NOT mesh_ip <<= $2::cidr
UNION ALL SELECT 1 FROM identity.projects WHERE domain_id = $1 AND NOT sub_range_cidr <<= $2::cidr LIMIT 1
"""
OUTSIDE_PROJECT = "SELECT 1 FROM identity.nodes WHERE project_id = $1 AND NOT mesh_ip <<= $2::cidr LIMIT 1"


def domain_of(row: asyncpg.Record) -> Domain:
    """Return a row as a Domain."""
    policy = Reachability(row["heartbeat_interval_s"], row["stale_after_s"], row["unreachable_after_s"])
    return Domain(
        row["id"], row["name"], row["slug"], row["description"], row["region"], str(row["mesh_cidr"]), policy,
        row["created_at"], row["updated_at"],
    )  # fmt: skip


def project_of(row: asyncpg.Record) -> Project:
    """Return a row as a project."""
    values = dict(row)
    values["sub_range_cidr"] = str(row["sub_range_cidr"]) if row["sub_range_cidr"] is not None else ""
    return Project(**values)


@dataclass(frozen=True)
class PgStore:
    """The directory in PostgreSQL."""

    pool: asyncpg.Pool

    # Domains ----------------------------------------------------------------------------------------------------------

    async def create_domain(self, domain: Domain, tuples: list[Tuple]) -> None:
        """Raise MeshCidrOverlap or SlugTaken when another Domain has the range or the slug."""
        sql = f"INSERT INTO identity.domains ({DOMAIN}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        policy = domain.reachability
        try:
            async with transaction(self.pool, "create_domain") as lent:
                await lent.execute(LOCK_DOMAINS)
                await lent.execute(
                    sql, domain.id, domain.name, domain.slug, domain.description, domain.region, domain.mesh_cidr,
                    policy.heartbeat_interval_s, policy.stale_after_s, policy.unreachable_after_s, domain.created_at,
                    domain.updated_at,
                )  # fmt: skip
                await add_tuples(lent, tuples)
        except asyncpg.ExclusionViolationError:
            raise MeshCidrOverlap from None
        except asyncpg.UniqueViolationError:
            raise SlugTaken from None

    async def registered(self, node_id: UUID) -> bool:
        """Whether there is such a node."""
        async with connection(self.pool, "registered") as lent:
            return bool(await lent.fetchval("SELECT true FROM identity.nodes WHERE id = $1", node_id))

    async def domain(self, domain_id: UUID) -> Domain | None:
        """Return a Domain."""
        async with connection(self.pool, "domain") as lent:
            row = await lent.fetchrow(f"SELECT {DOMAIN} FROM identity.domains WHERE id = $1", domain_id)
        return domain_of(row) if row else None

    async def domains(self, after: UUID, limit: int, among: list[UUID] | None) -> list[Domain]:
        """Return Domains by id, beyond `after`; `among` these, or all."""
        sql = f"""
        SELECT {DOMAIN} FROM identity.domains
        WHERE id > $1 AND ($3::uuid[] IS NULL OR id = ANY ($3)) ORDER BY id LIMIT $2
        """
        async with connection(self.pool, "domains") as lent:
            return [domain_of(row) for row in await lent.fetch(sql, after, limit, among)]

    async def update_domain(self, domain_id: UUID, changes: dict[str, Any], at: datetime.datetime) -> Domain | None:
        """Change a Domain; raises MeshCidrOverlap, and SubRangeInvalidatesAllocation for what would be left outside."""
        policy: Reachability | None = changes.get("reachability")
        sql = f"""
        UPDATE identity.domains SET
            name = coalesce($2, name), description = coalesce($3, description), region = coalesce($4, region),
            mesh_cidr = coalesce($5, mesh_cidr), heartbeat_interval_s = coalesce($6, heartbeat_interval_s),
            stale_after_s = coalesce($7, stale_after_s), unreachable_after_s = coalesce($8, unreachable_after_s),
            updated_at = $9
        WHERE id = $1 RETURNING {DOMAIN}
        """
        try:
            async with transaction(self.pool, "update_domain") as lent:
                await lent.execute(LOCK_DOMAINS)
                await lent.execute(LOCK_RANGES, str(domain_id))
                if "mesh_cidr" in changes and await lent.fetchval(OUTSIDE_DOMAIN, domain_id, changes["mesh_cidr"]):
                    raise SubRangeInvalidatesAllocation
                row = await lent.fetchrow(
                    sql, domain_id, changes.get("name"), changes.get("description"), changes.get("region"),
                    changes.get("mesh_cidr"), policy and policy.heartbeat_interval_s, policy and policy.stale_after_s,
                    policy and policy.unreachable_after_s, at,
                )  # fmt: skip
        except asyncpg.ExclusionViolationError:
            raise MeshCidrOverlap from None
        return domain_of(row) if row else None

    async def delete_domain(self, domain_id: UUID) -> list[Tuple] | None:
        """Delete an empty Domain and mark its tuples as removing; raises DomainNotEmpty with counts."""
        counts = """
        SELECT (SELECT count(*) FROM identity.projects WHERE domain_id = $1) AS projects, 0 AS groups,
               (SELECT count(*) FROM identity.identities WHERE domain_id = $1)
               + (SELECT count(*) FROM identity.service_identities WHERE domain_id = $1) AS identities,
               (SELECT count(*) FROM identity.idp_bindings WHERE domain_id = $1) AS idp_bindings,
               (SELECT count(*) FROM identity.nodes WHERE domain_id = $1) AS nodes
        """
        async with transaction(self.pool, "delete_domain") as lent:
            if not await lent.fetchval("SELECT 1 FROM identity.domains WHERE id = $1 FOR UPDATE", domain_id):
                return None
            children = dict(await lent.fetchrow(counts, domain_id) or {})
            if any(children.values()):
                raise DomainNotEmpty(child_counts=children)
            await lent.execute("DELETE FROM identity.domains WHERE id = $1", domain_id)
            return await mark_tuples(lent, OF_OBJECTS, ["domain"], [str(domain_id)])

    # Projects ---------------------------------------------------------------------------------------------------------

    async def create_project(self, project: Project, tuples: list[Tuple]) -> None:
        """Raise SlugTaken, SubRangeOverlap also for other projects' addresses, NotFound when the Domain is gone."""
        sql = f"INSERT INTO identity.projects ({PROJECT}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        try:
            async with transaction(self.pool, "create_project") as lent:
                if project.sub_range_cidr:
                    await self._claim_range(lent, project.domain_id, project.id, project.sub_range_cidr)
                await lent.execute(
                    sql, project.id, project.domain_id, project.name, project.slug, project.description,
                    project.sub_range_cidr or None, project.created_at, project.updated_at,
                )  # fmt: skip
                await add_tuples(lent, tuples)
        except asyncpg.ExclusionViolationError:
            raise SubRangeOverlap from None
        except asyncpg.UniqueViolationError:
            raise SlugTaken from None
        except asyncpg.ForeignKeyViolationError:
            raise NotFound from None

    async def _claim_range(self, lent: asyncpg.Connection, domain_id: UUID, project_id: UUID, cidr: str) -> None:
        await lent.execute(LOCK_RANGES, str(domain_id))
        if await lent.fetchval(FOREIGN_ADDRESS, domain_id, project_id, cidr):
            raise SubRangeOverlap
        within: bool | None = await lent.fetchval(
            "SELECT $2::cidr <<= mesh_cidr FROM identity.domains WHERE id = $1", domain_id, cidr
        )
        if within is False:
            raise Unprocessable("sub_range_cidr is not within the Domain's range")

    async def project(self, project_id: UUID) -> Project | None:
        """Return a project."""
        async with connection(self.pool, "project") as lent:
            row = await lent.fetchrow(f"SELECT {PROJECT} FROM identity.projects WHERE id = $1", project_id)
        return project_of(row) if row else None

    async def projects(
        self, domain_id: UUID | None, after: UUID, limit: int, among: list[UUID] | None
    ) -> list[Project]:
        """Return projects by id, beyond `after`; `among` these, or all."""
        sql = f"""
        SELECT {PROJECT} FROM identity.projects
        WHERE id > $1 AND ($3::uuid IS NULL OR domain_id = $3) AND ($4::uuid[] IS NULL OR id = ANY ($4))
        ORDER BY id LIMIT $2
        """
        async with connection(self.pool, "projects") as lent:
            return [project_of(row) for row in await lent.fetch(sql, after, limit, domain_id, among)]

    async def update_project(self, project_id: UUID, changes: dict[str, Any], at: datetime.datetime) -> Project | None:
        """Change a project; raises SubRangeOverlap, SubRangeInvalidatesAllocation."""
        sub_range = changes.get("sub_range_cidr")
        sql = f"""
        UPDATE identity.projects SET
            name = coalesce($2, name), description = coalesce($3, description),
            sub_range_cidr = CASE WHEN $4::text IS NULL THEN sub_range_cidr ELSE nullif($4, '')::cidr END,
            updated_at = $5
        WHERE id = $1 RETURNING {PROJECT}
        """
        try:
            async with transaction(self.pool, "update_project") as lent:
                if sub_range:
                    domain_id = await lent.fetchval("SELECT domain_id FROM identity.projects WHERE id = $1", project_id)
                    await self._claim_range(lent, domain_id, project_id, sub_range)
                    if await lent.fetchval(OUTSIDE_PROJECT, project_id, sub_range):
                        raise SubRangeInvalidatesAllocation
                row = await lent.fetchrow(
                    sql, project_id, changes.get("name"), changes.get("description"), sub_range, at
                )
        except asyncpg.ExclusionViolationError:
            raise SubRangeOverlap from None
        return project_of(row) if row else None

    async def delete_project(self, project_id: UUID) -> list[Tuple] | None:
        """Delete an empty project and mark its tuples as removing; raises ProjectNotEmpty with counts."""
        counts = """
        SELECT (SELECT count(*) FROM identity.resources WHERE project_id = $1) AS resources,
               (SELECT count(*) FROM identity.nodes WHERE project_id = $1) AS nodes,
               (SELECT count(*) FROM identity.relation_tuples
                WHERE resource_type = 'project' AND resource_id = $1::text AND relation <> 'domain'
                  AND state <> 'removing') AS relation_tuples
        """
        async with transaction(self.pool, "delete_project") as lent:
            if not await lent.fetchval("SELECT 1 FROM identity.projects WHERE id = $1 FOR UPDATE", project_id):
                return None
            children = dict(await lent.fetchrow(counts, project_id) or {})
            if any(children.values()):
                raise ProjectNotEmpty(project_child_counts=children)
            await lent.execute("DELETE FROM identity.projects WHERE id = $1", project_id)
            return await mark_tuples(lent, OF_OBJECTS, ["project"], [str(project_id)])

    # Resources and nodes ----------------------------------------------------------------------------------------------

    async def create_resource(self, resource: Resource, tuples: list[Tuple]) -> None:
        """Raise AlreadyExists when the project has a resource of that name, NotFound when the project is gone."""
        sql = f"INSERT INTO identity.resources ({RESOURCE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        try:
            async with transaction(self.pool, "create_resource") as lent:
                await lent.execute(
                    sql, resource.id, resource.project_id, resource.domain_id, resource.kind, resource.external_ref,
                    resource.origin, resource.created_at, resource.updated_at,
                )  # fmt: skip
                await add_tuples(lent, tuples)
        except asyncpg.UniqueViolationError:
            raise AlreadyExists("the project has a resource with this external_ref") from None
        except asyncpg.ForeignKeyViolationError:
            raise NotFound from None

    async def resource(self, resource_id: UUID) -> Resource | None:
        """Return a resource."""
        async with connection(self.pool, "resource") as lent:
            row = await lent.fetchrow(f"SELECT {RESOURCE} FROM identity.resources WHERE id = $1", resource_id)
        return Resource(**row) if row else None

    async def resources(self, project_id: UUID, after: UUID, limit: int) -> list[Resource]:
        """Return resources by id, beyond `after`."""
        sql = f"SELECT {RESOURCE} FROM identity.resources WHERE project_id = $3 AND id > $1 ORDER BY id LIMIT $2"
        async with connection(self.pool, "resources") as lent:
            return [Resource(**row) for row in await lent.fetch(sql, after, limit, project_id)]

    async def delete_resource(self, resource_id: UUID, at: datetime.datetime) -> list[Tuple]:
        """Delete a resource with its node and its keys, and mark all their tuples as removing; returns these."""
        async with transaction(self.pool, "delete_resource") as lent:
            # Held against a registration under way: its node would go with the resource and leave its key behind.
            await lent.execute("SELECT 1 FROM identity.resources WHERE id = $1 FOR UPDATE", resource_id)
            node = await lent.fetchrow(
                "SELECT id, domain_id FROM identity.nodes WHERE resource_id = $1 FOR UPDATE", resource_id
            )
            kinds, ids = ["resource"], [str(resource_id)]
            if node is not None:
                kinds, ids = [*kinds, "node"], [*ids, str(node["id"])]
                await lent.execute(
                    "UPDATE identity.node_secret_keys SET revoked_at = $2 WHERE node_id = $1 AND revoked_at IS NULL",
                    node["id"], at,
                )  # fmt: skip
                await notify(lent, Revocation("node", str(node["id"])))
            await lent.execute("DELETE FROM identity.resources WHERE id = $1", resource_id)
            if node is not None:
                await add_event(
                    lent, "identity", node["domain_id"], "peer_removed", f"domain:{node['domain_id']}",
                    {"node_id": str(node["id"])}, at,
                )  # fmt: skip
            return await mark_tuples(lent, OF_OBJECTS, kinds, ids)

    async def nodes(
        self, domain_id: UUID | None, after: UUID, limit: int, among: list[UUID] | None
    ) -> list[NodeSummary]:
        """Return nodes by id, beyond `after`; `among` these, or all."""
        sql = """
        SELECT n.id, r.external_ref AS name, n.domain_id, r.kind, n.created_at
        FROM identity.nodes n JOIN identity.resources r ON r.id = n.resource_id
        WHERE n.id > $1 AND ($3::uuid IS NULL OR n.domain_id = $3) AND ($4::uuid[] IS NULL OR n.id = ANY ($4))
        ORDER BY n.id LIMIT $2
        """
        async with connection(self.pool, "nodes") as lent:
            return [NodeSummary(**row) for row in await lent.fetch(sql, after, limit, domain_id, among)]

    async def place(self, node_id: UUID) -> NodePlace | None:
        """Return where a node stands."""
        places = await self.places([node_id])
        return places[0] if places else None

    async def places(self, node_ids: list[UUID]) -> list[NodePlace]:
        """Return where nodes stand that have a live key, in no order."""
        sql = """
        SELECT n.id AS node_id, n.project_id, n.domain_id, k.kid, coalesce(o.kid, '') AS old_kid
        FROM identity.nodes n
        JOIN identity.node_secret_keys k ON k.node_id = n.id AND k.revoked_at IS NULL AND k.valid_until IS NULL
        LEFT JOIN identity.node_secret_keys o
            ON o.node_id = n.id AND o.revoked_at IS NULL AND o.valid_until IS NOT NULL
        WHERE n.id = ANY ($1)
        """
        async with connection(self.pool, "places") as lent:
            return [NodePlace(**row) for row in await lent.fetch(sql, node_ids)]

    # Bootstrap tokens -------------------------------------------------------------------------------------------------

    async def add_token(self, token: BootstrapToken) -> None:
        """Store a token's hash; raises NotFound when the project is gone."""
        sql = """
        INSERT INTO identity.bootstrap_tokens
            (id, project_id, kind, env_prefix, selector, digest, issued_by, issued_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """
        try:
            async with transaction(self.pool, "add_token") as lent:
                await lent.execute(
                    sql, token.id, token.project_id, token.kind, token.env_prefix, token.selector, token.digest,
                    token.issued_by, token.issued_at, token.expires_at,
                )  # fmt: skip
        except asyncpg.ForeignKeyViolationError:
            raise NotFound from None

    async def token(self, project_id: UUID, token_id: UUID) -> BootstrapToken | None:
        """Return what is known of a token."""
        sql = f"SELECT {BOOTSTRAP} FROM identity.bootstrap_tokens WHERE project_id = $1 AND id = $2"
        async with connection(self.pool, "token") as lent:
            row = await lent.fetchrow(sql, project_id, token_id)
        return BootstrapToken(**row) if row else None

    async def tokens(self, project_id: UUID, after: UUID, limit: int) -> list[BootstrapToken]:
        """Return tokens, newest first, older than `after`; NIL begins."""
        sql = f"""
        SELECT {BOOTSTRAP} FROM identity.bootstrap_tokens
        WHERE project_id = $3 AND (id < $1 OR $1 = '00000000-0000-0000-0000-000000000000') ORDER BY id DESC LIMIT $2
        """
        async with connection(self.pool, "tokens") as lent:
            return [BootstrapToken(**row) for row in await lent.fetch(sql, after, limit, project_id)]

    async def revoke_token(self, project_id: UUID, token_id: UUID, at: datetime.datetime) -> bool | None:
        """Revoke an unused token; False when it was used or revoked, None when there is none."""
        sql = """
        UPDATE identity.bootstrap_tokens SET revoked_at = $3
        WHERE project_id = $1 AND id = $2 AND consumed_at IS NULL AND revoked_at IS NULL RETURNING true
        """
        async with transaction(self.pool, "revoke_token") as lent:
            if await lent.fetchval(sql, project_id, token_id, at):
                return True
            exists = "SELECT false FROM identity.bootstrap_tokens WHERE project_id = $1 AND id = $2"
            revoked: bool | None = await lent.fetchval(exists, project_id, token_id)
        return revoked
