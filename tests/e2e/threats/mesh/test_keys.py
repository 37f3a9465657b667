"""F-1: keys that were retired or revoked open nothing any more, and nobody hands nodes a key of his own."""

import asyncio
import base64
import datetime
import json
from typing import Any

import pytest

from tests.e2e.attacker import ask_vault, eventually, sign_in_vault
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener, publish, tell, verdict
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
        _, subject, _ = await arena.broker.find(genuine)
        forged = await sign_in_vault(arena.world, story.domain_id, fresh(heard.envelope, key_id=old["key_id"]), 1)
        # Nothing is wrong with it but the time: the very key signed it that the Domain began with.
        assert verdict(forged.decode(), {old["key_id"]: base64.b64decode(old["public_key"])}) == "ok"
        place = await arena.broker.put(subject, forged)
        await node.until(await say(story))
    assert place not in [one.sequence for one in node.heard]
    assert {one.verdict for one in node.heard} == {"ok"}
    assert await arena.refused() - before == {"unknown_key": 1}
    await arena.recorded("unknown_key", f"/v1/domains/{story.domain_id}")


@pytest.mark.parametrize("end", ["ran out", "was revoked"])
async def test_an_announcement_that_waits_until_its_key_is_gone_holds_nothing_up(
    arena: Arena, story: Story, end: str
) -> None:
    dba = await arena.world.superuser()
    async with Listener(story.operator, story.node_a) as node:
        await node.until(await say(story))
        old = (await keys(story))[0]
        seconds = 10 if end == "ran out" else 600
        rotated = await story.operator.call("POST", keys_path(story) + "/rotate", {"transition_seconds": seconds})
        assert rotated.status == 200, rotated.body
        await node.hears("signing_key_rotated")
        count = "SELECT count(*) FROM mesh.{} WHERE domain_id = $1 AND type = 'signing_key_rotated'"

        async def queued() -> bool:
            return bool(await dba.fetchval(count.format("event_outbox"), story.domain_id))

        async def drained() -> bool:
            return not await dba.fetchval(
                "SELECT count(*) FROM mesh.event_outbox WHERE domain_id = $1", story.domain_id
            )

        # Nothing is signed meanwhile.
        await arena.world.kill("openbao")
        try:
            # As if the last announcement were five minutes ago: the next one is due.
            due = "UPDATE mesh.signing_keys SET announced_at = announced_at - interval '5 minutes' WHERE kid = $1"
            await dba.execute(due, rotated.json["key_id"])
            await eventually(queued)
            if end == "was revoked":
                revoked = await story.operator.call("POST", f"{keys_path(story)}/{old['key_id']}/revoke")
                assert revoked.status == 200, revoked.body
            else:
                await asyncio.sleep(seconds)
        finally:
            await arena.world.start("openbao")
        await eventually(drained)
        assert await dba.fetchval(count.format("event_log"), story.domain_id) == 1
        await dba.close()
        await node.until(await say(story))
    assert {one.verdict for one in node.heard} == {"ok"}
    reasons = [one.envelope["payload"].get("reason") for one in node.heard]
    assert ("signing_key_revoked" in reasons) is (end == "was revoked")


async def test_a_domain_whose_key_was_made_exportable_stops_and_no_other_does(arena: Arena, story: Story) -> None:
    genuine = await say(story)
    _, subject, data = await arena.broker.find(genuine)
    forged = [await sign_in_vault(arena.world, story.domain_id, fresh(json.loads(data))) for _ in range(5)]
    await ask_vault(arena.world, f"transit-mesh/keys/evk-{story.domain_id}/config", {"exportable": True})
    # What mesh knows of the key it asked for once.
    await arena.world.restart("mesh")
    async with arena.listen() as listener:
        # The gateway may hear only now that mesh was away, and end what it had just opened.
        await tell(listener, arena.operator, arena.domain, arena.scope)
        connections = len(listener.statuses)
        before = await arena.refused()
        for envelope in forged:
            await arena.broker.put(subject, envelope)
            await listener.until(await arena.publish())
        assert len(listener.statuses) == connections
    assert await arena.refused() - before == {"unknown_key": len(forged)}
    body = {"type": "action_request", "scope": f"domain:{story.domain_id}"}
    refused = await story.operator.call("POST", f"/v1/domains/{story.domain_id}/events", body)
    assert (refused.status, refused.code) == (503, "signing_unavailable")


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
        # It cannot be resumed, as some is not here any more: it begins with the reconciliation of now.
        await late.until(await say(story))
    assert current["key_id"] not in {one.envelope["key_id"] for one in late.heard}
    again = await story.operator.call("POST", f"{keys_path(story)}/{current['key_id']}/revoke")
    assert (again.status, again.code) == (409, "signing_key_revoked")
    missing = await story.operator.call("POST", f"{keys_path(story)}/evk_{'0' * 32}/revoke")
    assert (missing.status, missing.code) == (404, "signing_key_not_found")


async def test_nobody_announces_a_key_of_his_own(arena: Arena, story: Story) -> None:
    payload = {
        "key_id": "evk_" + "1" * 32,
        "public_key": base64.b64encode(bytes(32)).decode(),
        "previous_key_id": (await keys(story))[0]["key_id"],
        "transition_expires": "2030-01-01T00:00:00Z",
    }
    body = {"type": "signing_key_rotated", "scope": f"domain:{story.domain_id}", "payload": payload}
    answer = await story.operator.call("POST", f"/v1/domains/{story.domain_id}/events", body)
    assert (answer.status, answer.code) == (422, "event_type_reserved")
    await arena.recorded("event_type_reserved", f"/v1/domains/{story.domain_id}")


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
