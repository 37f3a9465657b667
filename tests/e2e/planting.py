"""Registered nodes as rows, since registering hundreds over HTTPS would take minutes."""

import hashlib
import secrets
import uuid

import asyncpg

from libs.ids import uuid7
from tests.e2e.outside import Node

RESOURCES = """
INSERT INTO identity.resources (id, project_id, domain_id, kind, external_ref, origin, created_at, updated_at)
SELECT id, $2, $3, 'server', '', 'adopted', now(), now() FROM unnest($1::uuid[]) AS one (id)
"""
# Addresses from the end of the Domain's range, where no registration has come to yet.
NODES = """
INSERT INTO identity.nodes (id, resource_id, project_id, domain_id, mesh_ip, public_key, created_at)
SELECT one.id, one.id, $2, $3, host(broadcast(mesh_cidr))::inet - taken - turn,
       uuid_send(one.id) || uuid_send(one.id), now()
FROM unnest($1::uuid[]) WITH ORDINALITY AS one (id, turn), identity.domains,
     (SELECT count(*) AS taken FROM identity.nodes WHERE domain_id = $3) AS there
WHERE domains.id = $3
"""
# Nobody unwraps it. Nothing that looks like the made-up bearer of another test, which a scan would find here.
KEYS = """
INSERT INTO identity.node_secret_keys (kid, node_id, domain_id, wrapped, fingerprint, created_at)
SELECT 'nsk_' || replace(id::text, '-', ''), id, $2, 'vault:v1:' || repeat('B', 80), fingerprint, now()
FROM unnest($1::uuid[], $3::bytea[]) AS one (id, fingerprint)
"""


async def insert_nodes(dba: asyncpg.Connection, domain_id: str, project_id: str, count: int) -> list[Node]:
    """Insert nodes with their keys, and without any relation."""
    nodes = [Node(f"planted-{turn}", node_id=str(uuid7()), key=secrets.token_bytes(32)) for turn in range(count)]
    ids, project, domain = [uuid.UUID(node.node_id) for node in nodes], uuid.UUID(project_id), uuid.UUID(domain_id)
    for sql in (RESOURCES, NODES):
        await dba.execute(sql, ids, project, domain)
    await dba.execute(KEYS, ids, domain, [hashlib.sha256(node.key).digest() for node in nodes])
    return nodes
