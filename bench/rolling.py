"""`make rolling`: each of the six services is rolled in turn, as Kubernetes does it, under the load of the story.

A new process starts behind the same address and is waited for until it is ready. Then the old one is taken from behind
the address, its `preStop` passes, it gets SIGTERM and drains. Meanwhile machines register, nodes read secrets, send
heartbeats and hold their streams, operators publish, step up to sessions and read the audit trail. Nothing may fail but
what its client may repeat, no stream may miss an event or get one twice, and each effect has its one audit row.
"""

import asyncio
import contextlib
import random
import signal
import ssl
import sys
import tomllib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bench.agent import FINAL, Agent
from bench.deployment import Deployment, Operator, deployed
from bench.measure import Check, Report, console
from bench.replica import Replica
from bench.soak import none
from bench.virtual import Virtual
from bench.work import calls
from devstack.layout import SERVICES
from libs.rpc.server import CONNECTION_AGE_S
from tests.e2e import sessions
from tests.e2e.enrolling import Desk
from tests.e2e.outside import Answer, Login, Node
from tests.e2e.sessions import PHR, Person
from tests.e2e.stories.main_job import SECRET_NAME, Story, create, issue_tokens, now, put_secret, register

# As the chart has it; how long others take to notice that a pod ends is a guess.
PRE_STOP_S, NOTICED_S, GRACE_S = 5.0, 1.0, 10.0
SETTLED_S = 2.0
SPREAD_S = 3 * CONNECTION_AGE_S
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


@dataclass
class Rollout:
    """The six services behind addresses of their own, and how each is replaced."""

    deployment: Deployment
    addresses: dict[str, Virtual]
    replicas: dict[str, Replica]
    pre_stop_s: float
    drain_s: float | None
    shipped: dict[str, str] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    took_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(
        cls, deployment: Deployment, pre_stop_s: float = PRE_STOP_S, drain_s: float | None = None
    ) -> AsyncIterator["Rollout"]:
        """Put the stack's services behind their own addresses for the block; then they are as they were."""
        state = deployment.state
        made = cls(deployment, {}, {}, pre_stop_s, drain_s)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(made._back)
            for name in SERVICES:
                await deployment.kill(name)
                made.shipped[name] = (state / f"config/{name}.toml").read_text()
                if drain_s:
                    deployment.configure(name, r"(?m)^drain_s = .*$", f"drain_s = {drain_s}")
                first = made.replicas[name] = Replica.beside(state, name, 2)
                made.addresses[name] = await stack.enter_async_context(Virtual(state.port(name), [first.port]))
            await asyncio.gather(*(replica.start() for replica in made.replicas.values()))
            yield made

    async def _back(self) -> None:
        for replica in self.replicas.values():
            await replica.end()
        for name, text in self.shipped.items():
            (self.deployment.state / f"config/{name}.toml").write_text(text)
        await asyncio.gather(*(self.deployment.start(name) for name in SERVICES))

    async def roll(self, name: str) -> None:
        """Replace a service's process."""
        began = asyncio.get_running_loop().time()
        old, address = self.replicas[name], self.addresses[name]
        new = Replica.beside(self.deployment.state, name, old.number + 1)
        await new.start()
        self.replicas[name] = new
        address.behind = [old.port, new.port]
        await asyncio.sleep(SETTLED_S)
        asyncio.get_running_loop().call_later(min(NOTICED_S, self.pre_stop_s / 2), address.behind.remove, old.port)
        await asyncio.sleep(self.pre_stop_s)
        if not await old.end(signal.SIGTERM, self._drain_s(name) + GRACE_S):
            self.late.append(f"{old.name} had not ended")
        self.took_s[name] = asyncio.get_running_loop().time() - began

    def _drain_s(self, name: str) -> float:
        return float(tomllib.loads((self.deployment.state / f"config/{name}.toml").read_text())["drain_s"])

    async def all(self, load: Load) -> None:
        """Replace one after the other."""
        for name in SERVICES:
            load.rolling = name
            await self.roll(name)
            console.print(f"  {name}: {self.took_s[name]:.1f} s, {load.done.total()} done")
        load.rolling = "nothing"
        await asyncio.sleep(SETTLED_S)

    async def spread(self, report: Report) -> None:
        """Add a replica of each gRPC service, and report which share of the calls it gets in some time."""
        added = [Replica.beside(self.deployment.state, name, 100) for name in SERVICES if name != "gateway"]
        await asyncio.gather(*(one.start() for one in added))
        pairs = [(self.replicas[one.of], one) for one in added]
        before = [[await self._calls(one) for one in pair] for pair in pairs]
        for one in added:
            self.addresses[one.of].behind.append(one.port)
        await asyncio.sleep(SPREAD_S)
        shares: dict[str, float] = {}
        for pair, then in zip(pairs, before, strict=True):
            counts = [await self._calls(one) - known for one, known in zip(pair, then, strict=True)]
            shares[pair[0].of] = counts[1] / max(1, sum(counts))
        report.shares[f"of calls in {SPREAD_S:.0f} s, to a replica that was added"] = shares
        for one in added:
            self.addresses[one.of].behind.remove(one.port)
            await one.end(signal.SIGTERM, self._drain_s(one.of) + GRACE_S)

    def tell(self, report: Report) -> None:
        """Add whether all ended in time, and how long each roll took."""
        report.checks.append(none("processes that did not end in time", self.late))
        report.shares["s from its successor's start to its own end"] = dict(self.took_s)

    async def _calls(self, replica: Replica) -> int:
        return (await calls(Deployment(replica.beside_it, self.deployment.world), replica.of)).total()


async def under(load: Load, report: Report, doing: Iterable[Awaitable[None]]) -> None:
    """Do one thing after the other under load, then judge what was seen."""
    listening = [asyncio.ensure_future(agent.run()) for agent in load.agents]
    try:
        async with asyncio.timeout(30):
            for agent in load.agents:
                await agent.listening.wait()
        async with asyncio.TaskGroup() as group:
            for one in load.busy():
                group.create_task(one)
            await asyncio.sleep(SETTLED_S)
            for each in doing:
                await each
            load.stop.set()
        await load.heard()
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    await load.judge(report)


async def main() -> int:
    """Start a stack, roll its services, print; returns the exit status."""
    report = Report("rolling", {"settings": f"preStop {PRE_STOP_S:.0f} s, {LISTENERS} nodes listen"})
    async with deployed() as deployment, Rollout.of(deployment) as rollout, deployment.operator() as operator:
        load = await prepare(deployment, operator)
        await under(load, report, [rollout.spread(report)] if "--spread" in sys.argv else [rollout.all(load)])
        rollout.tell(report)
        report.notes += [f"{count} x in the logs: {error}" for error, count in deployment.errors().most_common(8)]
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
