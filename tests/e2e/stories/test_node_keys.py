"""A node's key over its life: renewed with a grace, ended by an operator, and the node registered again as itself."""

import base64
import time

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener, tell
from tests.e2e.outside import Answer, Node
from tests.e2e.stories.main_job import Story, action, entries, now
from tests.e2e.stories.test_nodes import refused, state
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


async def rotate(story: Story, node: Node) -> Answer:
    return await story.operator.as_bearer(node.bearer).call("POST", f"/v1/nodes/{node.node_id}/secret-key/rotate")


async def revoke(story: Story, node: Node) -> Answer:
    return await story.operator.call("POST", f"/v1/nodes/{node.node_id}/secret-key/revoke")


def holding(node: Node, answer: Answer) -> Node:
    """Return the node with the key of an answer."""
    assert answer.status == 200, answer.body
    return Node(node.handle, node.private_key, node.node_id, base64.b64decode(answer.json["nsk"]))


async def beats(story: Story, node: Node) -> str:
    return str(await node.heartbeat(story.operator, now()))


async def ended(stream: Listener) -> None:
    async def refused_now() -> bool:
        return stream.statuses[-1] == "401 nsk_revoked"

    await eventually(refused_now, 10)


async def test_a_key_is_renewed_with_a_grace_for_the_old_one(world: World, story: Story) -> None:
    old = story.node_a
    async with Listener(story.operator, old) as stream:
        lost = await rotate(story, old)
        again = await rotate(story, old)
        assert lost.json["previous_valid_until"] == again.json["previous_valid_until"]
        fresh = holding(old, again)
        assert await beats(story, holding(old, lost)) == "401 nsk_revoked"
        assert [await beats(story, node) for node in (old, fresh)] == ["200", "200"]
        await tell(stream, story.operator, story.domain_id, f"node:{old.node_id}")
        assert set(stream.statuses) == {"200"}
    # With the new key the old one dies.
    newest = holding(fresh, await rotate(story, fresh))
    assert await beats(story, old) == "401 nsk_revoked"
    assert [await beats(story, node) for node in (fresh, newest)] == ["200", "200"]
    # The grace ends by itself, for the bearer and for an open stream.
    dba = await world.superuser()
    try:
        async with Listener(story.operator, fresh) as stream:
            await tell(stream, story.operator, story.domain_id, f"node:{old.node_id}")
            await dba.execute(
                "UPDATE identity.node_secret_keys SET valid_until = now() WHERE node_id = $1 AND valid_until > now()",
                fresh.node_id,
            )
            started = time.monotonic()

            async def refuses() -> bool:
                return await beats(story, fresh) == "401 nsk_revoked"

            await eventually(refuses)
            assert time.monotonic() - started < 5
            await ended(stream)
    finally:
        await dba.close()
    assert await beats(story, newest) == "200"


async def test_a_revoked_node_is_registered_again_as_itself(story: Story) -> None:
    a, b = story.node_a, story.node_b
    issued = await story.operator.call(
        "POST",
        f"/v1/projects/{story.project_id}/bootstrap-tokens",
        {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900},
    )
    token = issued.json["token"]
    lost = Node(a.handle)
    assert refused(await lost.register(story.operator, story.project_id, token)) == (404, "resource_not_found")
    async with Listener(story.operator, a) as stream, Listener(story.operator, b) as peer:
        assert (await revoke(story, a)).status == 204
        assert await beats(story, a) == "401 nsk_revoked"
        await ended(stream)
        assert refused(await rotate(story, a)) == (401, "nsk_revoked")
        assert (await revoke(story, a)).status == 204
        registered = await lost.register(story.operator, story.project_id, token)
        assert registered.status == 201, registered.body
        assert registered.json["node_id"] == a.node_id
        told = (await peer.hears("peer_key_rotated")).envelope["payload"]["peer"]
    assert (told["node_id"], told["public_key"]) == (a.node_id, lost.public_key)
    assert told["mesh_ip"] == registered.json["mesh_ip"]
    assert [p["public_key"] for p in (await state(story, b)).json["peers"]] == [lost.public_key]
    assert await beats(story, lost) == "200"
    assert await beats(story, a) == "401 nsk_revoked"
    assert await beats(story, b) == "200"
    assert [action(row) for row in await entries(story)].count("secret_key.revoke") == 2


async def test_only_the_node_renews_and_only_an_operator_ends(story: Story, scene: Scene) -> None:
    a, b = story.node_a, story.node_b
    as_a = story.operator.as_bearer(a.bearer)
    path = f"/v1/nodes/{b.node_id}/secret-key/"
    assert refused(await as_a.call("POST", path + "rotate")) == (403, "node_id_mismatch")
    assert refused(await story.operator.call("POST", path + "rotate")) == (401, "unauthorized")
    assert (await as_a.call("POST", path + "revoke")).status == 401
    stranger = scene.edge.as_bearer("pat_dev_" + "x" * 43)
    assert (await stranger.call("POST", path + "revoke")).status == 401
    assert [await beats(story, node) for node in (a, b)] == ["200", "200"]
