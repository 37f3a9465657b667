"""An administrator says how often a Domain's secrets are read, and a node that waits as long as told goes on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import Answer, Edge, Node
from tests.e2e.stories.main_job import SECRET_NAME, Story, put_secret
from tests.e2e.stories.test_plexctl import Cli, cli
from tests.e2e.threats.mesh.conftest import another_gateway
from tests.e2e.world import World

__all__ = ["cli"]
pytestmark = pytest.mark.e2e

Edges = tuple[Edge, Edge]
WIDE = {"node_rate_per_minute": 600, "node_burst": 60, "domain_rate_per_minute": 6000, "domain_burst": 600}
EVERY_S = 2.0
PER_MINUTE = round(60 / EVERY_S)
PUT_S = 30.0


@pytest.fixture
async def edges(world: World, scene: Scene) -> AsyncIterator[Edges]:
    bare: Any = type("Bare", (), {"world": world, "operator": scene.operator})()
    async with another_gateway(bare) as second:
        yield scene.edge, second.edge


async def put(cli: Cli, story: Story, **limits: int) -> None:
    """Change limits by command."""

    def change() -> None:
        policy = cli.json("access-policy", "show", story.domain_id) | limits
        assert cli.json("access-policy", "put", story.domain_id, stdin=json.dumps(policy).encode()) == policy

    await asyncio.to_thread(change)


async def until_refused(node: Node, edges: Edges) -> tuple[int, Answer]:
    """Read at the gateways by turns until one refuses; return how many reads came through beyond one each interval."""
    started = time.monotonic()
    for count in range(WIDE["domain_burst"]):
        answer = await node.read(edges[count % 2], SECRET_NAME)
        if answer.status == 429:
            return count - int((time.monotonic() - started) / EVERY_S), answer
        assert answer.status == 200, answer.body
    raise AssertionError("nothing was refused")


async def goes_on(node: Node, edge: Edge, refused: Answer) -> bool:
    """Wait exactly as long as was said, and read."""
    assert 1 <= int(refused.headers["Retry-After"]) <= EVERY_S
    await asyncio.sleep(int(refused.headers["Retry-After"]))
    return (await node.read(edge, SECRET_NAME)).status == 200


async def test_a_domains_own_limits_hold_from_the_next_read_on_at_every_gateway(
    story: Story, cli: Cli, edges: Edges
) -> None:
    node = story.node_a
    assert (await put_secret(story)).startswith("201 204")
    await put(cli, story, **WIDE)
    tightening = asyncio.create_task(put(cli, story, node_rate_per_minute=PER_MINUTE, node_burst=1))
    async with asyncio.timeout(PUT_S):
        while not tightening.done():
            # Both gateways remember the node while its limits change.
            assert {(await node.read(edge, SECRET_NAME)).status for edge in edges} <= {200, 429}
            await asyncio.sleep(0.2)
    await tightening
    count, refused = await until_refused(node, edges)
    assert (count <= 1, str(refused)) == (True, "429 per_node_rate_limited")
    assert await goes_on(node, edges[1], refused)
    assert (await node.read(edges[0], SECRET_NAME)).status == 429
    await put(cli, story, node_rate_per_minute=PER_MINUTE, node_burst=4)
    # What was read before still counts: one read of four, less what came back since.
    count, refused = await until_refused(node, edges)
    assert 3 <= count <= 4
    assert await goes_on(node, edges[0], refused)


async def test_a_domain_has_a_limit_for_all_of_its_nodes(story: Story, cli: Cli, edges: Edges) -> None:
    assert (await put_secret(story)).startswith("201 204")
    await put(cli, story, **WIDE | {"domain_rate_per_minute": PER_MINUTE, "domain_burst": 3})
    count, refused = await until_refused(story.node_a, edges)
    assert (count, str(refused)) == (3, "429 per_domain_rate_limited")
    assert str(await story.node_b.read(edges[1], SECRET_NAME)) == "429 per_domain_rate_limited"
    assert await goes_on(story.node_a, edges[0], refused)
