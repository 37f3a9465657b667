"""A chain of its own for each attack, since most leave it broken for good."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.ledger import Ledger, breakable, hurried
from tests.e2e.world import World


@pytest.fixture(scope="module")
def quick(world: World) -> Iterator[None]:
    with hurried(world):
        yield


@pytest.fixture
async def ledger(quick: None, scene: Scene) -> AsyncIterator[Ledger]:
    async with breakable(scene.story.world, scene.operator, 11) as made:
        yield made
