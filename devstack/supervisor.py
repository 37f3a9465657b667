"""Starts everything in order, answers on a Unix socket, and takes everything with it when it ends."""

import argparse
import asyncio
import contextlib
import fcntl
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from devstack import nats, oidc, openbao, pki, postgres, services, spicedb
from devstack.layout import BACKENDS, SERVICES, StackError, State
from devstack.process import Spec, run_once, spawn, until_ready

STOP_WITHIN_S = 8.0
Report = Callable[[str], None]
JSON = dict[str, Any]


class Supervisor:
    """One stack's processes."""

    def __init__(self, state: State, *, backends_only: bool, report: Report) -> None:
        self._state = state
        self._names = BACKENDS if backends_only else (*BACKENDS, *SERVICES)
        self._report = report
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._specs: dict[str, Spec] = {}
        self._healthy = False
        self._failed = ""
        self.stopped = asyncio.Event()

    async def start_all(self) -> None:
        """Start what is down: backends together, then the migrations, then the services together."""
        state = self._state
        state.prepare()
        pki.prepare(state)
        await postgres.prepare(state)
        nats.prepare(state)
        openbao.prepare(state)
        for provider in ("oidc-a", "oidc-b"):
            oidc.prepare(state, provider)
            self._specs[provider] = oidc.spec(state, provider)
        self._specs["postgres"] = postgres.spec(state)
        self._specs["nats"] = nats.spec(state)
        self._specs["openbao"] = openbao.spec(state)
        self._specs["spicedb"] = spicedb.spec(state)
        await self._together(BACKENDS)
        if SERVICES[0] in self._names:
            for name in (*SERVICES, "migrate"):
                services.render(state, name)
            self._report("migrations")
            await run_once(state, "migrate", list(services.migrate_command(state)))
            self._specs |= {name: services.spec(state, name) for name in SERVICES}
            await self._together(SERVICES)
        self._healthy = True

    async def _together(self, names: Sequence[str]) -> None:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self.start(name))

    async def start(self, name: str) -> None:
        """Start one process when it is down, and wait until it is ready."""
        if name not in self._specs:
            raise StackError(f"there is no {name}; there are {', '.join(self._names)}")
        if not self._up(name):
            self._running[name] = await spawn(self._state, self._specs[name])
        await until_ready(self._state, self._specs[name], self._running[name])
        self._report(name)

    def _up(self, name: str) -> bool:
        process = self._running.get(name)
        return process is not None and process.returncode is None

    async def kill(self, name: str) -> None:
        """SIGKILL one process; it stays down until it is started again."""
        if not self._up(name):
            raise StackError(f"{name} is not running")
        process = self._running[name]
        process.kill()
        await process.wait()

    async def stop_all(self) -> None:
        """Stop everything in the opposite order; what does not end in time is killed."""
        for names in (SERVICES, BACKENDS):
            alive = [name for name in names if self._up(name)]
            for name in alive:
                self._running[name].send_signal(self._specs[name].stop)
            for name in alive:
                try:
                    await asyncio.wait_for(self._running[name].wait(), STOP_WITHIN_S)
                except TimeoutError:
                    self._running[name].kill()
                    await self._running[name].wait()

    def status(self) -> JSON:
        """Return what runs."""
        rows = [
            {"name": name, "up": self._up(name), "port": self._state.port(name), "pid": self._pid(name)}
            for name in self._names
        ]
        return {"healthy": self._healthy, "failed": self._failed, "processes": rows, "edge": self._state.edge_url}

    def _pid(self, name: str) -> int | None:
        return self._running[name].pid if self._up(name) else None

    def fail(self, error: StackError) -> None:
        """Remember why the start failed, for whoever waits for it."""
        self._failed = str(error)

    async def answer(self, command: JSON) -> JSON:
        """Do what a command of plexctl asks."""
        match command:
            case {"do": "status"}:
                return self.status()
            case {"do": "kill", "name": str(name)}:
                await self.kill(name)
            case {"do": "start", "name": str(name)}:
                await self.start(name)
            case {"do": "up"}:
                for name in self._names:
                    await self.start(name)
            case {"do": "down"}:
                self.stopped.set()
            case _:
                raise StackError("unknown command")
        return {"ok": True}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one command on the control socket."""
        try:
            answer = await self.answer(json.loads(await reader.readline()))
        except (StackError, ValueError) as error:
            answer = {"error": str(error)}
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
            writer.close()


async def ask(state: State, **command: str) -> JSON:
    """Send a command to a running supervisor; raises StackError when there is none, or with its answer."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(state.control))
    except OSError:
        raise StackError(f"no stack runs in {state.folder}") from None
    writer.write(json.dumps(command).encode() + b"\n")
    answer: JSON = json.loads(await reader.readline() or b'{"error": "the supervisor ended"}')
    writer.close()
    if "error" in answer:
        raise StackError(answer["error"])
    return answer


@contextlib.contextmanager
def alone(state: State) -> Iterator[None]:
    """Hold the state folder for the block; raises StackError when another supervisor has it."""
    (state / "run").mkdir(parents=True, exist_ok=True)
    # The system gives the lock back when its holder ends, however it ends.
    with (state / "run/supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"a stack is already running or starting in {state.folder}") from None
        yield


@contextlib.asynccontextmanager
async def control(supervisor: Supervisor, state: State) -> AsyncIterator[None]:
    """Serve the control socket for the block."""
    state.control.parent.mkdir(parents=True, exist_ok=True)
    state.control.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(supervisor.serve, path=str(state.control))
    state.control.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        state.control.unlink(missing_ok=True)


async def supervise(state: State, *, backends_only: bool, report: Report, ready: Callable[[], None]) -> None:
    """Run a stack until it is told to stop; raises StackError when it cannot start."""
    supervisor = Supervisor(state, backends_only=backends_only, report=report)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stopped.set)
    with alone(state):
        await _run(supervisor, state, ready)


async def _run(supervisor: Supervisor, state: State, ready: Callable[[], None]) -> None:
    async with control(supervisor, state):
        starting = asyncio.ensure_future(supervisor.start_all())
        stopping = asyncio.ensure_future(supervisor.stopped.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                _raise_first(starting)
                ready()
                await stopping
        except StackError as error:
            supervisor.fail(error)
            raise
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await supervisor.stop_all()


def _raise_first(task: asyncio.Future[None]) -> None:
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


def main() -> None:
    """Run a stack in the background; `plexctl dev up --detach` starts this."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--backends-only", action="store_true")
    arguments = parser.parse_args()

    def report(name: str) -> None:
        sys.stdout.write(f"ready: {name}\n")
        sys.stdout.flush()

    try:
        state = State(arguments.state.resolve())
        asyncio.run(supervise(state, backends_only=arguments.backends_only, report=report, ready=lambda: None))
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
