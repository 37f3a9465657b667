"""Hundreds of nodes that may read a secret, as rows: what they are asked for over the wire is the same."""

import hashlib
import secrets
import uuid

import asyncpg

from tests.e2e.attacker import eventually
from tests.e2e.outside import Node
from tests.e2e.stories.main_job import SECRET_NAME, Story

RESOURCES = """
INSERT INTO identity.resources (id, project_id, domain_id, kind, external_ref, origin, created_at, updated_at)
SELECT id, $2, $3, 'server', '', 'adopted', now(), now() FROM unnest($1::uuid[]) AS one (id)
"""
# Addresses of the Domain's range that no registration has come to yet.
NODES = """
INSERT INTO identity.nodes (id, resource_id, project_id, domain_id, mesh_ip, public_key, created_at)
SELECT id, id, $2, $3, (SELECT broadcast(mesh_cidr)::inet FROM identity.domains WHERE id = $3) - turn,
       uuid_send(id) || uuid_send(id), now()
FROM unnest($1::uuid[]) WITH ORDINALITY AS one (id, turn)
"""
KEYS = """
INSERT INTO identity.node_secret_keys (kid, node_id, domain_id, wrapped, fingerprint, created_at)
SELECT 'nsk_' || replace(id::text, '-', ''), id, $2, 'vault:v1:' || repeat('B', 80), fingerprint, now()
FROM unnest($1::uuid[], $3::bytea[]) AS one (id, fingerprint)
"""
SECRET = "SELECT id::text FROM secrets.secrets WHERE project_id = $1 AND name = $2"
GRANTS = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
SELECT uuidv7(), 'secret', $2, 'reader', 'node', id::text, 'pending' FROM unnest($1::uuid[]) AS one (id)
"""
ON_THEIR_WAY = "SELECT count(*) FROM identity.relation_tuples WHERE state = 'pending'"


async def plant(dba: asyncpg.Connection, story: Story, count: int) -> list[Node]:
    """Insert nodes with keys and grants, and wait until identity has brought the grants to SpiceDB."""
    nodes = [Node("", node_id=str(uuid.uuid4()), key=secrets.token_bytes(32)) for _ in range(count)]
    ids, project, domain = [uuid.UUID(one.node_id) for one in nodes], story.project_id, story.domain_id
    async with dba.transaction():
        for sql in (RESOURCES, NODES):
            await dba.execute(sql, ids, project, domain)
        await dba.execute(KEYS, ids, domain, [hashlib.sha256(one.key).digest() for one in nodes])
        await dba.execute(GRANTS, ids, await dba.fetchval(SECRET, project, SECRET_NAME))

    async def delivered() -> bool:
        return not await dba.fetchval(ON_THEIR_WAY)

    await eventually(delivered)
    return nodes
