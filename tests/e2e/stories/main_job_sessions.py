"""The main job's privileged session: refused, stepped up at the real provider, issued, heard of, and taken back."""

import asyncio

from tests.e2e import sessions
from tests.e2e.listener import Listener
from tests.e2e.outside import Login
from tests.e2e.sessions import MFA, PHR, Person
from tests.e2e.stories.main_job import STEPS, Story, action, entries, step

__all__ = ["STEPS"]

REFUSED = f'200; 401 step_up_required, Bearer error="insufficient_user_authentication", acr_values="{PHR}"'


@step("a Domain asks for phr; its operator, signed in with mfa, asks for a session", REFUSED)
async def refused_session(story: Story) -> str:
    put = await sessions.put_policy(story, required_acr=[PHR], max_auth_age_seconds=300)
    login = Login("anna", acr=MFA, amr=("pwd", "otp"))
    story.person = await Person.of(story.outside, story.domain_id, login)
    await sessions.give(story, story.person)
    resource_id = await sessions.resource_of(story, story.node_a.handle)
    story.refused = await sessions.issue(story.person.edge, story, resource_id)
    return f"{put}; {story.refused}, {story.refused.headers.get('WWW-Authenticate', '')}"


@step("she steps up at the provider as the challenge says; the same request", "201; token verifies; node A is told, ok")
async def stepped_up(story: Story) -> str:
    resource_id = await sessions.resource_of(story, story.node_a.handle)
    async with Listener(story.operator, story.node_a) as node:
        person = await story.person.step_up(story.refused, Login("anna", acr=PHR, amr=("hwk",)))
        story.person, answer = person, await sessions.issue(person.edge, story, resource_id)
        if answer.status != 201:
            return f"{answer} {answer.body!r}"
        story.session_id, token = answer.json["session_id"], answer.json["token"]
        story.planted["session token"] = token.rpartition(".")[2].encode()
        said = await sessions.claims(story, token)
        heard = await node.hears("session_setup")
    fits = said["aud"] == f"node:{story.node_a.node_id}" and said["acr"] == PHR and said["sub"] == person.subject
    told = heard.envelope["payload"]["session_id"] == said["jti"] == story.session_id
    return f"{answer}; token {'verifies' if fits else said}; node A {'is told' if told else heard}, {heard.verdict}"


TAKEN = "204; node A is told within 1 s; its callback 204, then 409 session_already_revoked; in the chain: all three"


@step("the session is revoked", TAKEN)
async def revoked(story: Story) -> str:
    callback = f"/v1/nodes/{story.node_a.node_id}/sessions/{story.session_id}"
    as_node = story.operator.as_bearer(story.node_a.bearer)
    report = {"ssh": {"command": "uptime"}}
    async with Listener(story.operator, story.node_a) as node:
        before = await as_node.call("POST", callback, report)
        path = f"/v1/projects/{story.project_id}/sessions/{story.session_id}/revoke"
        done = await story.person.edge.call("POST", path, {"revoke_reason": "operator_request"})
        answered = asyncio.get_running_loop().time()
        after = await as_node.call("POST", callback, report)
        heard = await node.hears("session_revoked")
    late = heard.at - answered
    rows = [
        (entry["reason"], entry["decision"]["caveat_context"])
        for entry in await entries(story)
        if action(entry) in {"session.issue", "session.revoke"}
    ]
    # Newest first.
    seen = [reason for reason, _ in rows] == ["granted", "granted", "caveat_violation"]
    named = seen and rows[2][1].get("step_up") == ["acr_insufficient"]
    told = "within 1 s" if late < 1 else f"after {late:.1f} s"
    chain = "all three" if named else str(rows)
    return f"{done}; node A is told {told}; its callback {before}, then {after}; in the chain: {chain}"
