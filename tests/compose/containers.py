"""The system in containers, as the story and its attacker see it."""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from devstack import compose, openbao
from devstack.layout import CLIENT_ID, State
from tests.compose.engine import FOLDER, PROJECT, Engine
from tests.e2e.attacker import eventually
from tests.e2e.world import World, run

HEALTHY_WITHIN_S = 90
# What the attacker holds, and where it listens inside.
HELD = {"openbao": 8200, "nats": 4222}


def inspect(service: str) -> dict[str, Any]:
    """Return what Docker says of a service's container."""
    found: dict[str, Any] = json.loads(docker("inspect", container(service)))[0]
    return found


def docker(*words: str) -> str:
    """Run a command of Docker; raises with what it said when it fails."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(words[:3])}: {done.stderr.strip()}")
    return done.stdout


def container(service: str) -> str:
    """Return the name of a service's container."""
    return f"{PROJECT}-{service}-1"


def addresses(service: str) -> list[str]:
    """Return a container's addresses, one for each of its networks."""
    return [one["IPAddress"] for one in inspect(service)["NetworkSettings"]["Networks"].values() if one["IPAddress"]]


class Inside(AbstractResolver):
    """Knows containers by their names, as a browser in their networks would; any other name is the system's."""

    def __init__(self) -> None:
        self._outside = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return where a name leads."""
        if host not in {"oidc-a", "prometheus"}:
            return await self._outside.resolve(host, port, family)
        return [
            ResolveResult(hostname=host, host=one, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
            for one in addresses(host)
        ]

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Containers(World):
    """A running system: the edge where it is published, the backends where Docker has them."""

    engine: Engine

    @classmethod
    def prepare(cls, engine: Engine) -> "Containers":
        """Make what is mounted, from nothing, and let the attacker see what it would see on the embedded stack."""
        shutil.rmtree(FOLDER, ignore_errors=True)
        (FOLDER / "superuser").mkdir(parents=True)
        compose.prepare(FOLDER, operator=True)
        state, data = State(FOLDER / "state"), FOLDER / "data"
        (state / "nats").symlink_to(data / "nats")
        (state / "audit").symlink_to(data / "audit/audit")
        (state / "log/openbao-audit.log").symlink_to(data / "openbao/audit.log")
        issuer = {"PLEX_OIDC_B_ISSUER": "https://oidc-a:9443", "PLEX_OIDC_B_CLIENT_ID": CLIENT_ID}
        superuser = f"postgresql://postgres@/plexsphere?host={FOLDER}/superuser&port=5432"
        env = {"PLEX_EDGE_URL": compose.EDGE, "PLEX_PG_SUPERUSER": superuser}
        return cls(state.folder, {**state.exports(), **issuer, **env}, engine)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Lead the attacker's ports on this machine to the backends, which publish none."""
        async with contextlib.AsyncExitStack() as open_:
            for name, inside in HELD.items():

                async def take(
                    reader: StreamReader, writer: StreamWriter, name: str = name, inside: int = inside
                ) -> None:
                    there = await asyncio.open_connection(addresses(name)[0], inside)
                    await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

                port = State(self.state).port(name)
                await open_.enter_async_context(await asyncio.start_server(take, "127.0.0.1", port))
            yield

    async def kill(self, service: str) -> None:
        """SIGKILL a container's process; it stays down, because Docker knows who asked."""
        await run("docker", "kill", container(service))

    async def start(self, service: str) -> None:
        """Start a container that is down and wait until its own check passes."""
        # Compose would run the migrations again, too.
        await run("docker", "start", container(service))
        check = inspect(service)["Config"]["Healthcheck"]["Test"][1:]

        async def healthy() -> bool:
            with contextlib.suppress(RuntimeError):
                await run("docker", "exec", container(service), *check)
                return True
            return False

        await eventually(healthy, HEALTHY_WITHIN_S)

    def config(self, service: str) -> str:
        """Return a container's settings file."""
        return (FOLDER / f"config/{service}.toml").read_text()

    async def restart(self, service: str, config: str = "") -> None:
        """SIGKILL a container's process and start it again, with other settings when they are given."""
        await self.kill(service)
        if config:
            # In place: the file is what is mounted, not its name.
            (FOLDER / f"config/{service}.toml").write_text(config)
        await self.start(service)

    async def lend_client_secret(self, domain_id: str, provider: str = "oidc-a") -> str:
        """Put the one provider's client secret into OpenBao for a Domain; returns the reference."""
        return await openbao.lend_client_secret(State(self.state), provider, domain_id)

    def logs(self) -> dict[str, bytes]:
        """Return what every container has said, by name."""
        names = subprocess.check_output(self.engine.words("ps", "--all", "--services"), env=self.engine.env, text=True)
        return {f"{name}.log": self._log(name) for name in names.split()}

    def _log(self, service: str) -> bytes:
        words = self.engine.words("logs", "--no-color", "--no-log-prefix", service)
        return subprocess.check_output(words, env=self.engine.env)

    async def dump(self) -> bytes:
        """Dump the database, and put what the containers said where it is searched."""
        for name, said in self.logs().items():
            (Path(self.state) / "log" / name).write_bytes(said)
        return await super().dump()


async def _copy(reader: StreamReader, writer: StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
