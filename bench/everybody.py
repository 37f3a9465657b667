"""Everybody at once, as the story has them: what is asked of a deployment while it is rolled, and what came of it."""

import asyncio
import contextlib
import random
import ssl
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bench.agent import FINAL, Agent
from bench.deployment import Deployment, Operator
from bench.measure import Check, Report
from bench.soak import none
from tests.e2e import sessions
from tests.e2e.enrolling import Desk
from tests.e2e.outside import Answer, Login, Node
from tests.e2e.sessions import PHR, Person
from tests.e2e.stories.main_job import SECRET_NAME, Story, create, issue_tokens, now, put_secret, register

PAUSE_S = 0.15
TRIES = 8
UNAVAILABLE, TOO_MANY = 503, 429
LISTENERS = 4
# Far above what is asked here, so that what is refused is refused by a roll.
POLICY = {
    "required_acr": [PHR], "max_auth_age_seconds": 3600, "max_active_per_identity": 10_000,
    "max_active_per_node": 10_000, "issue_rate_per_minute": 10_000, "node_rate_per_minute": 600, "node_burst": 100,
}  # fmt: skip
# The action of the row that each effect must have.
ROW_OF = {
    "register": "node.register", "read": "secret.read", "publish": "event.publish", "issue": "session.issue",
    "revoke": "session.revoke",
}  # fmt: skip
DONE = ROW_OF.keys() | {"adopt", "bootstrap", "heartbeat", "entries", "verify"}
ROWS = "SELECT correlation_id, context -> 'action' ->> 0 AS action FROM audit.entries WHERE chain = $1"

Send = Callable[[], Awaitable[Answer]]


@dataclass(frozen=True)
class Published:
    """An event whose sequence was acknowledged."""

    id: str
    scope: str
    sequence: int


@dataclass
class Load:
    """What everybody does, and what came of it."""

    story: Story
    person: Person
    resource_id: str
    agents: list[Agent]
    rolling: str = "nothing"
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    done: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    effects: list[tuple[str, str]] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)

    async def ask(self, what: str, send: Send, status: int, *, again: bool = True) -> Answer | None:
        """Send a request until it is answered, as its client may: after 503; a lost one only `again`."""
        said = ""
        for _ in range(TRIES):
            wait = 0.1
            try:
                answer = await send()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                said = type(error).__name__
                self.cut.append(f"while {self.rolling} was rolled: {what}: {said}")
                if not again:
                    break
            else:
                if answer.status == status:
                    self.done[what] += 1
                    if what in ROW_OF:
                        self.effects.append((what, answer.headers["X-Correlation-Id"]))
                    return answer
                said = f"{answer} {answer.json.get('detail', '')}"
                if answer.status not in {UNAVAILABLE, TOO_MANY}:
                    break
                wait = float(answer.headers.get("Retry-After", "1"))
            self.retried[f"{self.rolling}: {what} {said}"] += 1
            await asyncio.sleep(wait)
        self.failed.append(f"while {self.rolling} was rolled: {what}: {said}")
        return None

    def busy(self) -> list[Coroutine[Any, Any, None]]:
        """Return all that happens at once."""
        nodes = (self.story.node_a, self.story.node_b)
        turns = [
            self.register,
            self.session,
            self.audit,
            self.read,
            self.read,
            *(lambda n=n: self.beat(n) for n in nodes),
        ]
        scopes = [f"domain:{self.story.domain_id}", *(f"node:{agent.node.node_id}" for agent in self.agents)]
        return [self._repeat(turn) for turn in [*turns, *(lambda s=s: self.publish(s) for s in scopes)]]

    async def _repeat(self, turn: Callable[[], Awaitable[None]]) -> None:
        while not self.stop.is_set():
            await turn()
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))

    async def register(self) -> None:
        """Adopt a resource and register its node; a machine may send the same registration again."""
        operator, project = self.story.operator, f"/v1/projects/{self.story.project_id}"
        body = {"origin": "adopted", "kind": "server", "external_ref": f"r-{uuid.uuid4().hex[:12]}"}
        adopted = await self.ask("adopt", lambda: operator.call("POST", f"{project}/resources", body), 201, again=False)
        token = {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900}
        path = f"{project}/bootstrap-tokens"
        issued = await self.ask("bootstrap", lambda: operator.call("POST", path, token), 201, again=False)
        if adopted is None or issued is None:
            return
        wish = {
            "project_id": self.story.project_id,
            "resource_handle": adopted.json["id"],
            "bootstrap_token": issued.json["token"],
            "nonce": str(uuid.uuid4()),
            "public_key": Node("").public_key,
        }
        await self.ask("register", lambda: Desk(operator).register(wish), 201)

    async def read(self) -> None:
        """Read a secret."""
        await self.ask("read", lambda: self.story.node_a.read(self.story.operator, SECRET_NAME), 200)

    async def beat(self, node: Node) -> None:
        """Send a heartbeat."""
        await self.ask("heartbeat", lambda: node.heartbeat(self.story.operator, now()), 200)

    async def publish(self, scope: str) -> None:
        """Publish an event."""
        body = {"type": "action_request", "scope": scope, "payload": {"do": "roll"}}
        path = f"/v1/domains/{self.story.domain_id}/events"
        if answer := await self.ask("publish", lambda: self.story.operator.call("POST", path, body), 202, again=False):
            self.published.append(Published(answer.json["id"], scope, answer.json["sequence"]))

    async def session(self) -> None:
        """Have a session issued, by a key that may be sent again, and revoke it."""
        key, edge = str(uuid.uuid4()), self.person.edge
        more = {"idempotency_key": key}
        issued = await self.ask("issue", lambda: sessions.issue(edge, self.story, self.resource_id, **more), 201)
        if issued is not None:
            path = f"/v1/projects/{self.story.project_id}/sessions/{issued.json['session_id']}/revoke"
            await self.ask("revoke", lambda: edge.call("POST", path, {"revoke_reason": "operator_request"}), 204)

    async def audit(self) -> None:
        """Read the audit trail, and have some of it verified."""
        path, operator = f"/v1/domains/{self.story.domain_id}/audit", self.story.operator
        await self.ask("entries", lambda: operator.call("GET", f"{path}/entries?limit=20"), 200)
        await self.ask("verify", lambda: operator.call("POST", f"{path}/verify", {}), 200)

    # What was seen ----------------------------------------------------------------------------------------------------

    async def heard(self, within_s: float = 30.0) -> None:
        """Wait until every stream has what was published to it, or until it is given up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(self._missed(agent) for agent in self.agents):  # noqa: ASYNC110 — bounded, and other processes set no event
                    await asyncio.sleep(0.2)

    def _missed(self, agent: Agent) -> list[str]:
        there = {event.id for event in agent.received}
        return [
            f"{agent.node.handle}: {one.sequence}"
            for one in self.published
            if one.scope in agent.scopes and one.id not in there
        ]

    def _disorder(self, agent: Agent) -> list[str]:
        seen = [event.sequence for event in agent.received]
        return [f"{agent.node.handle}: {b} after {a}" for a, b in pairwise(seen) if b <= a]

    async def judge(self, report: Report) -> None:
        """Add the checks, and what else was seen."""
        told = [event for agent in self.agents for event in agent.received if event.type == "node_state_updated"]
        final = [f"{agent.node.handle}: {code}" for agent in self.agents for code in agent.answers if code in FINAL]
        wanted = sum(1 for agent in self.agents for one in self.published if one.scope in agent.scopes)
        missing = sorted(DONE - self.done.keys())
        report.checks += [
            Check("kinds of requests that were never granted", "none", ", ".join(missing) or "none", not missing),
            none(f"requests failed at the edge ({self.done.total()} done)", self.failed),
            none("requests whose connection was cut", self.cut),
            none(f"events that a stream missed ({wanted} wanted)", [x for a in self.agents for x in self._missed(a)]),
            none(
                "events that a stream got twice, or out of order", [x for a in self.agents for x in self._disorder(a)]
            ),
            none("streams that were told to reconcile instead", [event.id for event in told]),
            none("envelopes that did not verify", [text for agent in self.agents for text in agent.forged]),
            none("answers to nodes that stop an agent for good", final),
            none(f"effects without their one audit row ({len(self.effects)})", await self._unrecorded()),
        ]
        report.shares["done"] = {name: float(count) for name, count in sorted(self.done.items())}
        report.shares["retried"] = {name: float(count) for name, count in sorted(self.retried.items())}
        report.notes += [
            f"answers to nodes: {dict(sum((agent.answers for agent in self.agents), Counter()))}",
            f"streams ended: {dict(sum((agent.lost for agent in self.agents), Counter()))}",
        ]

    async def _unrecorded(self) -> list[str]:
        dba = await self.story.world.superuser()
        try:
            rows = Counter(
                (row["correlation_id"], row["action"]) for row in await dba.fetch(ROWS, self.story.domain_id)
            )
        finally:
            await dba.close()
        return [
            f"{what} {identifier}: {rows[identifier, ROW_OF[what]]} rows"
            for what, identifier in self.effects
            if rows[identifier, ROW_OF[what]] != 1
        ]


async def prepare(deployment: Deployment, operator: Operator) -> Load:
    """Make a Domain with nodes that listen, a secret, and somebody who may have sessions."""
    story = Story(deployment.world, operator.outside, operator.edge)
    for step in (create, issue_tokens, register, put_secret):
        await step(story)
    nodes = [story.node_a, story.node_b]
    for number in range(LISTENERS - len(nodes)):
        node, _ = await operator.node(story.project_id, f"listener-{number}")
        nodes.append(node)
    put = await sessions.put_policy(story, **POLICY)
    assert put.status == 200, put.body
    person = await Person.of(operator.outside, story.domain_id, Login("anna", acr=PHR, amr=("hwk",)))
    await sessions.give(story, person)
    trust = ssl.create_default_context(cafile=deployment.world.ca_file)
    shared = {f"project:{story.project_id}", f"domain:{story.domain_id}"}
    agents = [
        Agent(
            node,
            ("127.0.0.1", deployment.state.port("gateway")),
            trust,
            frozenset({f"node:{node.node_id}", *shared}),
            node.signing_key_id,
            Ed25519PublicKey.from_public_bytes(node.signing_public_key),
        )
        for node in nodes
    ]
    return Load(story, person, await sessions.resource_of(story, story.node_a.handle), agents)
