"""A Domain whose sessions are attacked, and all that must be true after a refusal."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest

from tests.e2e import sessions
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener, publish
from tests.e2e.outside import JSON, Answer, Edge, Login, Outside
from tests.e2e.seen import SHAPES
from tests.e2e.sessions import PHR, Person
from tests.e2e.stories.main_job import Story, create, issue_tokens, register, sign_in
from tests.e2e.world import World

VIOLATION = "caveat_violation"
# Strong enough for the policy below.
STRONG = Login("", acr=PHR, amr=("hwk",))
POLICY: JSON = {
    "required_acr": [PHR], "required_amr": ["hwk"], "max_auth_age_seconds": 300, "max_active_per_identity": 1000,
    "max_active_per_node": 10_000, "issue_rate_per_minute": 10_000,
}  # fmt: skip
# Sessions and events by the id of the session: an event is in access's outbox or in mesh's log.
SESSIONS = "SELECT id::text FROM access.sessions WHERE domain_id = $1"
EVENTS = """
SELECT session FROM (
    SELECT id, payload ->> 'session_id' AS session FROM access.event_outbox
    WHERE domain_id = $1 AND type = 'session_setup'
    UNION
    SELECT id, convert_from(envelope, 'UTF8')::json -> 'payload' ->> 'session_id' FROM mesh.event_log
    WHERE domain_id = $1 AND type = 'session_setup'
) events
"""
ROWS = """
SELECT chain, reason, relation, object_type, object_id, context, occurred_at FROM audit.entries
WHERE correlation_id = $1
"""
# Rows that grant a session as new, by its id; a repeat's row is about a session that has its own.
GRANTED = """
SELECT context -> 'session' ->> 1 FROM audit.entries
WHERE chain = $1 AND reason = 'granted' AND context -> 'action' ->> 0 = 'session.issue' AND NOT context ? 'idempotency'
"""


@dataclass(frozen=True)
class Traces:
    """What sessions leave in the database: rows and events by session, and places that are held."""

    sessions: tuple[str, ...]
    events: tuple[str, ...]
    places: int


@dataclass
class Stage:
    """Where sessions are asked for, and what is left of it."""

    world: World
    scene: Scene
    story: Story
    dba: asyncpg.Connection
    resources: tuple[str, str]
    before: Traces

    async def policy(self, **more: Any) -> None:
        """Put the Domain's policy, with changes."""
        put = await sessions.put_policy(self.story, **(POLICY | more))
        assert put.status == 200, put.body

    async def person(self, login: Login = STRONG, relation: str = "operator") -> Person:
        """Let somebody new sign in at the Domain's provider, and give them a role in the project."""
        named = login if login.subject else replace(login, subject=f"p-{uuid.uuid4().hex[:12]}")
        person = await Person.of(self.scene.outside, self.story.domain_id, named)
        if relation:
            await sessions.give(self.story, person, relation)
        return person

    async def issue(self, edge: Edge, **more: Any) -> Answer:
        """Ask for a shell on node A."""
        return await sessions.issue(edge, self.story, more.pop("resource_id", self.resources[0]), **more)

    def path(self, session_id: str, what: str = "") -> str:
        """Return the path of a session as operators see it."""
        return f"/v1/projects/{self.story.project_id}/sessions/{session_id}{what}"

    async def revoke(self, edge: Edge, issued: Answer) -> None:
        """Revoke a session that was issued."""
        assert issued.status == 201, issued.body
        path = self.path(issued.json["session_id"], "/revoke")
        assert (await edge.call("POST", path, {"revoke_reason": "operator_request"})).status == 204

    async def report(self, session_id: str, body: JSON | None = None) -> Answer:
        """Report on a session as node A."""
        node = self.story.node_a
        path = f"/v1/nodes/{node.node_id}/sessions/{session_id}"
        return await self.scene.edge.as_bearer(node.bearer).call("POST", path, body or {"ssh": {"command": "id"}})

    async def rows(self, answer: Answer) -> list[JSON]:
        """Return what any chain says of a request."""
        found = await self.dba.fetch(ROWS, answer.headers["X-Correlation-Id"])
        return [{**dict(row), "context": json.loads(row["context"])} for row in found]

    async def row(self, answer: Answer) -> JSON:
        """Return the only row of a request."""
        (row,) = await self.rows(answer)
        return row

    async def granted(self) -> list[str]:
        """Return the ids of all sessions that the Domain's chain grants."""
        return [str(row[0]) for row in await self.dba.fetch(GRANTED, self.story.domain_id)]

    async def traces(self) -> Traces:
        """Return what the Domain's sessions have left."""
        mine = self.story.domain_id
        found = [sorted(str(row[0]) for row in await self.dba.fetch(sql, mine)) for sql in (SESSIONS, EVENTS)]
        places = await self.dba.fetchval("SELECT count(*) FROM access.reservations WHERE expires_at > now()")
        return Traces(tuple(found[0]), tuple(found[1]), places)

    async def reconnect(self) -> None:
        """Connect to the database once more, which may have been killed."""
        self.dba.terminate()
        self.dba = await self.world.superuser()

    async def consistent(self) -> None:
        """See that each session has one row that grants it and one event, and that no event lacks its session."""
        traces, granted = await self.traces(), Counter(await self.granted())
        assert traces.sessions == traces.events
        assert {granted[one] for one in traces.sessions} == {1}

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Listener]:
        """Listen as node A, which has a cursor: it misses nothing while its stream is down."""
        async with Listener(self.scene.edge, self.story.node_a) as node:
            await self.mark(node)
            yield node

    async def mark(self, node: Listener) -> None:
        """Publish something to node A and wait until it was heard: what went before was heard, too."""
        scope = f"node:{self.story.node_a.node_id}"
        await node.until(await publish(self.story.operator, self.story.domain_id, scope))

    @asynccontextmanager
    async def nothing_issued(self) -> AsyncIterator[None]:
        """See that the block leaves no session, no event and no place, and that the node hears of none."""
        before = await self.traces()
        async with self.listen() as node:
            yield
            assert await self.traces() == before
            await self.mark(node)
        # Of sessions before it may still have heard.
        told = [one.envelope["payload"]["session_id"] for one in node.heard if one.envelope["type"] == "session_setup"]
        assert set(told) <= set(before.events)

    async def refused(self, answer: Answer, said: str, reason: str = VIOLATION, **context: list[str] | None) -> None:
        """See that a refusal has exactly one row, which names the control, and no token."""
        assert str(answer) == said, answer.body
        no_token(answer)
        row = await self.row(answer)
        named = {name: row["context"].get(name) for name in context}
        assert (row["chain"], row["reason"], named) == (self.story.domain_id, reason, context)
        assert row["context"]["action"] == ["session.issue"]

    async def granted_once(self, answer: Answer) -> str:
        """See that a session is granted by exactly one row and has one event; returns its id."""
        assert answer.status == 201, answer.body
        session_id = str(answer.json["session_id"])
        row = await self.row(answer)
        assert (row["reason"], row["context"]["session"]) == ("granted", ["ssh", session_id])
        traces = await self.traces()
        assert (traces.sessions.count(session_id), traces.events.count(session_id)) == (1, 1)
        assert (await sessions.claims(self.story, answer.json["token"]))["jti"] == session_id
        return session_id


def no_token(answer: Answer) -> None:
    """See that an answer holds nothing that has the form of a credential."""
    assert "token" not in answer.json
    assert not SHAPES.search(answer.body + repr(answer.headers).encode())


async def _set_stage(world: World) -> Story:
    async with Outside(world.edge_url, world.ca_file) as outside:
        story = Story(world, outside, outside.edge())
        for step in (sign_in, create, issue_tokens, register):
            await step(story)
        # The Domain's first session makes its key, which has a row of its own.
        assert (await sessions.put_policy(story, **POLICY)).status == 200
        person = await Person.of(outside, story.domain_id, replace(STRONG, subject="first"))
        await sessions.give(story, person)
        issued = await sessions.issue(person.edge, story, await sessions.resource_of(story, story.node_a.handle))
        assert issued.status == 201, issued.body
        return story


@pytest.fixture(scope="session")
def set_stage(world: World) -> Story:
    return asyncio.run(_set_stage(world))


@pytest.fixture
async def stage(world: World, scene: Scene, set_stage: Story) -> AsyncIterator[Stage]:
    story = replace(set_stage, outside=scene.outside, operator=scene.operator)
    dba = await world.superuser()
    resources = [await sessions.resource_of(story, node.handle) for node in (story.node_a, story.node_b)]
    found = Stage(world, scene, story, dba, (resources[0], resources[1]), Traces((), (), 0))
    await found.policy()
    found.before = await found.traces()
    yield found
    await found.dba.close()
