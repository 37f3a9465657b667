"""A node's bearer through the edge, kept and not, against the same empty authenticated call with an assertion ready."""

import asyncio
import contextlib
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from bench.deployment import Deployment
from bench.measure import Bar, Figures, Report, alternate, column, percentile
from devstack.layout import ROOT
from devstack.process import child_setup
from tests.e2e.outside import Node

IN_FLIGHT = 32
SECONDS = 3.0
WARM_UP_S = 1.0
READY_WITHIN_S = 20.0
OK = 200
FLOORS = {"cached": 0.8, "uncached": 0.4}


@dataclass(frozen=True)
class Load:
    """Keeps requests to one edge in flight."""

    http: aiohttp.ClientSession
    url: str
    node: Node

    async def authenticated(self) -> Figures:
        """Ask with the node's bearer."""
        path = f"/v1/nodes/{self.node.node_id}/state"
        return await self._run(path, {"Authorization": f"Bearer {self.node.bearer}"})

    async def open(self) -> Figures:
        """Ask without a credential; the edge has an assertion ready."""
        return await self._run("/v1/version", {})

    async def _run(self, path: str, headers: dict[str, str]) -> Figures:
        await self._drive(path, headers, WARM_UP_S)
        started = time.perf_counter()
        latencies = await self._drive(path, headers, SECONDS)
        rate = len(latencies) / (time.perf_counter() - started)
        return {"rate": rate, "p50_ms": percentile(latencies, 0.5) * 1000, "p99_ms": percentile(latencies, 0.99) * 1000}

    async def _drive(self, path: str, headers: dict[str, str], seconds: float) -> list[float]:
        until, latencies = time.perf_counter() + seconds, list[float]()

        async def worker() -> None:
            while (begun := time.perf_counter()) < until:
                async with self.http.get(self.url + path, headers=headers) as answer:
                    assert answer.status == OK, await answer.text()
                latencies.append(time.perf_counter() - begun)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(worker())
        return latencies


@contextlib.asynccontextmanager
async def process(deployment: Deployment, what: str, *arguments: str) -> AsyncIterator[int]:
    """Run one of the benchmark's processes for the block; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["-m", "bench.bearer_edge", what, "--state", str(deployment.state.folder), "--port", str(port)]
    with (deployment.state / f"log/bench-{what}.log").open("wb") as log:
        running = await asyncio.create_subprocess_exec(
            sys.executable, *command, *arguments, cwd=ROOT, preexec_fn=child_setup(os.getpid()), stdout=log, stderr=log
        )
    try:
        await _until_listening(port, running)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def _until_listening(port: int, running: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(READY_WITHIN_S):
        while running.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
    raise RuntimeError("a process of the benchmark did not start; see log/bench-*.log")


async def measure(deployment: Deployment, node: Node, report: Report) -> None:
    """Add the bars of kept and fresh authentication."""
    bearer = deployment.state / "run/bench.bearer"
    bearer.touch(mode=0o600)
    bearer.write_text(node.bearer)
    trust = ssl.create_default_context(cafile=deployment.world.ca_file)
    async with process(deployment, "empty") as empty_port:
        arguments = ("--empty-port", str(empty_port), "--bearer-file", str(bearer))
        for what, floor in FLOORS.items():
            async with (
                process(deployment, what, *arguments) as port,
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=IN_FLIGHT)) as http,
            ):
                load = Load(http, f"https://127.0.0.1:{port}", node)
                ours, theirs = await alternate(load.authenticated, load.open)
            name = f"node bearer at the edge, {what}"
            report.bars.append(Bar(name, "requests/s", column(ours, "rate"), column(theirs, "rate"), floor))
            for side, rounds in (("bearer", ours), ("empty call", theirs)):
                figures = {of: percentile(column(rounds, of), 0.5) for of in ("p50_ms", "p99_ms")}
                report.shares[f"{name}, {side}"] = figures
