"""Registration in one transaction: token, node, address, key, tuples, event; or nothing."""

import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.errors import (
    InvalidRequest,
    MalformedHeartbeat,
    NonceCollision,
    TokenConsumed,
)
from libs.ids import parse_uuid
from libs.pg import connection, transaction
from libs.together import Together
from services.identity.model import BootstrapToken, Candidate, Registered, Resource, WrappedKey
from services.identity.node_key_store import add_keys, revoke_keys
from services.identity.node_model import Wanted
from services.identity.node_store import LOCK_NODE, text_of
from services.identity.registration_store import KEYED, Registration, Registrations, snapshot_of
from services.identity.store import BOOTSTRAP, RESOURCE

NODES_OF = f"""
SELECT w.turn, n.id, {KEYED} AS keyed, EXISTS (
    SELECT FROM identity.nodes other
    WHERE other.domain_id = w.domain_id AND other.public_key = w.public_key AND other.resource_id <> w.id
) AS taken
FROM unnest($1::uuid[], $2::uuid[], $3::bytea[]) WITH ORDINALITY AS w (id, domain_id, public_key, turn)
LEFT JOIN identity.nodes n ON n.resource_id = w.id ORDER BY w.turn
"""
RESOURCES = f"""
SELECT w.turn, r.* FROM unnest($1::uuid[], $2::text[], $3::uuid[]) WITH ORDINALITY AS w (project_id, handle, id, turn)
CROSS JOIN LATERAL (
    SELECT {RESOURCE} FROM identity.resources
    WHERE project_id = w.project_id AND (id = w.id OR external_ref = w.handle)
    ORDER BY id = w.id DESC NULLS LAST LIMIT 1
) r
"""
# A retry is one of the registration that stands: nobody revoked its key, and no later token registered the node again.
RETRIED = f"""
SELECT n.id, n.domain_id, n.mesh_ip, d.mesh_cidr,
    {KEYED} AND NOT EXISTS (
        SELECT FROM identity.bootstrap_tokens t WHERE t.node_id = n.id AND t.consumed_at > $3
    ) AS stands
FROM identity.nodes n JOIN identity.domains d ON d.id = n.domain_id WHERE n.id = $1 AND n.resource_id = $2
"""
# A node is healthy since its registration, or since it was heard of again after it had been silent for too long.
BEAT = """
WITH place AS (
    SELECT n.id, n.created_at, make_interval(secs => d.stale_after_s) AS stale_after
    FROM identity.nodes n JOIN identity.domains d ON d.id = n.domain_id WHERE n.id = $1
)
INSERT INTO identity.heartbeats AS h
    (node_id, accepted_at, binary_checksum, binary_version, nat_summary, healthy_since)
SELECT id, $2, $3, $4, $5, CASE WHEN $2 < created_at + stale_after THEN created_at ELSE $2 END FROM place
ON CONFLICT (node_id) DO UPDATE
SET accepted_at = $2, binary_checksum = $3, binary_version = $4, nat_summary = $5,
    healthy_since = CASE WHEN $2 < h.accepted_at + (SELECT stale_after FROM place) THEN h.healthy_since ELSE $2 END
RETURNING EXISTS (SELECT FROM identity.key_rotations WHERE node_id = $1 AND completed_at IS NULL) AS rotate_keys,
    healthy_since = $2 AS reconcile
"""


def uuid_or_none(text: str) -> UUID | None:
    """Return what may be an id, in either case."""
    try:
        return parse_uuid(text.lower())
    except ValueError:
        return None


@dataclass(frozen=True)
class PgEnrolmentStore:
    """Registration and heartbeats in PostgreSQL."""

    pool: asyncpg.Pool
    registrations: Registrations

    @functools.cached_property
    def _tokens(self) -> Together[str, BootstrapToken | None]:
        return Together(self._find_tokens)

    @functools.cached_property
    def _resources(self) -> Together[tuple[UUID, str], Resource | None]:
        return Together(self._find_resources)

    @functools.cached_property
    def _nodes(self) -> Together[tuple[Resource, bytes], tuple[UUID | None, bool, bool]]:
        return Together(self._nodes_of)

    async def find_token(self, selector: str) -> BootstrapToken | None:
        """Return a token by its selector."""
        return await self._tokens.ask(selector)

    async def _find_tokens(self, selectors: list[str]) -> Sequence[BootstrapToken | None]:
        async with connection(self.pool, "find_tokens") as lent:
            sql = f"SELECT {BOOTSTRAP} FROM identity.bootstrap_tokens WHERE selector = ANY ($1::text[])"
            found = {row["selector"]: BootstrapToken(**row) for row in await lent.fetch(sql, selectors)}
        return [found.get(selector) for selector in selectors]

    async def domain_of(self, project_id: UUID) -> UUID | None:
        """Return the Domain of a project."""
        async with connection(self.pool, "domain_of") as lent:
            domain: UUID | None = await lent.fetchval(
                "SELECT domain_id FROM identity.projects WHERE id = $1", project_id
            )
        return domain

    async def find_resource(self, project_id: UUID, handle: str) -> Resource | None:
        """Return a project's resource by id or by its name elsewhere."""
        if "\0" in handle:
            # Nothing that PostgreSQL cannot read may fail those whom it is asked for with.
            raise InvalidRequest("a text holds a character that cannot be stored")
        return await self._resources.ask((project_id, handle))

    async def _find_resources(self, wanted: list[tuple[UUID, str]]) -> Sequence[Resource | None]:
        projects, handles = [project_id for project_id, _ in wanted], [handle for _, handle in wanted]
        async with connection(self.pool, "find_resources") as lent:
            rows = await lent.fetch(RESOURCES, projects, handles, [uuid_or_none(handle) for handle in handles])
        found = {values.pop("turn"): Resource(**values) for values in map(dict, rows)}
        return [found.get(turn) for turn in range(1, len(wanted) + 1)]

    async def node_of(self, resource: Resource, public_key: bytes) -> tuple[UUID | None, bool, bool]:
        """Return the node of a resource, whether it has a key that counts, and whether another has the public key."""
        return await self._nodes.ask((resource, public_key))

    async def _nodes_of(self, wanted: list[tuple[Resource, bytes]]) -> Sequence[tuple[UUID | None, bool, bool]]:
        ids, domains = [resource.id for resource, _ in wanted], [resource.domain_id for resource, _ in wanted]
        async with connection(self.pool, "nodes_of") as lent:
            rows = await lent.fetch(NODES_OF, ids, domains, [public_key for _, public_key in wanted])
        return [(row["id"], row["keyed"], row["taken"]) for row in rows]

    async def register(
        self, token: BootstrapToken, resource: Resource, node: Candidate, at: datetime.datetime
    ) -> Registered:
        """Consume the token and create all that a node is, in one transaction, or nothing."""
        return await self.registrations.register(Registration(token, resource, node, at))

    async def replace_key(
        self, token: BootstrapToken, resource: Resource, key: WrappedKey, at: datetime.datetime
    ) -> Registered:
        """Give the token's node a fresh key; the earlier one is revoked in the same transaction."""
        async with transaction(self.pool, "replace_key") as lent:
            # A statement of its own: who held the lock may have revoked the keys.
            await lent.execute(LOCK_NODE, token.node_id)
            node = await lent.fetchrow(RETRIED, token.node_id, resource.id, token.consumed_at)
            if node is None:
                raise NonceCollision
            if not node["stands"]:
                raise TokenConsumed
            await revoke_keys(lent, node["id"], at)
            await add_keys(lent, [(node["id"], key)], at)
            snapshot = await snapshot_of(lent, node["domain_id"])
        return Registered(node["id"], text_of(node["mesh_ip"]), snapshot, str(node["mesh_cidr"]))

    async def heartbeat(
        self, node_id: UUID, checksum: bytes, version: str, nat_summary: str, at: datetime.datetime
    ) -> Wanted | None:
        """Take a sign of life; returns what the node should do, None when there is no such node."""
        try:
            async with transaction(self.pool, "heartbeat") as lent:
                row = await lent.fetchrow(BEAT, node_id, at, checksum, version, nat_summary)
        except asyncpg.ForeignKeyViolationError:
            return None
        except (asyncpg.InvalidTextRepresentationError, InvalidRequest):
            raise MalformedHeartbeat("nat_summary cannot be stored") from None
        return Wanted(**row) if row else None
