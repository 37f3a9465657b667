"""A node is registered before SpiceDB knows of it: until then it is told to come back, and never that it may not."""

import contextlib
import datetime
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.outside import Node
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

PENDING = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
VALUES ($1, 'node', $2, 'agent', 'node', $2, 'pending') ON CONFLICT (id) DO UPDATE SET state = 'pending'
"""


@contextlib.asynccontextmanager
async def undelivered(world: World) -> AsyncIterator[None]:
    """Let nothing get from the tuple table to SpiceDB: a tuple that is on its way is locked, and all wait for it."""
    values = [uuid.UUID(int=1), str(uuid.uuid4())]
    dba = await world.superuser()
    try:
        # Whoever delivers may have been quicker than the lock.
        held = False
        while not held:
            await dba.execute(PENDING, *values)
            await dba.execute("BEGIN")
            sql = "SELECT state = 'pending' FROM identity.relation_tuples WHERE id = $1 FOR UPDATE"
            held = await dba.fetchval(sql, values[0])
            if not held:
                await dba.execute("ROLLBACK")
        yield
        await dba.execute("ROLLBACK")
    finally:
        await dba.close()


async def tried(scene: Scene, node: Node) -> dict[str, tuple[int, str]]:
    """Ask for everything that needs `node-agent`; returns status and code of each."""
    edge = scene.edge.as_bearer(node.bearer)
    now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    base = f"/v1/nodes/{node.node_id}"
    endpoint = {"endpoint": "203.0.113.9:51820", "nat_type": "symmetric", "reported_at": now}
    key = {"new_public_key": Node("new").public_key}
    answers = {
        "state": await edge.call("GET", f"{base}/state"),
        "endpoint": await edge.call("PUT", f"{base}/endpoint", endpoint),
        "key": await edge.call("POST", "/v1/keys/rotate", key),
    }
    async with edge.http.get(f"{edge.url}{base}/events", headers={"Authorization": f"Bearer {node.bearer}"}) as answer:
        code = "" if answer.status == 200 else (await answer.json(content_type=None))["code"]
        return {name: (one.status, one.code) for name, one in answers.items()} | {"events": (answer.status, code)}


async def test_a_node_whose_grant_lags_is_told_to_come_back(world: World, scene: Scene) -> None:
    node, project = Node(f"lagging-{uuid.uuid4().hex[:8]}"), f"/v1/projects/{scene.story.project_id}"
    resource = {"origin": "adopted", "kind": "server", "external_ref": node.handle}
    adopted = await scene.operator.call("POST", f"{project}/resources", resource)
    assert adopted.status == 201, adopted.body
    wanted = {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900}
    token = (await scene.operator.call("POST", f"{project}/bootstrap-tokens", wanted)).json["token"]
    async with undelivered(world):
        registered = await node.register(scene.edge, scene.story.project_id, token)
        assert registered.status == 201, registered.body
        found = await tried(scene, node)
        assert {status for status, _ in found.values()} == {503}, found

    async def admitted() -> bool:
        return (await tried(scene, node))["events"] == (200, "")

    await eventually(admitted)
    found = await tried(scene, node)
    assert found.pop("key") == (409, "keys_rotate_no_pending_rotation")
    assert {status // 100 for status, _ in found.values()} == {2}, found
