"""Child processes that never outlive the supervisor, whatever ends it."""

import asyncio
import ctypes
import functools
import os
import pwd
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from devstack.layout import ROOT, StackError, State

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
INSIDE = 1000
UNPRIVILEGED = "nobody"

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
    within_s: float = 30.0


def map_to_nobody() -> None:
    """Stay root outside, be an ordinary user inside a user namespace (user_namespaces(7)); raises OSError where not.

    PostgreSQL refuses to run as root. Like this it still owns its files and passes through folders that only root may
    enter: a checkout below /root, or a temporary folder of mode 0700.
    """
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare of the user namespace")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{INSIDE} 0 1")
    Path("/proc/self/gid_map").write_text(f"{INSIDE} 0 1")


@functools.cache
def namespaces_work() -> bool:
    """Say whether this machine lets root make user namespaces, by trying it in a child."""
    child = os.fork()
    if child == 0:
        try:
            map_to_nobody()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def become_nobody() -> None:
    """Drop root for good; the checkout and the state must then be where everybody may pass."""
    user = pwd.getpwnam(UNPRIVILEGED)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def child_setup(parent: int, *, unprivileged: bool) -> Callable[[], None]:
    """Return what a child does before it becomes its program: leave the terminal's group, drop root, die with us."""
    drop = unprivileged and os.geteuid() == 0
    mapped = drop and namespaces_work()

    def set_up() -> None:
        os.setpgid(0, 0)
        if mapped:
            try:
                map_to_nobody()
            except OSError as error:
                # Standard error is the log by now; an exception would only reach the supervisor without its reason.
                os.write(2, f"cannot leave root: {error}\n".encode())
                os._exit(1)
        elif drop:
            become_nobody()
        # After setuid, which clears it.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return set_up


async def spawn(state: State, spec: Spec) -> asyncio.subprocess.Process:
    """Start a process with its log in the state folder."""
    await spec.before()
    with (state / f"log/{spec.name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *spec.command,
            cwd=ROOT,
            env={**os.environ, **spec.env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=child_setup(os.getpid(), unprivileged=spec.unprivileged),
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
