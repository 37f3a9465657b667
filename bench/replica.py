"""A second process of a service beside the embedded stack's own, on ports of its own and with the same certificate."""

import asyncio
import re
import socket
import sys
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True)
class Replicated(Deployment):
    """A stack whose service `of` has a replica, which is called by the service's name and `-2`."""

    of: str
    own: dict[str, int]
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    @classmethod
    async def beside(cls, deployment: Deployment, of: str) -> "Replicated":
        """Start a replica."""
        made = cls(deployment.state, deployment.world, of, {of: free_port(), f"{of}-metrics": free_port()})
        await made.start(made.name)
        return made

    @property
    def name(self) -> str:
        """Name of the replica."""
        return f"{self.of}-2"

    @property
    def spec(self) -> Spec:
        """How it is started, and how it is known to be ready."""
        there = services.spec(Beside(self.state.folder, self.own), self.of)
        path = self.state / f"config/{self.name}.toml"
        return replace(
            there, name=self.name, command=[sys.executable, "-m", f"services.{self.of}", "--config", str(path)]
        )

    async def kill(self, name: str) -> None:
        """SIGKILL a process."""
        if name != self.name:
            await super().kill(name)
            return
        process = self.running.pop()
        process.kill()
        await process.wait()

    async def start(self, name: str) -> None:
        """Start a process that is down."""
        if name != self.name:
            await super().start(name)
            return
        text = (self.state / f"config/{self.of}.toml").read_text()
        for kind, port in self.own.items():
            text = re.sub(rf"port = {self.state.port(kind)}\b", f"port = {port}", text)
        (self.state / f"config/{self.name}.toml").write_text(text.replace(f"{self.of}.trace", f"{self.name}.trace"))
        self.running.append(await spawn(self.state, self.spec))
        await until_ready(self.state, self.spec, self.running[0])

    async def down(self) -> list[str]:
        """Return the processes that are not running."""
        alone = [] if self.running and self.running[0].returncode is None else [self.name]
        self.running[:] = [] if alone else self.running
        return [*await super().down(), *alone]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
