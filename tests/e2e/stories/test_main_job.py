"""The main job, step by step, on the same stack as the other e2e tests."""

import pytest

from tests.e2e.outside import Edge, Outside
from tests.e2e.stories.main_job import Story
from tests.e2e.stories.main_job_audit import STEPS
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


async def test_the_main_job(world: World) -> None:
    async with Outside(world.edge_url, world.ca_file) as outside:
        story = Story(world, outside, Edge(world.edge_url, outside.http))
        for step in STEPS:
            assert await step.run(story) == step.expected, step.name
