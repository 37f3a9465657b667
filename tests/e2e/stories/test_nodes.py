"""A node's life as its operator and its peers see it: state, mesh key, endpoint, reachability, and its end."""

import asyncio
import datetime
from collections import Counter
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener
from tests.e2e.outside import JSON, Answer, Edge, Login, Node
from tests.e2e.stories.main_job import Story, action, entries, now

pytestmark = pytest.mark.e2e

NOBODY = "01a20bbe-3600-7a32-b169-2a0808b6ba0d"
BLOCKS = {"peers", "policy", "bridge", "state", "reports", "reachability"}


@pytest.fixture
async def third(story: Story, scene: Scene) -> Node:
    """One more node, so that the others stand in an order."""
    return await Scene(story, scene.token, scene.outside).newcomer("edge-c")


def as_node(story: Story, node: Node) -> Edge:
    return story.operator.as_bearer(node.bearer)


async def state(story: Story, node: Node) -> Answer:
    return await as_node(story, node).call("GET", f"/v1/nodes/{node.node_id}/state")


async def complete(story: Story, node: Node, public_key: str) -> Answer:
    return await as_node(story, node).call("POST", "/v1/keys/rotate", {"new_public_key": public_key})


async def report(story: Story, node: Node, endpoint: str, at: str = "") -> Answer:
    body = {"endpoint": endpoint, "nat_type": "symmetric", "reported_at": at or now()}
    return await as_node(story, node).call("PUT", f"/v1/nodes/{node.node_id}/endpoint", body)


async def asked_for_a_key(story: Story, node: Node) -> bool:
    beat = await node.heartbeat(story.operator, now())
    assert beat.status == 200, beat.body
    return bool(beat.json["rotate_keys"])


def peer_of(snapshot: JSON, node: Node) -> JSON:
    return next(peer for peer in snapshot["peers"] if peer["node_id"] == node.node_id)


def kinds(listener: Listener) -> Counter[str]:
    return Counter(heard.envelope["type"] for heard in listener.heard)


def refused(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code


async def test_a_mesh_key_is_rotated_on_request_and_the_peers_learn_it(story: Story, third: Node) -> None:
    a, b = story.node_a, story.node_b
    path = f"/v1/nodes/{a.node_id}/keys/rotate"
    fresh = Node(a.handle, private_key=X25519PrivateKey.generate()).public_key
    before = peer_of((await state(story, third)).json, a)
    assert before["public_key"] == a.public_key
    assert refused(await complete(story, a, fresh)) == (409, "keys_rotate_no_pending_rotation")
    async with Listener(story.operator, a) as on_a, Listener(story.operator, third) as on_third:
        asked = await story.operator.call("POST", path)
        assert (asked.status, asked.json["already_pending"]) == (200, False), asked.body
        rotation_id = asked.json["rotation_id"]
        assert (await on_a.hears("rotate_keys")).envelope["payload"] == {"rotation_id": rotation_id}
        assert await asked_for_a_key(story, a)
        assert not await asked_for_a_key(story, b)
        again = await story.operator.call("POST", path)
        assert again.json == {"rotation_id": rotation_id, "peer_id": a.node_id, "already_pending": True}
        preview = (await story.operator.call("GET", path + "/preview")).json
        assert (preview["node_id"], preview["affected_peer_count"], preview["already_pending"]) == (a.node_id, 2, True)
        assert [edge["peer_node_id"] for edge in preview["affected_edges"]] == [b.node_id, third.node_id]
        for bad, code in {
            a.public_key: "keys_rotate_public_key_unchanged",
            b.public_key: "keys_rotate_public_key_invalid",
            "A" * 43 + "=": "keys_rotate_public_key_invalid",
            fresh[:-4]: "keys_rotate_public_key_invalid",
        }.items():
            assert refused(await complete(story, a, bad)) == (422, code)
        assert await asked_for_a_key(story, a)
        receipt = await complete(story, a, fresh)
        assert (receipt.status, receipt.json["rotation_id"]) == (200, rotation_id), receipt.body
        told = await on_third.hears("peer_key_rotated")
        assert (await complete(story, a, fresh)).body == receipt.body
        assert refused(await complete(story, a, a.public_key)) == (409, "keys_rotate_no_pending_rotation")
        assert not await asked_for_a_key(story, a)
    assert told.envelope["payload"] == {"peer": before | {"public_key": fresh}}
    assert told.envelope["scope"] == f"domain:{story.domain_id}"
    assert {heard.verdict for heard in on_a.heard + on_third.heard} == {"ok"}
    # The request is the node's alone; each is told once.
    assert (kinds(on_a)["rotate_keys"], kinds(on_third)["rotate_keys"], kinds(on_third)["peer_key_rotated"]) == (
        1,
        0,
        1,
    )
    after = (await state(story, third)).json
    assert peer_of(after, a) == before | {"public_key": fresh}
    assert [peer["node_id"] for peer in after["peers"]] == [a.node_id, b.node_id]
    # A rotation that is over can be asked for again.
    assert (await story.operator.call("POST", path)).json["already_pending"] is False


async def test_two_pulls_of_the_state_are_the_same_bytes_until_something_changes(story: Story, third: Node) -> None:
    for node in (story.node_a, story.node_b, third):
        first, second = [await state(story, node) for _ in range(2)]
        assert (first.status, first.body) == (200, second.body)
        assert set(first.json) == BLOCKS
        assert None not in first.json.values()
        others = sorted({story.node_a.node_id, story.node_b.node_id, third.node_id} - {node.node_id})
        assert [peer["node_id"] for peer in first.json["peers"]] == others
    unchanged = await state(story, third)
    assert (await report(story, story.node_a, "203.0.113.7:51820")).status == 200
    assert (await state(story, third)).body != unchanged.body


async def test_an_endpoint_is_reported_and_the_peers_learn_it(story: Story, third: Node) -> None:
    a = story.node_a
    long_ago = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=90)).isoformat()
    async with Listener(story.operator, third) as peer:
        for endpoint, at, code in (
            ("203.0.113.7:51820", long_ago, "endpoint_clock_skew"),
            ("203.0.113.7", "", "endpoint_unparseable"),
            ("127.0.0.1:51820", "", "endpoint_unparseable"),
            ("[::1]:51820", "", "endpoint_unparseable"),
            ("203.0.113.7:70000", "", "endpoint_unparseable"),
        ):
            assert refused(await report(story, a, endpoint, at)) == (400, code), endpoint
        assert "fallback_endpoint" not in peer_of((await state(story, third)).json, a)
        taken = await report(story, a, "203.0.113.7:51820")
        assert taken.status == 200, taken.body
        assert taken.json["accepted_at"] < taken.json["stale_after"]
        told = (await peer.hears("peer_endpoint_changed")).envelope["payload"]["peer"]
        assert (told["node_id"], told["fallback_endpoint"]) == (a.node_id, "203.0.113.7:51820")
        # The same again is no news.
        assert (await report(story, a, "203.0.113.7:51820")).status == 200
        assert (await report(story, a, "203.0.113.8:51820")).status == 200
        async with asyncio.timeout(30):
            while told["fallback_endpoint"] != "203.0.113.8:51820":
                await asyncio.sleep(0.05)
                told = peer.heard[-1].envelope["payload"]["peer"]
    assert kinds(peer)["peer_endpoint_changed"] == 2
    assert peer_of((await state(story, third)).json, a) == told


async def test_a_node_that_moves_all_the_time_is_told_to_wait(story: Story, third: Node) -> None:
    a, b = story.node_a, story.node_b
    async with Listener(story.operator, third) as peer:
        answers = [await report(story, a, f"203.0.113.7:{port}") for port in range(1, 21)]
        assert (await report(story, b, "203.0.113.8:1")).status == 200

        async def told_of_b() -> bool:
            return any(heard.envelope["payload"].get("peer", {}).get("node_id") == b.node_id for heard in peer.heard)

        await eventually(told_of_b)
    taken = [answer for answer in answers if answer.status == 200]
    waits = [answer for answer in answers if answer.status != 200]
    assert len(taken) < 10
    assert {refused(answer) for answer in waits} == {(429, "rate_limited")}
    assert all(1 <= int(answer.headers["Retry-After"]) <= 10 for answer in waits)
    assert kinds(peer)["peer_endpoint_changed"] == len(taken) + 1
    # One a minute, whatever the number.
    assert 1 <= Counter(map(action, await entries(story)))["node.endpoint_limited"] <= 2


async def test_operators_see_whether_a_node_is_heard_of(story: Story, scene: Scene) -> None:
    path = f"/v1/nodes/{story.node_a.node_id}/reachability"
    silent = (await story.operator.call("GET", path)).json
    assert (silent["state"], "last_heartbeat_at" in silent) == ("healthy", False)
    await asked_for_a_key(story, story.node_a)
    heard = (await story.operator.call("GET", path)).json
    assert heard["last_heartbeat_at"] > silent["changed_at"]
    assert heard == (await state(story, story.node_a)).json["reachability"]
    policy = {"heartbeat_interval": "100ms", "stale_after": "200ms", "unreachable_after": "300ms"}
    domain = f"/v1/domains/{story.domain_id}"
    changed = await story.operator.call("PATCH", domain, {"reachability": policy})
    assert changed.status == 200, changed.body

    async def unreachable() -> bool:
        return bool((await story.operator.call("GET", path)).json["state"] == "unreachable")

    await eventually(unreachable)
    stranger = await scene.outside.sign_in(Login("nobody"))
    for method, tail in (("GET", "reachability"), ("POST", "keys/rotate"), ("GET", "keys/rotate/preview")):
        # Whether the node exists is not said.
        answers = [await stranger.call(method, f"/v1/nodes/{who}/{tail}") for who in (story.node_a.node_id, NOBODY)]
        assert [refused(answer) for answer in answers] == [(403, "permission_denied")] * 2, tail


async def test_a_deleted_resource_ends_its_node_and_the_peers_learn_it(story: Story) -> None:
    a, b = story.node_a, story.node_b
    listed = await story.operator.call("GET", f"/v1/projects/{story.project_id}/resources?limit=10")
    resource: Any = next(row for row in listed.json["items"] if row["external_ref"] == a.handle)
    async with Listener(story.operator, a) as gone, Listener(story.operator, b) as peer:
        deleted = await story.operator.call("DELETE", f"/v1/resources/{resource['id']}")
        assert deleted.status == 204, deleted.body
        told = await peer.hears("peer_removed")

        async def turned_away() -> bool:
            return gone.statuses[-1] != "200"

        await eventually(turned_away, within_s=5)
    assert told.envelope["payload"] == {"node_id": a.node_id}
    assert gone.statuses[-1] == "401 nsk_revoked"
    for answer in (
        await state(story, a),
        await complete(story, a, Node("x").public_key),
        await report(story, a, "h:1"),
    ):
        assert refused(answer) == (401, "nsk_revoked")
    assert (await state(story, b)).json["peers"] == []
