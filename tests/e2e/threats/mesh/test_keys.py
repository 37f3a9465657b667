"""F-1: keys that were retired or revoked open nothing any more, and nobody hands nodes a key of his own."""

import asyncio
import base64
import datetime
from typing import Any

import pytest

from tests.e2e.attacker import sign_in_vault
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener, publish
from tests.e2e.outside import JSON, Edge
from tests.e2e.stories.main_job import Story, create, issue_tokens, register, sign_in
from tests.e2e.threats.mesh.conftest import Arena
from tests.e2e.threats.mesh.test_forgeries import fresh
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


@pytest.fixture
async def story(world: World, scene: Scene) -> Story:
    """A Domain of its own, so that its keys concern nobody else."""
    made = Story(world, scene.outside, scene.edge)
    for step in (sign_in, create, issue_tokens, register):
        await step(made)
    return made


def keys_path(story: Story) -> str:
    return f"/v1/domains/{story.domain_id}/signing-keys"


async def keys(story: Story) -> list[JSON]:
    answer = await story.operator.call("GET", keys_path(story))
    assert answer.status == 200, answer.body
    found: list[JSON] = answer.json["items"]
    return found


async def say(story: Story, **payload: Any) -> str:
    return await publish(story.operator, story.domain_id, f"domain:{story.domain_id}", **payload)


async def test_the_retired_key_verifies_nothing_after_its_transition(arena: Arena, story: Story) -> None:
    async with Listener(story.operator, story.node_a) as node:
        await say(story)
        old = (await keys(story))[0]
        rotated = await story.operator.call("POST", keys_path(story) + "/rotate", {"transition_seconds": 2})
        assert rotated.status == 200, rotated.body
        expires = datetime.datetime.fromisoformat((await keys(story))[1]["transition_expires"])
        again = await story.operator.call("POST", keys_path(story) + "/rotate", {"transition_seconds": 2})
        assert (again.status, again.code) == (409, "rotation_under_way")
        genuine = await say(story)
        heard = await node.until(genuine)
        assert heard.envelope["key_id"] == rotated.json["key_id"] != old["key_id"]
        await asyncio.sleep(max(0.0, (expires - datetime.datetime.now(datetime.UTC)).total_seconds()) + 0.1)
        assert [key["status"] for key in await keys(story)] == ["current", "retired"]
        before = await arena.refused()
        # The vault signs with the newest key; the attacker names the old one, which is all that a receiver sees.
        _, subject, _ = await arena.broker.find(genuine)
        forged = await sign_in_vault(arena.world, story.domain_id, fresh(heard.envelope, key_id=old["key_id"]))
        place = await arena.broker.put(subject, forged)
        await node.until(await say(story))
    assert place not in [one.sequence for one in node.heard]
    assert {one.verdict for one in node.heard} == {"ok"}
    assert await arena.refused() - before == {"unknown_key": 1}


async def test_a_revoked_key_counts_for_nothing_at_once_and_nodes_are_told_what_to_do(story: Story) -> None:
    async with Listener(story.operator, story.node_a) as node:
        await node.until(await say(story))
        current = (await keys(story))[0]
        revoked = await story.operator.call("POST", f"{keys_path(story)}/{current['key_id']}/revoke")
        assert revoked.status == 200, revoked.body
        assert "register again" in revoked.json["nodes"]
        assert revoked.json["revoked"]["status"] == "revoked"
        after = await say(story)
        heard = await node.until(after)
    # The node knows only the key that was revoked, so it believes nothing from here on.
    assert heard.verdict == "unknown key"
    assert heard.envelope["key_id"] == revoked.json["current"]["key_id"]
    # A gateway serves nothing that the revoked key signed, whoever asks for it.
    late = Listener(story.operator, story.node_b, keys={heard.envelope["key_id"]: b""})
    late.cursor = str(node.heard[0].sequence - 1)
    async with late:
        await late.until(after)
    assert current["key_id"] not in {one.envelope["key_id"] for one in late.heard}
    again = await story.operator.call("POST", f"{keys_path(story)}/{current['key_id']}/revoke")
    assert (again.status, again.code) == (409, "signing_key_revoked")
    missing = await story.operator.call("POST", f"{keys_path(story)}/evk_{'0' * 32}/revoke")
    assert (missing.status, missing.code) == (404, "signing_key_not_found")


async def test_nobody_announces_a_key_of_his_own(story: Story) -> None:
    payload = {
        "key_id": "evk_" + "1" * 32,
        "public_key": base64.b64encode(bytes(32)).decode(),
        "previous_key_id": (await keys(story))[0]["key_id"],
        "transition_expires": "2030-01-01T00:00:00Z",
    }
    body = {"type": "signing_key_rotated", "scope": f"domain:{story.domain_id}", "payload": payload}
    answer = await story.operator.call("POST", f"/v1/domains/{story.domain_id}/events", body)
    assert (answer.status, answer.code) == (422, "event_type_reserved")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"type": "made_up", "scope": "self"}, 422, "event_type_unknown"),
        ({"type": "action_request", "scope": "domain:01a20bbe-3600-7a32-b169-2a0808b6ba0d"}, 422, "unprocessable"),
        ({"type": "action_request", "scope": "node:01a20bbe-3600-7a32-b169-2a0808b6ba0d"}, 403, "permission_denied"),
        ({"type": "action_request", "scope": "fleet:all"}, 400, "invalid_body"),
        ({"type": "action_request", "scope": "self", "payload": []}, 400, "invalid_body"),
        ({"type": "action_request", "scope": "self", "payload": {"a": "\ud800"}}, 400, "invalid_body"),
        ({"type": "action_request"}, 400, "invalid_body"),
    ],
)
async def test_bad_events_are_refused_with_a_code(story: Story, body: JSON, status: int, code: str) -> None:
    wanted = {**body, "scope": f"domain:{story.domain_id}"} if body.get("scope") == "self" else body
    answer = await story.operator.call("POST", f"/v1/domains/{story.domain_id}/events", wanted)
    assert (answer.status, answer.code) == (status, code)


async def test_strangers_neither_list_nor_rotate_nor_publish(arena: Arena, story: Story, scene: Scene) -> None:
    from tests.e2e.outside import Login

    stranger: Edge = await scene.outside.sign_in(Login("nobody"))
    for method, path, body in (
        ("GET", keys_path(story), None),
        ("POST", keys_path(story) + "/rotate", {}),
        ("POST", f"{keys_path(story)}/evk_{'0' * 32}/revoke", None),
        (
            "POST",
            f"/v1/domains/{story.domain_id}/events",
            {"type": "action_request", "scope": f"domain:{story.domain_id}"},
        ),
    ):
        answer = await stranger.call(method, path, body)
        assert (answer.status, answer.code) == (403, "permission_denied"), path
    assert len(await keys(story)) == 1
