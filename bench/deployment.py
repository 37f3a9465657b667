"""An embedded stack of a benchmark's own, and its processes as the system sees them."""

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import nats
from nats.aio.client import Client

from devstack.layout import StackError, State
from devstack.postgres import leftovers
from devstack.process import child_setup
from devstack.supervisor import ask
from libs import tls
from libs.settings import Tls
from tests.e2e.outside import Edge, Login, Node, Outside
from tests.e2e.planting import insert_nodes
from tests.e2e.world import PLEXCTL, World

HEALTHY_WITHIN_S = 240.0
TICKS = os.sysconf("SC_CLK_TCK")
AGENTS = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
SELECT uuidv7(), 'node', id, 'agent', 'node', id, 'live' FROM unnest($1::text[]) AS one (id)
"""
METRIC = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Deployment:
    """A running stack, with every backend in hand."""

    state: State
    world: World

    async def restart(self, name: str) -> None:
        """SIGKILL a process and start it again; returns when it is healthy."""
        with contextlib.suppress(StackError):
            await ask(self.state, do="kill", name=name)
        await ask(self.state, do="start", name=name)

    async def kill(self, name: str) -> None:
        """SIGKILL a process, as `plexctl dev kill` does."""
        await ask(self.state, do="kill", name=name)

    async def start(self, name: str) -> None:
        """Start a process, as `plexctl dev start` does."""
        await ask(self.state, do="start", name=name)

    async def down(self) -> list[str]:
        """Return the processes that are not running."""
        return [row["name"] for row in (await ask(self.state, do="status"))["processes"] if not row["up"]]

    async def pids(self) -> dict[str, list[int]]:
        """Return the processes by name; PostgreSQL's are several."""
        rows = (await ask(self.state, do="status"))["processes"]
        found = {row["name"]: [row["pid"]] for row in rows if row["pid"]}
        found["postgres"] = leftovers(self.state)
        return found

    async def cpu_s(self) -> dict[str, float]:
        """Return the processor seconds that each process has used, the benchmark's own as `client`."""
        pids = await self.pids() | {"client": [os.getpid()]}
        return {name: sum(map(_cpu_s, those)) for name, those in pids.items()}

    def errors(self) -> Counter[str]:
        """Return the errors in all logs: who says it, what, and the last frames of the exception."""
        found: Counter[str] = Counter()
        for path in (self.state / "log").glob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                if '"level": "error"' in line or "refused to start" in line:
                    found[_shortened(path.stem, line)] += 1
        return found

    async def without_traces(self, *names: str) -> None:
        """Run services as deployments do, without a file of spans, which the embedded stack writes for its tests."""
        for name in names:
            self.configure(name, r'trace_file = ".*"', 'trace_file = ""')
            await self.restart(name)

    async def with_traces(self, name: str) -> Path:
        """Run a service with a file of spans, and return where it is."""
        path = self.state / f"log/{name}.bench.jsonl"
        path.unlink(missing_ok=True)
        self.configure(name, r'trace_file = ".*"', f'trace_file = "{path}"')
        await self.restart(name)
        return path

    def configure(self, name: str, pattern: str, replacement: str) -> None:
        """Replace something in the settings of a service, which reads them when it starts."""
        path = self.state / f"config/{name}.toml"
        path.write_text(re.sub(pattern, lambda _: replacement, path.read_text()))

    def identity(self, name: str) -> Tls:
        """Return a process's TLS identity."""
        return Tls(
            certificate_file=self.state / f"pki/{name}.crt",
            key_file=self.state / f"pki/{name}.key",
            ca_file=self.state / "pki/ca.crt",
        )

    async def metrics(self, name: str) -> dict[str, float]:
        """Return a process's metrics, read over mTLS as Prometheus does; samples by name and labels."""
        context = tls.client(self.identity("probe"))
        url = f"https://127.0.0.1:{self.state.port(f'{name}-metrics')}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url, ssl=context) as answer:
            text = await answer.text()
        return {found[1] + (found[2] or ""): float(found[3]) for found in METRIC.finditer(text)}

    async def broker(self) -> Client:
        """Connect to NATS as whoever holds the broker."""

        async def quiet(_: Exception) -> None:
            # That the broker is killed is the point; the default prints a traceback.
            return

        context = tls.client(self.identity("operator"))
        url = self.world.env["PLEX_NATS_URL"]
        return await nats.connect(url, tls=context, error_cb=quiet, max_reconnect_attempts=0)

    @contextlib.asynccontextmanager
    async def pool_as(self, name: str, size: int) -> AsyncIterator[asyncpg.Pool]:
        """Open a pool as a service, over TLS with its certificate."""
        async with asyncpg.create_pool(
            host="127.0.0.1",
            port=self.state.port("postgres"),
            database="plexsphere",
            user=name,
            ssl=tls.client(self.identity(name)),
            min_size=size,
            max_size=size,
        ) as pool:
            yield pool

    @contextlib.asynccontextmanager
    async def operator(self) -> AsyncIterator["Operator"]:
        """Sign in as the operator over HTTPS."""
        async with Outside(self.world.edge_url, self.world.ca_file) as outside:
            browser = await outside.sign_in(Login("operator", acr="urn:plexsphere:acr:mfa", amr=("pwd", "otp")))
            yield Operator(outside, outside.edge().as_bearer(await outside.access_token(browser)))

    async def plant_nodes(self, domain_id: str, project_id: str, count: int) -> list[Node]:
        """Insert registered nodes as superuser: registering thousands over HTTPS would take minutes.

        They have what the event path needs (node, key, relations) and nothing else; identity brings the relations to
        SpiceDB as it does after every restart of it.
        """
        dba = await self.world.superuser()
        try:
            async with dba.transaction():
                nodes = await insert_nodes(dba, domain_id, project_id, count)
                await dba.execute(AGENTS, [node.node_id for node in nodes])
        finally:
            await dba.close()
        await self.restart("spicedb")
        # Identity looks every second whether SpiceDB was emptied.
        await asyncio.sleep(3)
        return nodes


@dataclass(frozen=True)
class Operator:
    """The operator at the edge."""

    outside: Outside
    edge: Edge

    async def make(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create something and return it; raises AssertionError with what the edge answered instead."""
        answer = await self.edge.call("POST", path, body)
        assert answer.status == 201, f"{path}: {answer} {answer.body!r}"
        return answer.json

    async def domain(self, number: int) -> str:
        """Create a Domain with a range of its own, large enough for thousands of nodes."""
        tag = uuid.uuid4().hex[:8]
        body = {"name": f"Bench {number}", "slug": f"bench-{tag}", "mesh_cidr": f"10.{number}.0.0/16"}
        return str((await self.make("/v1/domains", body))["id"])

    async def project(self, domain_id: str) -> str:
        """Create a project."""
        tag = uuid.uuid4().hex[:8]
        body = {"domain_id": domain_id, "name": "Web", "slug": f"web-{tag}"}
        return str((await self.make("/v1/projects", body))["id"])

    async def node(self, project_id: str, handle: str) -> tuple[Node, dict[str, Any]]:
        """Register a node over HTTPS and return it with what it was answered."""
        body = {"origin": "adopted", "kind": "server", "external_ref": handle}
        await self.make(f"/v1/projects/{project_id}/resources", body)
        token = {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900}
        issued = await self.make(f"/v1/projects/{project_id}/bootstrap-tokens", token)
        node = Node(handle)
        answer = await node.register(self.edge, project_id, issued["token"])
        assert answer.status == 201, f"register: {answer} {answer.body!r}"
        return node, answer.json


@contextlib.asynccontextmanager
async def deployed() -> AsyncIterator[Deployment]:
    """Start a stack in a fresh folder for the block; its logs stay when the block fails."""
    # Connections that the other side cut are what happens here, not something to be warned of.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="plex-bench-"))
    state = State(folder)
    with (folder / "supervisor.log").open("wb") as log:
        supervisor = subprocess.Popen(  # noqa: ASYNC220 — started once, before anything else runs
            [*PLEXCTL, "dev", "up", "--state", folder], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            # A run that is killed takes its stack with it.
            preexec_fn=child_setup(os.getpid()),  # noqa: PLW1509 — no thread runs yet
        )  # fmt: skip
    try:
        await _until_healthy(state, supervisor)
        yield Deployment(state, await World.of(folder))
    except BaseException:  # interrupted too: whoever does that wants to see why it took so long
        print(f"the logs are in {folder}/log")
        raise
    else:
        supervisor.terminate()
        supervisor.wait()
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        supervisor.terminate()
        supervisor.wait()


async def _until_healthy(state: State, supervisor: "subprocess.Popen[bytes]") -> None:
    async with asyncio.timeout(HEALTHY_WITHIN_S):
        while supervisor.poll() is None:
            with contextlib.suppress(StackError):
                if (await ask(state, do="status"))["healthy"]:
                    return
            await asyncio.sleep(0.05)
    raise StackError((state / "supervisor.log").read_text())


def _shortened(name: str, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        return f"{name}: {line[:200]}"
    frames = " < ".join(reversed(row.get("frames", [])[-3:]))
    return f"{name}: {row.get('event')} {row.get('what') or row.get('error') or ''} {frames}".strip()


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process: its resident pages, shared ones divided among those who share."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
