"""A Domain of a test's own, so that its keys and nodes concern no other test."""

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.stories.main_job import STEPS, Story, create, issue_tokens, register, sign_in
from tests.e2e.world import World


@pytest.fixture
async def story(world: World, scene: Scene) -> Story:
    made = Story(world, scene.outside, scene.edge)
    for step in STEPS:
        if step.run in {sign_in, create, issue_tokens, register}:
            assert await step.run(made) == step.expected
    return made
