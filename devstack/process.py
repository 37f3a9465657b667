"""Child processes that never outlive the supervisor, whatever ends it."""

import asyncio
import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from devstack.layout import ROOT, StackError, State

PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


async def nothing() -> None:
    """Wait for nothing."""


async def until(condition: Callable[[], object], within_s: float) -> None:
    """Wait until something that has no event of its own is so; raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 — what other processes do sets no event of ours
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Spec:
    """One process: what must be out of its way, how it is started and how it is known to be ready."""

    name: str
    command: list[str]
    ready: Callable[[], Awaitable[object]]
    before: Callable[[], Awaitable[object]] = nothing
    env: dict[str, str] = field(default_factory=dict)
    unprivileged: bool = False
    stop: signal.Signals = signal.SIGTERM
    # A machine that does much else at once is slow to start them.
    within_s: float = 90.0


def _unprivileged(how: str, command: list[str]) -> list[str]:
    return [sys.executable, "-IS", str(ROOT / "devstack/unprivileged.py"), how, *command]


@functools.cache
def namespaces_work() -> bool:
    """Say whether this machine lets root make user namespaces, by trying it."""
    tried = subprocess.run(_unprivileged("mapped", ["/bin/true"]), check=False, stderr=subprocess.DEVNULL)
    return tried.returncode == 0


def child_setup(parent: int) -> Callable[[], None]:
    """Return what a child does before it becomes its program: leave the terminal's group, die with us."""

    def set_up() -> None:
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return set_up


async def spawn(state: State, spec: Spec) -> asyncio.subprocess.Process:
    """Start a process with its log in the state folder."""
    await spec.before()
    command = spec.command
    if spec.unprivileged and os.geteuid() == 0:
        command = _unprivileged("mapped" if namespaces_work() else "nobody", command)
    with (state / f"log/{spec.name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**os.environ, **spec.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=child_setup(os.getpid()),
        )


async def run_once(state: State, name: str, command: list[str | Path], *, unprivileged: bool = False) -> None:
    """Run a command to its end; raises StackError with the end of its log when it fails."""
    spec = Spec(name, [str(part) for part in command], nothing, unprivileged=unprivileged)
    process = await spawn(state, spec)
    if await process.wait():
        raise StackError(f"{name} failed:\n{tail(state, name)}")


def tail(state: State, name: str, lines: int = 12) -> str:
    """Return the end of a process's log."""
    path = state / f"log/{name}.log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


async def until_ready(state: State, spec: Spec, process: asyncio.subprocess.Process) -> None:
    """Wait until a process is ready; raises StackError when it ends or takes too long."""
    deadline = asyncio.get_running_loop().time() + spec.within_s
    last: Exception | None = None
    while asyncio.get_running_loop().time() < deadline:
        if process.returncode is not None:
            raise StackError(f"{spec.name} ended with {process.returncode}:\n{tail(state, spec.name)}")
        try:
            async with asyncio.timeout(3):
                await spec.ready()
        except Exception as error:  # noqa: BLE001 — not ready yet, for whatever reason
            last = error
            await asyncio.sleep(0.05)
        else:
            return
    raise StackError(f"{spec.name} was not ready in {spec.within_s:.0f} s ({last!r}):\n{tail(state, spec.name)}")


async def port_open(port: int) -> None:
    """Raise unless something listens on a port of this machine."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await writer.wait_closed()
