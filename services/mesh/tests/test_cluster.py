"""Three real servers of JetStream: one that dies costs no acknowledged event; mesh sees to how many hold the stream."""

import asyncio
import contextlib
import datetime
import json
import os
import shutil
import signal
import socket
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devstack import nats, pki
from devstack.layout import ROOT, State, program
from devstack.process import Spec, port_open, spawn, until, until_ready
from libs.errors import EventBusUnavailable
from libs.ids import uuid7
from libs.nats import Bus, open_bus
from libs.settings import Nats, Tls
from services.mesh.bus import STREAM, JetStream
from services.mesh.keeper import Keeper
from services.mesh.model import Logged
from services.mesh.tests.fakes import FakeKeyStore, FakeLog, clock

pytestmark = pytest.mark.integration

SERVERS = ("one", "two", "three")
WITHIN_S = 60
BATCH = 5


def free_ports(count: int) -> Iterator[int]:
    """Yield ports that were free a moment ago, each another one."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    yield from ports


@dataclass
class Cluster:
    """The servers by name; `bus` is mesh's connection."""

    state: State
    ports: dict[str, dict[str, int]]
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    def write(self, name: str) -> None:
        """Write a server's configuration, from the files that ship."""
        mine, tls = self.ports[name], str(self.state / "pki")
        routes = ", ".join(f'"tls://127.0.0.1:{other["cluster"]}"' for other in self.ports.values())
        text = nats.TEMPLATE.read_text() + (ROOT / "deploy/nats/cluster.conf").read_text()
        text += f'\nhttp: "127.0.0.1:{mine["monitor"]}"\n'
        for key, value in {
            "NAME": name, "LISTEN": f"127.0.0.1:{mine['client']}", "CLUSTER": f"127.0.0.1:{mine['cluster']}",
            "ROUTES": routes, "TLS": tls, "STORE": str(self.state / name), "SUPERUSER": nats.SUPERUSER,
        }.items():  # fmt: skip
            text = text.replace(f"@{key}@", value)
        (self.state / f"config/{name}.conf").write_text(text)

    async def start(self, name: str) -> None:
        """Start a server and wait until it listens."""

        async def ready() -> None:
            await port_open(self.ports[name]["client"])

        spec = Spec(name, [program("nats-server"), "-c", str(self.state / f"config/{name}.conf")], ready)
        self.running[name] = await spawn(self.state, spec)
        await until_ready(self.state, spec, self.running[name])

    async def kill(self, name: str) -> None:
        """Kill a server as a machine that is gone would."""
        self.running[name].send_signal(signal.SIGKILL)
        await self.running.pop(name).wait()

    def told(self, name: str) -> Any:
        """Return what a server says of its JetStream."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]['monitor']}/jsz?config=true") as answer:
            return json.load(answer)

    def open(self, service: str = "mesh") -> Any:
        """Connect as a service, by one server's address; the others are heard of from it."""
        folder = self.state / "pki"
        own = Tls(
            certificate_file=folder / f"{service}.crt", key_file=folder / f"{service}.key", ca_file=folder / "ca.crt"
        )
        return open_bus(Nats(address=f"tls://127.0.0.1:{self.ports['one']['client']}"), own, service)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="plex-nats-"))
    for name in ("log", "pki", "config"):
        (folder / name).mkdir()
    ports = free_ports(9)
    made = Cluster(
        State(folder), {name: {use: next(ports) for use in ("client", "cluster", "monitor")} for name in SERVERS}
    )
    pki.prepare(made.state)
    for name in SERVERS:
        made.write(name)
    await asyncio.gather(*map(made.start, SERVERS))
    yield made
    for name in list(made.running):
        await made.kill(name)
    shutil.rmtree(folder)


@pytest.fixture
async def bus(cluster: Cluster) -> AsyncIterator[Bus]:
    async with cluster.open() as opened:
        await until(lambda: opened.connected, WITHIN_S)
        yield opened


async def made(stream: JetStream, first: int = 1) -> None:
    """Make the stream as soon as the servers have agreed on who leads."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await stream.create(first)
            except EventBusUnavailable:
                await asyncio.sleep(0.2)
            else:
                return


async def info(bus: Bus) -> dict[str, Any]:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                return await bus.request(f"$JS.API.STREAM.INFO.{STREAM}", {})
            except EventBusUnavailable:
                await asyncio.sleep(0.1)


async def whole(bus: Bus, replicas: int) -> dict[str, Any]:
    """Wait until the stream is held by so many servers, all of which have everything; returns how it is."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = await info(bus)
            others = found.get("cluster", {}).get("replicas", [])
            if len(others) == replicas - 1 and all(other["current"] for other in others):
                return found
            await asyncio.sleep(0.1)


@dataclass
class Publisher:
    """Publishes without an end, and notes what was acknowledged."""

    stream: JetStream
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    async def run(self) -> None:
        """Publish batch after batch; what is not acknowledged is published again, as mesh does."""
        while True:
            rows = [_row() for _ in range(BATCH)]
            while True:
                try:
                    places = await self.stream.publish(rows)
                    break
                except EventBusUnavailable:
                    await asyncio.sleep(0.05)
            self.order += places
            self.acknowledged |= {place: row.envelope for place, row in zip(places, rows, strict=True)}

    async def more(self, count: int) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.order) + count
        await until(lambda: len(self.order) >= wanted, WITHIN_S)


async def looks(stream: JetStream, publisher: Publisher) -> list[bool]:
    """Look as the keeper does, and tell each time whether the stream had less than was acknowledged."""
    behind: list[bool] = []
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            highest = publisher.order[-1] if publisher.order else 0
            with contextlib.suppress(EventBusUnavailable):
                state = await stream.state()
                behind.append(state is None or state.last < highest)
            await asyncio.sleep(0.02)
    return behind


def _row() -> Logged:
    domain = uuid7()
    now = datetime.datetime.now(datetime.UTC)
    return Logged(uuid7(), domain, f"domain:{domain}", "rotate_keys", os.urandom(400), now)


async def held(stream: JetStream, count: int) -> dict[int, bytes]:
    """Return what the stream holds, once that is at least so much."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found: dict[int, bytes] = {}
            while page := await stream.read(max(found, default=0) + 1, 500):
                found |= dict(page)
            if len(found) >= count:
                return found
            await asyncio.sleep(0.2)


async def test_no_acknowledged_event_is_lost_with_the_server_that_leads(cluster: Cluster, bus: Bus) -> None:
    stream = JetStream(bus, 3)
    await made(stream)
    await whole(bus, 3)
    publisher = Publisher(stream)
    publishing = asyncio.ensure_future(publisher.run())
    looking = asyncio.ensure_future(looks(stream, publisher))
    for _ in range(3):
        await publisher.more(50)
        leader = (await info(bus))["cluster"]["leader"]
        await cluster.kill(leader)
        await publisher.more(50)
        assert (await info(bus))["cluster"]["leader"] != leader
        await cluster.start(leader)
        await whole(bus, 3)
    publishing.cancel()
    looking.cancel()
    # Else the keeper would begin the stream anew.
    assert set(await looking) == {False}
    assert publisher.order == sorted(set(publisher.order))
    found = await held(stream, len(publisher.acknowledged))
    assert {place: found.get(place) for place in publisher.acknowledged} == publisher.acknowledged


async def test_without_a_majority_nothing_is_acknowledged(cluster: Cluster, bus: Bus) -> None:
    stream = JetStream(bus, 3)
    await made(stream)
    await whole(bus, 3)
    await stream.publish([_row()])
    leader = (await info(bus))["cluster"]["leader"]
    for name in SERVERS:
        if name != leader:
            await cluster.kill(name)
    for _ in range(3):
        with pytest.raises(EventBusUnavailable):
            await stream.publish([_row()])


async def test_the_keeper_brings_a_stream_to_as_many_servers_as_the_settings_say(cluster: Cluster, bus: Bus) -> None:
    await made(JetStream(bus, 1))
    rows = [_row() for _ in range(BATCH)]
    places = await JetStream(bus, 1).publish(rows)
    log = FakeLog()
    await log.append(rows)
    await log.note([(place, row.id) for place, row in zip(places, rows, strict=True)], 1)
    for replicas in (3, 1):
        stream = JetStream(bus, replicas)
        state = await stream.state()
        assert state is not None
        assert not state.ours
        await Keeper(log, FakeKeyStore(), stream, clock()).look()
        assert (await whole(bus, replicas))["config"]["num_replicas"] == replicas
        state = await stream.state()
        assert state is not None
        assert state.ours
        assert await held(stream, BATCH) == dict(zip(places, (row.envelope for row in rows), strict=True))


async def test_every_server_writes_to_its_disk_before_it_answers(cluster: Cluster) -> None:
    for name in SERVERS:
        assert (await asyncio.to_thread(cluster.told, name))["config"]["sync_always"] is True
