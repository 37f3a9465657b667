"""A chain of its own for each attack, since most leave it broken for good."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.ledger import Ledger, hurried, new_chain
from tests.e2e.world import World


@pytest.fixture(scope="module")
def quick(world: World) -> Iterator[None]:
    with hurried(world):
        yield


@pytest.fixture
async def ledger(quick: None, scene: Scene) -> AsyncIterator[Ledger]:
    """A chain of some entries, all of them anchored, and its DBA with triggers off."""
    dba = await scene.story.world.superuser()
    await dba.execute("SET session_replication_role = replica")
    made = await new_chain(scene.story.world, scene.operator, dba)
    await made.fill(11)
    await made.checkpointed()
    yield made
    # A chain that is refused keeps audit from being ready, for good.
    await made.forget()
    await dba.close()
