"""Two Domains, an attacker who holds the broker, and a node that listens."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

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

    async def refused(self) -> Counter[str]:
        """Return how often the gate dropped an envelope, by reason."""
        return await refusals(self.world, "gateway", "mesh")

    async def audited(self, path: str) -> set[str]:
        """Return the reasons that a chain has recorded lately."""
        found: set[str] = set()
        page = await self.operator.call("GET", f"{path}/audit/entries?reason=caveat_violation&limit=200")
        assert page.status == 200, page.body
        for entry in page.json["items"]:
            found |= set(entry["decision"]["caveat_context"].get("mesh", []))
        return found

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
