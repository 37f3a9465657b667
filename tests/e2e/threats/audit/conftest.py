"""A chain of its own for each attack, since most leave it broken for good."""

from collections.abc import AsyncIterator

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.ledger import Ledger, breakable


@pytest.fixture
async def ledger(quick: None, scene: Scene) -> AsyncIterator[Ledger]:
    async with breakable(scene.story.world, scene.operator, 11) as made:
        yield made
