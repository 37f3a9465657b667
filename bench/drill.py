"""Makes a fault at a service, and sees the right people woken and nobody else: `make drill SERVICE=audit FAULT=kill`.

A real Prometheus reads the stack over mTLS and evaluates the rules that ship, with every window shortened by FACTOR:
five minutes are twenty seconds here. Scrapes, 15 s apart in production, are three seconds apart: a busy machine can
answer one in time, and one that it cannot wakes nobody.
"""

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml

from bench.deployment import Deployment, deployed
from devstack.layout import program
from tests.e2e.freeze import send
from tools.alerts import Service
from tools.alerts_own import PLATFORM_OWNER, SERVICES, all_rules

FACTOR = 15
SCRAPE, EVALUATE = "3s", "1s"
# Longer than any alert holds before it pages, the two minutes of the longest being eight seconds here.
WATCH_S = 20.0
WITHIN_S = 120.0
LIMIT = "ALTER ROLE {role} CONNECTION LIMIT {most}"
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
FAULTS = ("kill", "hang", "backend")
Page = tuple[str, str]


@dataclass
class Prometheus:
    """A running Prometheus, and every page that it has fired."""

    url: str
    http: aiohttp.ClientSession
    seen: set[Page] = field(default_factory=set)

    async def pages(self) -> set[Page]:
        """Return the pages that fire now, each with whom it wakes."""
        async with self.http.get(f"{self.url}/api/v1/alerts") as answer:
            alerts = (await answer.json())["data"]["alerts"]
        labels = [one["labels"] for one in alerts if one["state"] == "firing"]
        now = {(one["alertname"], one["owner"]) for one in labels if one["severity"] == "page"}
        self.seen |= now
        return now

    async def until(self, what: str, so: Callable[[set[Page]], bool], for_s: float = 0.0) -> float:
        """Wait until the pages have been so for some seconds; returns how long it took."""
        started = since = time.monotonic()
        while time.monotonic() - started < WITHIN_S:
            if not so(await self.pages()):
                since = time.monotonic()
            elif time.monotonic() - since >= for_s:
                return time.monotonic() - started
            await asyncio.sleep(0.5)
        raise SystemExit(f"after {WITHIN_S:.0f} s still not so: {what}; firing: {sorted(await self.pages())}")

    async def up(self) -> bool:
        """Whether all services are scraped."""
        async with self.http.get(f"{self.url}/api/v1/query", params={"query": "count(up == 1)"}) as answer:
            found = (await answer.json())["data"]["result"]
        return bool(found) and int(found[0]["value"][1]) == len(SERVICES)


def configuration(deployment: Deployment) -> dict[str, Any]:
    """Return what Prometheus reads: a job for each service, under its name."""
    probe = deployment.identity("probe")
    files = {"ca_file": str(probe.ca_file), "cert_file": str(probe.certificate_file), "key_file": str(probe.key_file)}
    jobs = [
        {
            "job_name": one.name,
            "scheme": "https",
            "tls_config": files | {"server_name": one.name},
            "static_configs": [{"targets": [f"127.0.0.1:{deployment.state.port(f'{one.name}-metrics')}"]}],
        }
        for one in SERVICES
    ]
    every = {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": EVALUATE}
    return {"global": every, "rule_files": ["rules-*.yaml"], "scrape_configs": jobs}


@contextlib.asynccontextmanager
async def watching(deployment: Deployment) -> AsyncIterator[Prometheus]:
    """Run Prometheus for the block."""
    folder = deployment.state / "prometheus"
    folder.mkdir()
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration(deployment)))
    for rules in all_rules():
        (folder / f"rules-{rules.name}.yaml").write_text(yaml.safe_dump(rules.groups(FACTOR)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program("prometheus"), f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}", stdout=log, stderr=log,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as http:
            prometheus = Prometheus(f"http://{address}", http)
            async with asyncio.timeout(WITHIN_S):
                while not await _answers(prometheus):  # noqa: ASYNC110 — it tells nobody when it is ready
                    await asyncio.sleep(0.5)
            yield prometheus
    finally:
        process.terminate()
        await process.wait()


async def _answers(prometheus: Prometheus) -> bool:
    try:
        return await prometheus.up()
    except aiohttp.ClientError:
        return False


async def backend(deployment: Deployment, service: Service, *, away: bool) -> None:
    """Take a service's backend from it alone, or give it back; the gateway has none but the broker, which it shares."""
    if "postgres" not in service.backends:
        await (deployment.kill("nats") if away else deployment.start("nats"))
        return
    dba = await deployment.world.superuser()
    try:
        await dba.execute(LIMIT.format(role=service.name, most=0 if away else -1))
        if away:
            await dba.execute(END, service.name)
    finally:
        await dba.close()


async def make(deployment: Deployment, service: Service, fault: str) -> Page:
    """Make a fault and return the page that it has to fire."""
    if fault == "backend":
        await backend(deployment, service, away=True)
        alone = "postgres" in service.backends
        return (f"{service.title}DependencyDown", service.owner) if alone else ("BackendDown", PLATFORM_OWNER)
    if fault == "hang":
        await send(deployment.world, service.name, signal.SIGSTOP)
    else:
        await deployment.kill(service.name)
    return f"{service.title}Down", service.owner


async def mend(deployment: Deployment, service: Service, fault: str) -> None:
    """Do what the runbook says: give the backend back, or end what hangs, and start it."""
    if fault == "backend":
        await backend(deployment, service, away=False)
    else:
        await deployment.restart(service.name)


async def drill(service: Service, fault: str) -> None:
    """Play it through; ends with a message when something else was fired, or not in time."""
    async with deployed() as deployment, watching(deployment) as prometheus:
        await prometheus.until("no page before the fault", lambda pages: not pages, WATCH_S)
        prometheus.seen.clear()
        wanted = await make(deployment, service, fault)
        took_s = await prometheus.until(f"{wanted[0]} fires", lambda pages: wanted in pages)
        print(f"{fault} of {service.name}: {wanted[0]} woke {wanted[1]} after {took_s:.0f} s")
        await prometheus.until("it goes on", lambda pages: wanted in pages, WATCH_S)
        await mend(deployment, service, fault)
        took_s = await prometheus.until("green", lambda pages: not pages, WATCH_S)
        if others := prometheus.seen - {wanted}:
            raise SystemExit(f"others were woken, too: {sorted(others)}")
        print(f"mended: green {took_s - WATCH_S:.0f} s later, and nobody else was woken")


def main() -> None:
    """Read who and what."""
    named = {one.name: one for one in SERVICES}
    match sys.argv[1:]:
        case [name, fault] if name in named and fault in FAULTS:
            asyncio.run(drill(named[name], fault))
        case _:
            raise SystemExit(f"SERVICE is one of {', '.join(named)}; FAULT one of {', '.join(FAULTS)}")


if __name__ == "__main__":
    main()
