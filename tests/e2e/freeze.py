"""Stops a process of the stack without ending it: its connections stay open, and nothing answers."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from devstack.layout import State
from devstack.supervisor import ask
from tests.e2e.world import World


def family(pid: int) -> Iterator[int]:
    """Yield a process and everything below it."""
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from family(int(child))


async def running(world: World) -> dict[str, int]:
    """Return the processes of the stack that run, by name."""
    rows = (await ask(State(world.state), do="status"))["processes"]
    return {row["name"]: row["pid"] for row in rows if row["up"]}


async def send(world: World, name: str, number: signal.Signals) -> None:
    """Send a signal to a process of the stack and to its children."""
    for pid in family((await running(world))[name]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@asynccontextmanager
async def frozen(world: World, name: str) -> AsyncIterator[None]:
    """Stop a process for the block."""
    await send(world, name, signal.SIGSTOP)
    try:
        yield
    finally:
        await send(world, name, signal.SIGCONT)
