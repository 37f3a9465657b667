"""Further processes of a service beside the embedded stack's own, on ports of their own, with the same certificate."""

import asyncio
import re
import signal
import socket
import sys
from dataclasses import dataclass, field, replace
from typing import Self

from bench.deployment import Deployment
from devstack import services
from devstack.layout import State
from devstack.process import Spec, spawn, until_ready


@dataclass(frozen=True)
class Beside(State):
    """The stack's folder as the replica sees it: its own ports."""

    own: dict[str, int]

    def port(self, name: str) -> int:
        """Return the port of a process."""
        return self.own.get(name) or super().port(name)


@dataclass
class Replica:
    """One more process of the service `of`."""

    state: State
    of: str
    number: int
    own: dict[str, int]
    process: asyncio.subprocess.Process | None = None

    @classmethod
    def beside(cls, state: State, of: str, number: int) -> Self:
        """Return one that is not started yet."""
        return cls(state, of, number, {of: free_port(), f"{of}-metrics": free_port()})

    @property
    def name(self) -> str:
        """Its name: the service's, and a number."""
        return f"{self.of}-{self.number}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.own[self.of]

    @property
    def beside_it(self) -> Beside:
        """The stack's folder as it sees it."""
        return Beside(self.state.folder, self.own)

    @property
    def spec(self) -> Spec:
        """How it is started, and how it is known to be ready."""
        there = services.spec(self.beside_it, self.of)
        path = self.state / f"config/{self.name}.toml"
        return replace(
            there, name=self.name, command=[sys.executable, "-m", f"services.{self.of}", "--config", str(path)]
        )

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Start it, with the settings that the stack's own process has, and wait until it is ready."""
        text = (self.state / f"config/{self.of}.toml").read_text()
        for kind, port in self.own.items():
            text = re.sub(rf"port = {self.state.port(kind)}\b", f"port = {port}", text)
        (self.state / f"config/{self.name}.toml").write_text(text.replace(f"{self.of}.trace", f"{self.name}.trace"))
        self.process = await spawn(self.state, self.spec)
        await until_ready(self.state, self.spec, self.process)

    async def end(self, number: signal.Signals = signal.SIGKILL, within_s: float = 10.0) -> bool:
        """Send it a signal and wait for its end; says whether that came in time. Later it is killed."""
        if self.process is None or not self.up:
            return False
        self.process.send_signal(number)
        try:
            await asyncio.wait_for(self.process.wait(), within_s)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            return False
        return True


@dataclass(frozen=True)
class Replicated(Deployment):
    """A stack whose service `of` has a replica, which is called by the service's name and `-2`."""

    replica: Replica = field(kw_only=True)

    @classmethod
    async def beside(cls, deployment: Deployment, of: str) -> "Replicated":
        """Start a replica."""
        made = cls(deployment.state, deployment.world, replica=Replica.beside(deployment.state, of, 2))
        await made.replica.start()
        return made

    @property
    def name(self) -> str:
        """Name of the replica."""
        return self.replica.name

    async def kill(self, name: str) -> None:
        """SIGKILL a process."""
        if name == self.name:
            await self.replica.end()
        else:
            await super().kill(name)

    async def start(self, name: str) -> None:
        """Start a process that is down."""
        if name == self.name:
            await self.replica.start()
        else:
            await super().start(name)

    async def down(self) -> list[str]:
        """Return the processes that are not running."""
        return [*await super().down(), *([] if self.replica.up else [self.name])]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
