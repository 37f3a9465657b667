"""`make soak-mesh`: an operator publishes and nodes listen while gateway, mesh, NATS and PostgreSQL are killed.

At the end every acknowledged publish must have reached every subscribed node, in order per scope, none twice once
de-duplicated by id, none forged. An attacker who holds the broker writes forgeries and replays all the while.
"""

import asyncio
import base64
import contextlib
import json
import random
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from nats.errors import Error as NatsError

from bench.agent import FINAL, Agent, Received, canonical
from bench.deployment import Deployment, Operator, deployed
from bench.measure import Check, Report, console, percentile
from bench.soak import Faults, begin, none
from libs.ids import uuid7
from tests.e2e.outside import Answer

VICTIMS = ("gateway", "mesh", "nats", "postgres")
PROJECTS = 2
NODES_A_PROJECT = 3
QUIET_S = (2.0, 8.0)
DOWN_S = (0.2, 3.0)
# Now and then two at once.
TWO_AT_ONCE = 0.2
PAUSE_S = 0.05
FORGE_EVERY_S = 2.0
DRAIN_S = 120.0
# Number of the last event of each scope.
LAST = 10**9
# A node that missed an event must have been told to reconcile about then.
EXCUSED_WITHIN_S = 120.0
TYPES = ("policy_updated", "action_request", "bridge_config_updated", "session_setup")
ACCEPTED, UNAVAILABLE = 202, frozenset({502, 503, 504})


@dataclass(frozen=True)
class Publication:
    """One publish of the operator; `id` and `sequence` are there when it was acknowledged."""

    scope: str
    number: int
    at: float
    id: str = ""
    sequence: int = 0


@dataclass
class Soak:
    """Everything that happens, and what was seen of it."""

    deployment: Deployment
    operator: Operator
    faults: Faults
    domain_id: str
    agents: list[Agent]
    scopes: list[str]
    acknowledged: list[Publication] = field(default_factory=list)
    unacknowledged: Counter[str] = field(default_factory=Counter)
    attacks: Counter[str] = field(default_factory=Counter)
    forged_ids: set[str] = field(default_factory=set)
    unforeseen: list[str] = field(default_factory=list)

    # What happens -----------------------------------------------------------------------------------------------------

    async def publish(self, scope: str) -> None:
        """Publish to one scope, one after the other, so that its order is known."""
        number = 0
        while not self.faults.stop.is_set():
            number += 1
            await self._publish_once(scope, number)
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))

    async def _publish_once(self, scope: str, number: int) -> bool:
        body = {"type": random.choice(TYPES), "scope": scope, "payload": {"soak": scope, "n": number, "text": "<&>é"}}
        try:
            answer = await self.operator.edge.call("POST", f"/v1/domains/{self.domain_id}/events", body)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.unacknowledged[type(error).__name__] += 1
            await asyncio.sleep(0.2)
            return False
        if answer.status != ACCEPTED:
            self.unacknowledged[str(answer)] += 1
            await self._refused(answer)
            return False
        told = answer.json
        self.acknowledged.append(Publication(scope, number, time.monotonic(), told["id"], told["sequence"]))
        return True

    async def _refused(self, answer: Answer) -> None:
        # 500 says that something was not foreseen, which a killed process must not be.
        if answer.status not in UNAVAILABLE:
            self.unforeseen.append(f"a publish was answered {answer} {answer.body[:200]!r}")
        await asyncio.sleep(0.2)

    async def attack(self) -> None:
        """Write forgeries and replays straight into the stream, as whoever holds the broker can."""
        while not self.faults.stop.is_set():
            await asyncio.sleep(FORGE_EVERY_S)
            with contextlib.suppress(NatsError, OSError, TimeoutError, ssl.SSLError):
                await self._attack_once()

    async def _attack_once(self) -> None:
        async with asyncio.timeout(3):
            broker = await self.deployment.broker()
        try:
            scope = random.choice(self.scopes)
            subject = f"events.{self.domain_id}.{scope.replace(':', '.')}.{TYPES[0]}"
            forged = self._forgery(scope)
            await broker.publish(subject, forged)
            self.attacks["forged with an own key"] += 1
            stream = broker.jetstream()
            state = await stream.stream_info("EVENTS")
            last = state.state.last_seq
            old = await stream.get_msg("EVENTS", random.randint(max(1, last - 50), last))
            if old.subject is not None and old.data is not None:
                await broker.publish(old.subject, old.data)
                self.attacks["replayed under a new sequence"] += 1
            await broker.flush(timeout=2)
        finally:
            await broker.close()

    def _forgery(self, scope: str) -> bytes:
        members: dict[str, Any] = {
            "id": str(uuid7()),
            "type": TYPES[0],
            "scope": scope,
            "key_id": self.agents[0].key_id,
            "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "payload": {"soak": scope, "n": 0},
        }
        signature = Ed25519PrivateKey.generate().sign(canonical(members))
        self.forged_ids.add(members["id"])
        return json.dumps(members | {"signature": base64.b64encode(signature).decode()}, separators=(",", ":")).encode()

    async def run(self, seconds: float) -> None:
        """Let it all happen for some seconds, then let what is under way arrive."""
        listening = [asyncio.ensure_future(agent.run()) for agent in self.agents]
        try:
            async with asyncio.timeout(30):
                for agent in self.agents:
                    await agent.listening.wait()
            busy = [self.attack(), *(self.publish(scope) for scope in self.scopes)]
            await self.faults.during(seconds, busy, self._seen)
            await self._drain()
        finally:
            for task in listening:
                task.cancel()
            await asyncio.gather(*listening, return_exceptions=True)

    def _seen(self) -> str:
        received = sum(len(agent.received) for agent in self.agents)
        refused = sum(self.unacknowledged.values())
        return f"{len(self.acknowledged)} acknowledged, {refused} not, {received} received"

    async def _drain(self) -> None:
        """Publish one last event to each scope and wait until every node has those that are for it."""
        deadline = time.monotonic() + DRAIN_S
        for scope in self.scopes:
            while not await self._publish_once(scope, LAST) and time.monotonic() < deadline:  # noqa: ASYNC110 — bounded
                await asyncio.sleep(0.5)
        while time.monotonic() < deadline and not all(self._has_last(agent) for agent in self.agents):  # noqa: ASYNC110 — bounded, and other processes set no event
            await asyncio.sleep(0.2)

    def _has_last(self, agent: Agent) -> bool:
        last = {event.scope for event in agent.received if event.payload.get("n") == LAST}
        return last == agent.scopes

    # What was seen ----------------------------------------------------------------------------------------------------

    def judge(self, report: Report) -> None:
        """Add the checks and what else was seen."""
        missing, excused, disorder, wrong = [], 0, [], []
        for agent in self.agents:
            first = first_seen(agent.received)
            lost = [one for one in self.acknowledged if one.scope in agent.scopes and one.id not in first]
            for one in lost:
                if told_to_reconcile(agent, one):
                    excused += 1
                else:
                    missing.append(f"{agent.node.handle}: {one.scope} number {one.number}, sequence {one.sequence}")
            disorder += self._disorder(agent, first)
            wrong += [f"{agent.node.handle}: {identifier}" for identifier in first if identifier in self.forged_ids]
            wrong += [f"{agent.node.handle}: {text}" for text in agent.forged]
        deliveries = sum(1 for agent in self.agents for one in self.acknowledged if one.scope in agent.scopes)
        report.checks += [
            none(f"acknowledged publishes that a node never got ({deliveries} wanted)", missing),
            none("deliveries out of order within a scope", disorder),
            none("forged, altered or foreign envelopes delivered", wrong),
            none("answers to publishes that are neither 202 nor 502, 503 or 504", self.unforeseen),
            none("answers to nodes that stop an agent for good", self._final()),
            Check("every node has the last event of each scope", "yes", *self._all_last()),
            self.faults.check({"acknowledged": len(self.acknowledged), "attacks": dict(self.attacks)}),
        ]
        self._tell_more(report, excused)

    def _disorder(self, agent: Agent, first: dict[str, Received]) -> list[str]:
        """Return events that a node saw before one that was acknowledged before they were sent."""
        numbers = {one.id: one for one in self.acknowledged}
        seen: dict[str, int] = {}
        found = []
        for identifier in first:
            if (one := numbers.get(identifier)) is None:
                continue
            if one.number < seen.get(one.scope, 0):
                found.append(f"{agent.node.handle}: {one.scope} number {one.number} after {seen[one.scope]}")
            seen[one.scope] = max(one.number, seen.get(one.scope, 0))
        return found

    def _final(self) -> list[str]:
        return [
            f"{agent.node.handle}: {status} x{count}"
            for agent in self.agents
            for status, count in agent.answers.items()
            if status in FINAL
        ]

    def _all_last(self) -> tuple[str, bool]:
        without = [agent.node.handle for agent in self.agents if not self._has_last(agent)]
        return (f"not {', '.join(without)}" if without else "yes"), not without

    def _tell_more(self, report: Report, excused: int) -> None:
        again = sum(len(agent.received) - len(first_seen(agent.received)) for agent in self.agents)
        reconciles = Counter(
            event.payload.get("reason", "") for agent in self.agents for event in agent.received if is_reconcile(event)
        )
        wanted = {one.id for one in self.acknowledged}
        extra = {
            event.id
            for agent in self.agents
            for event in agent.received
            if "soak" in event.payload and event.id not in wanted
        }
        seen = first_seen(self.agents[0].received)
        delays = [seen[one.id].at - one.at for one in self.acknowledged if one.id in seen]
        report.shares["soak"] = {
            "acknowledged": float(len(self.acknowledged)),
            "not acknowledged": float(sum(self.unacknowledged.values())),
            "of those delivered all the same": float(len(extra)),
            "excused by a reconciliation": float(excused),
            "delivered again under the same id": float(again),
            "p50 s to the first node": percentile(delays, 0.5),
            "p99 s to the first node": percentile(delays, 0.99),
        }
        report.notes += [
            f"not acknowledged: {dict(self.unacknowledged)}",
            f"reconciliations that nodes were sent, by reason: {dict(reconciles)}",
            f"answers to nodes: {dict(sum((agent.answers for agent in self.agents), Counter()))}",
            f"streams lost: {dict(sum((agent.lost for agent in self.agents), Counter()))}",
            f"processes that ended by themselves and were started again: {dict(self.faults.ended_alone)}",
            *(f"{count} x in the logs: {error}" for error, count in self.deployment.errors().most_common(8)),
        ]


def first_seen(received: list[Received]) -> dict[str, Received]:
    """Return events by id in the order in which they were first seen."""
    found: dict[str, Received] = {}
    for event in received:
        found.setdefault(event.id, event)
    return found


def is_reconcile(event: Received) -> bool:
    """Whether the platform told the node to fetch its state; the soak publishes no such type."""
    return event.type == "node_state_updated"


def told_to_reconcile(agent: Agent, one: Publication) -> bool:
    """Whether a node was told to reconcile about when it should have had an event."""
    return any(is_reconcile(event) and -1.0 <= event.at - one.at <= EXCUSED_WITHIN_S for event in agent.received)


async def prepare(deployment: Deployment, operator: Operator) -> Soak:
    """Register nodes over HTTPS in two projects of a Domain."""
    domain_id = await operator.domain(1)
    trust = ssl.create_default_context(cafile=deployment.world.ca_file)
    agents, scopes = [], [f"domain:{domain_id}"]
    for turn in range(PROJECTS):
        project = await operator.project(domain_id)
        scopes.append(f"project:{project}")
        for number in range(NODES_A_PROJECT):
            node, told = await operator.node(project, f"soak-{turn}-{number}")
            own = f"node:{node.node_id}"
            scopes.append(own)
            agents.append(
                Agent(
                    node,
                    ("127.0.0.1", deployment.state.port("gateway")),
                    trust,
                    frozenset({own, f"project:{project}", f"domain:{domain_id}"}),
                    told["signing_key_id"],
                    Ed25519PublicKey.from_public_bytes(base64.b64decode(told["signing_public_key"])),
                )
            )
    faults = Faults(deployment, VICTIMS, QUIET_S, DOWN_S, TWO_AT_ONCE)
    return Soak(deployment, operator, faults, domain_id, agents, scopes)


async def main() -> int:
    """Start a stack, soak it, print; returns the exit status."""
    seconds, report = begin("soak-mesh", __doc__, 300.0)
    async with deployed() as deployment, deployment.operator() as operator:
        soak = await prepare(deployment, operator)
        console.print(f"{len(soak.agents)} nodes listen, {len(soak.scopes)} scopes are published to")
        await soak.run(seconds)
        soak.judge(report)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
