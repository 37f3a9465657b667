"""Two Domains, an attacker who holds the broker, a node that listens, and one more gateway."""

import asyncio
import contextlib
import json
import socket
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from devstack.process import port_open
from tests.e2e.attacker import Broker, eventually, refusals
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener, publish
from tests.e2e.outside import JSON, Edge, Login, Node, Outside
from tests.e2e.stories.main_job import Story, create, issue_tokens, register, sign_in
from tests.e2e.world import World


@dataclass
class Arena:
    """Who attacks whom."""

    world: World
    story: Story
    operator: Edge
    other: Story
    broker: Broker

    @property
    def domain(self) -> str:
        return self.story.domain_id

    @property
    def scope(self) -> str:
        return f"domain:{self.domain}"

    @property
    def edge(self) -> Edge:
        return self.operator.anonymous()

    def listen(self, node: Node | None = None, edge: Edge | None = None) -> Listener:
        """Return a node's agent."""
        return Listener(edge or self.edge, node or self.story.node_a)

    async def publish(self, scope: str = "", kind: str = "action_request", **payload: Any) -> str:
        return await publish(self.operator, self.domain, scope or self.scope, kind, **payload)

    async def genuine(self, scope: str = "") -> tuple[str, str, JSON]:
        """Publish something and return its id, its subject and its envelope."""
        identifier = await self.publish(scope, do="reboot")
        _, subject, data = await self.broker.find(identifier)
        return identifier, subject, json.loads(data)

    async def refused(self, port: int = 0) -> Counter[str]:
        """Return how often the gate dropped an envelope, by reason; of another gateway by its metrics port."""
        return await refusals(self.world, "gateway", "mesh", port)

    async def audited(self, path: str) -> set[str]:
        """Return the reasons that a chain has recorded lately."""
        found: set[str] = set()
        page = await self.operator.call("GET", f"{path}/audit/entries?reason=caveat_violation&limit=200")
        assert page.status == 200, page.body
        for entry in page.json["items"]:
            found |= set(entry["decision"]["caveat_context"].get("mesh", []))
        return found

    async def denials(self, code: str, domain: str = "") -> list[JSON]:
        """Return the rows of a Domain's chain about nodes that were refused with a code."""
        base = f"/v1/domains/{domain or self.domain}/audit/entries?limit=200&reason="
        pages = [await self.operator.call("GET", base + why) for why in ("insufficient_relation", "caveat_violation")]
        assert {page.status for page in pages} == {200}
        rows = [entry for page in pages for entry in page.json["items"] if entry["object"]["type"] == "node"]
        return [row for row in rows if [code] in row["decision"]["caveat_context"].values()]

    async def recorded(self, reason: str, path: str = "") -> None:
        """Wait until a chain has a row for a reason."""

        async def there() -> bool:
            return reason in await self.audited(path or f"/v1/domains/{self.domain}")

        await eventually(there)


async def _second_domain(world: World) -> Story:
    async with Outside(world.edge_url, world.ca_file) as outside:
        story = Story(world, outside, outside.edge())
        for step in (sign_in, create, issue_tokens, register):
            await step(story)
        return story


@pytest.fixture(scope="session")
def second(world: World) -> Story:
    return asyncio.run(_second_domain(world))


@pytest.fixture
async def arena(world: World, scene: Scene, second: Story) -> AsyncIterator[Arena]:
    async with Broker(world) as broker:
        token = await scene.outside.access_token(await scene.outside.sign_in(Login("operator")))
        yield Arena(world, scene.story, scene.edge.as_bearer(token), second, broker)


@dataclass
class Gateway:
    """One more gateway process."""

    edge: Edge
    process: Process
    metrics_port: int


@contextlib.asynccontextmanager
async def another_gateway(arena: Arena) -> AsyncIterator[Gateway]:
    """Start one more gateway process beside the stack's, with the same settings but for its ports."""
    ports = json.loads((arena.world.state / "ports.json").read_text())
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
    port, metrics = free
    text = arena.world.config("gateway").replace(f"port = {ports['gateway']}\n", f"port = {port}\n", 1)
    text = text.replace(f"metrics_port = {ports['gateway-metrics']}", f"metrics_port = {metrics}")
    text = text.replace("gateway.trace.jsonl", "gateway-2.trace.jsonl")
    config = arena.world.state / "config/gateway-2.toml"
    config.write_text(text)
    with (arena.world.state / "log/gateway-2.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway", "--config", config, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    await port_open(port)
                    break
                await asyncio.sleep(0.1)
        yield Gateway(Edge(f"https://127.0.0.1:{port}", arena.operator.http), process, metrics)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
