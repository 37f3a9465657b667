"""One embedded stack for a whole test run, started when the first test asks for it.

`backends` is the backends alone where only integration tests run; `world` is the whole stack. Both come from one state
folder, so that a run never has two stacks.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import services
from devstack.layout import SERVICES, StackError, State
from devstack.process import child_setup
from devstack.supervisor import ask
from tests.e2e.scan import key_files, search
from tests.e2e.seen import SEEN
from tests.e2e.world import PLEXCTL, World, run


def _wants_services(request: pytest.FixtureRequest) -> bool:
    return any(item.get_closest_marker("e2e") for item in request.session.items)


async def _until_healthy(state: State, supervisor: "subprocess.Popen[bytes]") -> None:
    async with asyncio.timeout(240):
        while supervisor.poll() is None:
            with contextlib.suppress(StackError):
                if (await ask(state, do="status"))["healthy"]:
                    return
            await asyncio.sleep(0.05)
    raise StackError((state / "supervisor.log").read_text())


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[State]:
    """Start the stack in a fresh folder, and stop it when the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="plex-test-"))
    state = State(folder)
    only = () if _wants_services(request) else ("--backends-only",)
    with (folder / "supervisor.log").open("wb") as log:
        supervisor = subprocess.Popen(
            [*PLEXCTL, "dev", "up", *only, "--state", folder], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            # A run that is killed takes its stack with it.
            preexec_fn=child_setup(os.getpid()),  # noqa: PLW1509 — no thread runs yet
        )  # fmt: skip
    kept = True
    try:
        asyncio.run(_until_healthy(state, supervisor))
        yield state
        if not only and not request.session.testsfailed:
            # The last thing of every green run: nothing secret that its clients sent or got is in what the stack wrote.
            found = asyncio.run(search(asyncio.run(World.of(folder)), SEEN | key_files(folder)))
            assert not found, f"in {folder}: " + "; ".join(found)
        kept = bool(request.session.testsfailed)
    finally:
        supervisor.terminate()
        supervisor.wait()
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def backends(stack: State) -> State:
    """The real backends, with every schema at its newest revision."""
    for name in (*SERVICES, "migrate"):
        services.render(stack, name)
    asyncio.run(run(*services.migrate_command(stack)))
    return stack


@pytest.fixture(scope="session")
def world(stack: State) -> World:
    """The whole stack, as an outside client and as an attacker see it."""
    return asyncio.run(World.of(stack.folder))
