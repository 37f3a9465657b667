"""A Domain with two nodes and a secret, made once over HTTPS, and an outside client for each test."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest

from tests.e2e.ledger import Ledger, hurried, new_chain
from tests.e2e.outside import Answer, Edge, Login, Node, Outside
from tests.e2e.stories.main_job import SECRET_NAME, Story, create, issue_tokens, put_secret, register, sign_in
from tests.e2e.world import World


@dataclass
class Scene:
    """Who is there, and how a test speaks as each of them."""

    story: Story
    token: str
    outside: Outside

    @property
    def edge(self) -> Edge:
        """Nobody."""
        return self.outside.edge()

    @property
    def operator(self) -> Edge:
        """The operator, by access token."""
        return self.edge.as_bearer(self.token)

    @property
    def secret_path(self) -> str:
        """The secret as operators see it."""
        return f"/v1/projects/{self.story.project_id}/secrets/{SECRET_NAME}"

    async def read(self, node: Node) -> Answer:
        """Read the secret as a node, waiting for the limiter when it says so."""
        answer = await node.read(self.edge, SECRET_NAME)
        while answer.status == 429:
            await asyncio.sleep(int(answer.headers["Retry-After"]))
            answer = await node.read(self.edge, SECRET_NAME)
        return answer

    async def newcomer(self, handle: str) -> Node:
        """Adopt a resource and register one more node for it."""
        project, node = self.story.project_id, Node(handle)
        body = {"origin": "adopted", "kind": "server", "external_ref": handle}
        adopted = await self.operator.call("POST", f"/v1/projects/{project}/resources", body)
        assert adopted.status == 201, adopted.body
        issued = await self.operator.call(
            "POST",
            f"/v1/projects/{project}/bootstrap-tokens",
            {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900},
        )
        registered = await node.register(self.edge, project, issued.json["token"])
        assert registered.status == 201, registered.body
        return node


async def _set_scene(world: World) -> Story:
    async with Outside(world.edge_url, world.ca_file) as outside:
        story = Story(world, outside, outside.edge())
        for step in (sign_in, create, issue_tokens, register, put_secret):
            await step(story)
        browser = await outside.sign_in(Login("operator"))
        token = await outside.access_token(browser)
        ISSUED["operator"] = (token, time.monotonic())
        return story


FRESH_S = 300.0
# The newest token, and when it was issued, on the monotonic clock.
ISSUED: dict[str, tuple[str, float]] = {}


@pytest.fixture(scope="session")
def set_scene(world: World) -> Story:
    return asyncio.run(_set_scene(world))


async def operator_token(outside: Outside) -> str:
    """Return an access token of the operator: they last a quarter of an hour, and a run takes longer."""
    token, issued_at = ISSUED["operator"]
    if time.monotonic() - issued_at > FRESH_S:
        token = await outside.access_token(await outside.sign_in(Login("operator")))
        ISSUED["operator"] = (token, time.monotonic())
    return token


@pytest.fixture
async def scene(world: World, set_scene: Story) -> AsyncIterator[Scene]:
    async with Outside(world.edge_url, world.ca_file) as outside:
        yield Scene(replace(set_scene, outside=outside), await operator_token(outside), outside)


@pytest.fixture(scope="module")
def quick(world: World) -> Iterator[None]:
    """Have audit make its checkpoints and archive soon."""
    with hurried(world):
        yield


@pytest.fixture
async def ledger(quick: None, scene: Scene) -> AsyncIterator[Ledger]:
    """Make a chain that is left whole."""
    dba = await scene.story.world.superuser()
    yield await new_chain(scene.story.world, scene.operator, dba)
    await dba.close()
