"""Signs of life as agents send them: what is refused, what silence means, and which nodes an operator sees."""

import base64
import datetime
import gzip
import json
import uuid
from typing import Any

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.outside import JSON, Answer, Login, Node
from tests.e2e.stories.main_job import Story, now
from tests.e2e.stories.test_nodes import refused

pytestmark = pytest.mark.e2e

SHA256 = bytes(range(32))


def off_by(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).isoformat()


def beat(**changes: Any) -> JSON:
    valid = {
        "client_now": now(),
        "binary_checksum": base64.b64encode(SHA256).decode(),
        "binary_version": "1.4.2",
        "nat_summary": {"kind": "cone"},
    }
    return valid | changes


async def send(story: Story, node: Node, body: JSON | bytes, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    as_node = story.operator.as_bearer(node.bearer)
    return await as_node.call("POST", f"/v1/nodes/{node.node_id}/heartbeat", body, headers=sent)


TAKEN: dict[str, JSON] = {
    "a clock behind by less than a minute": {"client_now": -50},
    "a clock ahead by less than a minute": {"client_now": 50},
    "a checksum in hex": {"binary_checksum": SHA256.hex()},
    "a checksum in upper hex": {"binary_checksum": SHA256.hex().upper()},
    "nothing known of the NAT": {"nat_summary": {}},
}
REFUSED: dict[str, tuple[JSON, str]] = {
    "a clock behind": ({"client_now": -70}, "clock_skew"),
    "a clock ahead": ({"client_now": 70}, "clock_skew"),
    "no checksum": ({"binary_checksum": ""}, "binary_checksum_empty"),
    "a short checksum": ({"binary_checksum": SHA256[:31].hex()}, "binary_checksum_empty"),
    "a checksum that is none": ({"binary_checksum": "?" * 44}, "binary_checksum_empty"),
    "no version": ({"binary_version": ""}, "binary_version_empty"),
    "an unknown member": ({"load": 1}, "malformed_heartbeat_request"),
    "a clock that is none": ({"client_now": "noon"}, "malformed_heartbeat_request"),
    "a member of another type": ({"binary_version": 7}, "malformed_heartbeat_request"),
    "a NUL that cannot be stored": ({"nat_summary": {"a": "\0"}}, "malformed_heartbeat_request"),
}


def timed(change: JSON) -> JSON:
    skew = change.get("client_now")
    return beat(**change | ({"client_now": off_by(skew)} if isinstance(skew, int) else {}))


async def test_each_heartbeat_has_its_answer(story: Story) -> None:
    node = story.node_a
    taken = {name: await send(story, node, timed(change)) for name, change in TAKEN.items()}
    assert {name: str(answer) for name, answer in taken.items()} == dict.fromkeys(TAKEN, "200")
    for answer in taken.values():
        assert set(answer.json) == {"accepted_at", "reconcile", "rotate_keys"}
        assert (answer.json["reconcile"], answer.json["rotate_keys"]) == (False, False)
    answers = {name: str(await send(story, node, timed(change))) for name, (change, _) in REFUSED.items()}
    assert answers == {name: f"400 {code}" for name, (_, code) in REFUSED.items()}
    packed = gzip.compress(json.dumps(beat()).encode())
    assert str(await send(story, node, packed, Content_Type="application/json", Content_Encoding="gzip")) == "200"
    bomb = gzip.compress(b" " * 40_000_000)
    assert (await send(story, node, bomb, Content_Type="application/json", Content_Encoding="gzip")).status == 413
    other = story.operator.as_bearer(story.node_b.bearer)
    foreign = await other.call("POST", f"/v1/nodes/{node.node_id}/heartbeat", beat())
    assert refused(foreign) == (403, "node_id_mismatch")


async def test_a_silent_node_grows_stale_then_unreachable_and_is_told_to_reconcile(story: Story) -> None:
    node = story.node_a
    policy = {"heartbeat_interval": "1s", "stale_after": "3s", "unreachable_after": "6s"}
    changed = await story.operator.call("PATCH", f"/v1/domains/{story.domain_id}", {"reachability": policy})
    assert changed.status == 200, changed.body
    await send(story, node, beat())
    assert (await send(story, node, beat())).json["reconcile"] is False
    seen: list[str] = []

    async def until(state: str) -> None:
        async def reached() -> bool:
            answer = await story.operator.call("GET", f"/v1/nodes/{node.node_id}/reachability")
            assert answer.status == 200, answer.body
            if seen[-1:] != [answer.json["state"]]:
                seen.append(answer.json["state"])
            return bool(answer.json["state"] == state)

        await eventually(reached)

    await until("unreachable")
    assert (await send(story, node, beat())).json["reconcile"] is True
    await until("healthy")
    assert seen == ["healthy", "stale", "unreachable", "healthy"]
    assert (await send(story, node, beat())).json["reconcile"] is False


async def test_an_operator_lists_the_own_nodes_and_no_others(story: Story, scene: Scene) -> None:
    path = f"/v1/nodes?domain_id={story.domain_id}"
    listed = await story.operator.call("GET", path)
    own = [story.node_a.node_id, story.node_b.node_id]
    assert [row["id"] for row in listed.json["items"]] == own
    assert {row["domain_id"] for row in listed.json["items"]} == {story.domain_id}
    first = await story.operator.call("GET", path + "&limit=1")
    cursor = first.json["next_cursor"]
    rest = await story.operator.call("GET", f"{path}&limit=1&cursor={cursor}")
    assert [row["id"] for page in (first, rest) for row in page.json["items"]] == own
    assert str(await story.operator.call("GET", f"{path}&cursor={cursor[::-1]}")) == "400 invalid_cursor"
    assert str(await story.operator.call("GET", f"{path}&limit=0")) == "400 invalid_limit"
    # Somebody who may do nothing here, and a Domain that is not there, look alike; the cursor is the caller's own.
    subject = f"stranger-{uuid.uuid4().hex[:8]}"
    stranger = await scene.outside.sign_in(Login(subject), story.domain_id)
    foreign = await stranger.call("GET", f"/v1/nodes?domain_id={scene.story.domain_id}")
    nowhere = await stranger.call("GET", f"/v1/nodes?domain_id={uuid.uuid4()}")
    assert str(foreign) == str(nowhere)
    assert foreign.status == 403 or foreign.json["items"] == []
    borrowed = await stranger.call("GET", f"{path}&cursor={cursor}")
    assert refused(borrowed) == (403, "cursor_binding_mismatch")
