"""Privileged sessions as people and nodes live with them, by plexctl and over HTTPS."""

import asyncio
import datetime
import json
import os
import re
import uuid
from pathlib import Path

import pytest

from tests.e2e import sessions
from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener
from tests.e2e.outside import Answer, Login
from tests.e2e.seen import note
from tests.e2e.sessions import MFA, PHR, Person
from tests.e2e.stories.main_job import Story
from tests.e2e.world import PLEXCTL, World

pytestmark = pytest.mark.e2e


@pytest.fixture
async def anna(story: Story) -> Person:
    """An operator of the project, signed in as strongly as the Domain asks."""
    assert (await sessions.put_policy(story, required_acr=[PHR])).status == 200
    login = Login(f"anna-{uuid.uuid4().hex[:8]}", acr=PHR, amr=("hwk",))
    person = await Person.of(story.outside, story.domain_id, login)
    await sessions.give(story, person)
    return person


@pytest.fixture
async def resource(story: Story) -> str:
    return await sessions.resource_of(story, story.node_a.handle)


def path(story: Story, issued: Answer) -> str:
    assert issued.status == 201, issued.body
    return f"/v1/projects/{story.project_id}/sessions/{issued.json['session_id']}"


async def status(story: Story, issued: Answer) -> str:
    shown = await story.operator.call("GET", path(story, issued))
    return str(shown.json.get("status", shown))


@pytest.fixture
def operator(scene: Scene, story: Story) -> Story:
    """The story's operator, by access token, as sessions want it."""
    story.operator = scene.operator
    return story


async def test_plexctl_follows_the_challenge(operator: Story, resource: str, tmp_path: Path, world: World) -> None:
    story = operator
    assert (await sessions.put_policy(story, required_acr=[PHR])).status == 200
    anna = await Person.of(story.outside, story.domain_id, Login("anna", acr=MFA))
    await sessions.give(story, anna)
    token, out = tmp_path / "token", tmp_path / "session.token"
    token.write_text(anna.edge.caller["Authorization"].removeprefix("Bearer "))
    env = {name: world.env[name] for name in ("PLEX_EDGE_URL", "PLEX_CA_FILE")}
    env |= {"PLEX_TOKEN_FILE": str(token), "XDG_CONFIG_HOME": str(tmp_path)}
    command = ["session", "issue", story.project_id, resource, "--ssh", "root", "--out", str(out), "--json"]
    process = await asyncio.create_subprocess_exec(
        *PLEXCTL, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **env}
    )
    assert process.stderr is not None
    said = b""
    while not (code := re.search(rb"code ([A-Z2-7]{4}-[A-Z2-7]{4})", said)):
        line = await process.stderr.readline()
        assert line, said
        said += line
    note("user code", code[1])
    asked = (await story.operator.call("GET", f"/v1/domains/{story.domain_id}/access-policy")).json
    browser = await story.outside.sign_in(
        Login("anna", acr=PHR, amr=("hwk",)), story.domain_id, acr_values=asked["required_acr"]
    )
    approved = await browser.call("POST", "/v1/auth/device/approve", {"user_code": code[1].decode()})
    assert approved.status == 200, approved.body
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, said + stderr
    shown = json.loads(stdout)
    note("session token", out.read_bytes())
    assert out.stat().st_mode & 0o777 == 0o600
    found = await sessions.claims(story, out.read_text())
    assert (found["jti"], found["acr"], found["target"]["ssh"]["user"]) == (shown["id"], PHR, "root")
    assert "token" not in shown


async def test_an_idempotent_repeat_is_the_same_session_and_no_way_around_the_gate(
    operator: Story, anna: Person, resource: str
) -> None:
    key = str(uuid.uuid4())
    first, again = [await sessions.issue(anna.edge, operator, resource, idempotency_key=key) for _ in range(2)]
    assert first.status == again.status == 201, again.body
    assert first.json["token"] == again.json["token"]
    other = await sessions.issue(anna.edge, operator, resource, idempotency_key=key, requested_ttl_seconds=1)
    assert str(other) == "409 idempotency_conflict"
    weaker = await Person.of(operator.outside, operator.domain_id, Login(anna.login.subject, acr=MFA))
    down = await sessions.issue(weaker.edge, operator, resource, idempotency_key=key)
    assert str(down) == "401 step_up_required"
    assert (await sessions.put_policy(operator, required_acr=[PHR], required_amr=["face"])).status == 200
    tightened = await sessions.issue(anna.edge, operator, resource, idempotency_key=key)
    assert str(tightened) == "401 step_up_required"
    assert tightened.headers["WWW-Authenticate"] == 'Bearer error="insufficient_user_authentication"'


async def test_a_rotated_key_overlaps_and_a_revoked_one_verifies_nothing(
    operator: Story, anna: Person, resource: str
) -> None:
    first = await sessions.issue(anna.edge, operator, resource)
    await sessions.claims(operator, first.json["token"])
    keys = f"/v1/domains/{operator.domain_id}/signing-keys"
    rotated = await operator.operator.call("POST", f"{keys}/rotate", {"use": "session", "transition_seconds": 600})
    assert rotated.status == 200, rotated.body
    second = await sessions.issue(anna.edge, operator, resource)
    for issued in (first, second):
        await sessions.claims(operator, issued.json["token"])
    listed = (await operator.operator.call("GET", keys)).json["items"]
    of_sessions = [(row["status"], row["key_id"]) for row in listed if row["use"] == "session"]
    assert [known for known, _ in of_sessions] == ["current", "previous"]
    assert of_sessions[0][1] == rotated.json["key_id"]
    async with Listener(operator.operator, operator.node_a) as node:
        revoked = await operator.operator.call("POST", f"{keys}/{of_sessions[1][1]}/revoke")
        assert revoked.status == 200, revoked.body
        # What it signed ends with it: at once for whoever looks, and the node is told.
        assert [await status(operator, issued) for issued in (first, second)] == ["revoked", "active"]
        callback = f"/v1/nodes/{operator.node_a.node_id}/sessions/{first.json['session_id']}"
        bearer = operator.outside.edge().as_bearer(operator.node_a.bearer)
        assert str(await bearer.call("POST", callback, {"ssh": {"command": "id"}})) == "409 session_already_revoked"
        heard = await node.hears("session_revoked")
        assert heard.envelope["payload"]["session_id"] == first.json["session_id"]
    await sessions.claims(operator, second.json["token"])
    with pytest.raises(ValueError, match="not enough values"):
        await sessions.claims(operator, first.json["token"])


async def test_who_signs_out_or_loses_the_role_loses_the_session_also_while_access_is_down(
    operator: Story, anna: Person, resource: str, world: World
) -> None:
    story = operator
    ben = await Person.of(story.outside, story.domain_id, Login("ben", acr=PHR))
    cleo = await Person.of(story.outside, story.domain_id, Login("cleo", acr=PHR))
    role, _ = await sessions.give(story, ben), await sessions.give(story, cleo)
    hers, his, stays = [await sessions.issue(one.edge, story, resource) for one in (anna, ben, cleo)]
    async with Listener(story.operator, story.node_a) as node:
        assert (await anna.browser.call("DELETE", "/v1/auth/whoami")).status == 204
        heard = await node.hears("session_revoked")
        assert heard.envelope["payload"]["session_id"] == hers.json["session_id"]
    assert await status(story, hers) == "revoked"
    await world.kill("access")
    removed = await story.operator.call("DELETE", f"/v1/authz/relation-tuples/{role}")
    assert removed.status == 204, removed.body
    await world.start("access")

    async def gone() -> bool:
        return await status(story, his) == "revoked"

    await eventually(gone)
    assert await status(story, stays) == "active"


async def test_a_role_that_runs_out_ends_its_session_and_one_for_an_address_does_not(
    operator: Story, anna: Person, resource: str
) -> None:
    story, ends = operator, datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=8)
    conditions = {"expires": {"until": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}, "from_network": {"network": "127.0.0.0/8"}}
    issued = {}
    for name, context in conditions.items():
        who = await Person.of(story.outside, story.domain_id, Login(f"{name}-{uuid.uuid4().hex[:8]}", acr=PHR))
        await sessions.give(story, who, caveat_name=name, caveat_context=context)
        issued[name] = await sessions.issue(who.edge, story, resource)
        assert issued[name].status == 201, issued[name].body
    role = await sessions.give(story, anna, "viewer")
    await asyncio.sleep(max(0.0, (ends - datetime.datetime.now(datetime.UTC)).total_seconds()))
    # Any revocation calls for a look at all there is; without one it is made within a minute.
    assert (await story.operator.call("DELETE", f"/v1/authz/relation-tuples/{role}")).status == 204

    async def gone() -> bool:
        return await status(story, issued["expires"]) == "revoked"

    await eventually(gone)
    assert await status(story, issued["from_network"]) == "active"


async def test_a_repeat_is_a_request_of_its_minute_and_ends_with_its_own_sign_in(
    operator: Story, anna: Person, resource: str
) -> None:
    assert (await sessions.put_policy(operator, required_acr=[PHR], issue_rate_per_minute=3)).status == 200
    key = str(uuid.uuid4())
    first = await sessions.issue(anna.edge, operator, resource, idempotency_key=key)
    again = await Person.of(operator.outside, operator.domain_id, anna.login)
    repeated = await sessions.issue(again.edge, operator, resource, idempotency_key=key)
    assert (repeated.status, repeated.json["token"]) == (201, first.json["token"]), repeated.body
    await sessions.issue(anna.edge, operator, resource, idempotency_key=key)
    for more in ({"idempotency_key": key}, {}):
        refused = await sessions.issue(anna.edge, operator, resource, **more)
        assert (str(refused), "issue_rate" in refused.json["detail"]) == ("429 session_limit_exceeded", True)
    assert (await again.browser.call("DELETE", "/v1/auth/whoami")).status == 204

    async def gone() -> bool:
        return await status(operator, first) == "revoked"

    await eventually(gone)


async def test_a_session_token_is_accepted_nowhere_in_the_control_plane(
    operator: Story, anna: Person, resource: str
) -> None:
    issued = await sessions.issue(anna.edge, operator, resource)
    bearer = operator.outside.edge().as_bearer(issued.json["token"])
    callback = f"/v1/nodes/{operator.node_a.node_id}/sessions/{issued.json['session_id']}"
    for method, where in (("GET", "/v1/auth/whoami"), ("GET", path(operator, issued)), ("POST", callback)):
        assert (await bearer.call(method, where, {} if method == "POST" else None)).status == 401
