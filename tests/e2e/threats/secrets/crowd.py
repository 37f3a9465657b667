"""Hundreds of nodes that may read a secret, as rows: what they are asked for over the wire is the same."""

import asyncpg

from tests.e2e.attacker import eventually
from tests.e2e.outside import Node
from tests.e2e.planting import insert_nodes
from tests.e2e.stories.main_job import SECRET_NAME, Story

SECRET = "SELECT id::text FROM secrets.secrets WHERE project_id = $1 AND name = $2"
GRANTS = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
SELECT uuidv7(), 'secret', $2, 'reader', 'node', id, 'pending' FROM unnest($1::text[]) AS one (id)
"""
ON_THEIR_WAY = "SELECT count(*) FROM identity.relation_tuples WHERE state = 'pending'"


async def plant(dba: asyncpg.Connection, story: Story, count: int) -> list[Node]:
    """Insert nodes with keys and grants, and wait until identity has brought the grants to SpiceDB."""
    async with dba.transaction():
        nodes = await insert_nodes(dba, story.domain_id, story.project_id, count)
        secret_id = await dba.fetchval(SECRET, story.project_id, SECRET_NAME)
        await dba.execute(GRANTS, [node.node_id for node in nodes], secret_id)

    async def delivered() -> bool:
        return not await dba.fetchval(ON_THEIR_WAY)

    await eventually(delivered)
    return nodes
