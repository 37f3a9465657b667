"""A-2: a process that is aborted while it hands out a value leaves the value nowhere."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from devstack.layout import State
from devstack.supervisor import ask
from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.freeze import send
from tests.e2e.outside import Answer, random_secret
from tests.e2e.scan import search
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

OCTETS = {"If-Match": "0", "Content-Type": "application/octet-stream"}
READERS = 3
# As many as a node may read at once.
EACH = 10
# Long, so that handlers spend their time on it.
COPIES = 8_000


async def ended(world: World, name: str) -> None:
    """Wait until a process is no more."""

    async def is_down() -> bool:
        rows = (await ask(State(world.state), do="status"))["processes"]
        return not next(row["up"] for row in rows if row["name"] == name)

    await eventually(is_down, 10)


def cores(world: World, since: float) -> list[Path]:
    """Return core files written since then, in every folder where a process of the stack could leave one."""
    folders = (Path.cwd(), world.state, Path("/"), Path("/tmp"))
    found = (path for folder in folders for path in folder.glob("core*") if path.is_file())
    return [path for path in found if path.stat().st_mtime >= since]


@pytest.mark.parametrize("service", ["secrets", "gateway"])
async def test_an_abort_inside_the_handler_leaves_no_value_anywhere(scene: Scene, service: str) -> None:
    world, operator = scene.story.world, scene.operator
    planted = random_secret()
    path = f"/v1/projects/{scene.story.project_id}/secrets/crash-{service}"
    stored = await operator.call("PUT", path, planted * COPIES, headers=OCTETS)
    assert stored.status == 201, stored.body
    nodes = [await scene.newcomer(f"crash-{service}-{number}") for number in range(READERS)]
    for node in nodes:
        assert (await operator.call("PUT", f"{path}/readers/{node.node_id}")).status == 204
    started = time.time()
    reads = [asyncio.create_task(node.read(scene.edge, f"crash-{service}")) for node in nodes for _ in range(EACH)]
    await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    await send(world, service, signal.SIGABRT)
    try:
        answers = await asyncio.gather(*reads, return_exceptions=True)
        await ended(world, service)
    finally:
        await world.start(service)
    read = [answer for answer in answers if isinstance(answer, Answer) and answer.status == 200]
    # Some were in the middle of it.
    assert 0 < len(read) < len(answers), [str(answer) for answer in answers]
    assert cores(world, started) == []
    assert await search(world, {planted: "the planted value"}) == []
