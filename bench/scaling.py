"""`make bench-scaling`: what a call costs in each process, and what that grows with; docs/scaling.md is made of it.

What counts is processor time, less what the idle system takes anyway: it is much the same on a machine that does other
things besides. The rates are those of one small machine that runs all of it, the clients too.
"""

import asyncio
import datetime
import itertools
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import grpc

from bench import sizes
from bench.calls import AS, recorded
from bench.deployment import Deployment, Operator, deployed
from bench.measure import Bar, Figures, Report, console, percentile
from bench.publishing import signed
from bench.registering import Fleet, Machine, through_identity
from bench.secrets import Call, Shelf, round_of
from bench.streams import streaming
from libs.audit import AuditClient
from libs.errors import PlexError
from libs.ids import uuid7
from libs.rpc.channel import OPTIONS, connect
from libs.settings import Peer
from plexsphere.identity.v1 import enrolment_pb2_grpc as stubs
from tests.e2e.outside import Edge, Node

SERVICES = ("identity", "access", "secrets", "mesh", "audit", "gateway")
LEVELS = (1, 4, 16, 64)
# Few enough for all of it to take ten minutes, and one round for all that is compared.
AT_ONCE, ROUNDS = 16, 3
NODES, STREAMS = 1000, 250
IDLE_S = 6.0
# Nothing that is found by one look into an index costs half as much again when there is a hundred times as much.
GROWTH = 1.5


@dataclass
class Costs:
    """What calls cost, beyond what goes on anyway; `idle` is processor milliseconds a second."""

    deployment: Deployment
    report: Report
    idle: Figures = field(default_factory=dict)
    refused: int = 0

    async def patiently(self, call: Call) -> None:
        """Call until it is done: a machine that does other things is late now and then, and what is late is refused."""
        while True:
            try:
                await call()
            except (AssertionError, PlexError, grpc.aio.AioRpcError):
                self.refused += 1
                await asyncio.sleep(0.05)
            else:
                return

    async def rest(self) -> None:
        """Measure what goes on anyway."""
        before, started = await self.deployment.cpu_s(), time.perf_counter()
        await asyncio.sleep(IDLE_S)
        elapsed, after = time.perf_counter() - started, await self.deployment.cpu_s()
        self.idle = {name: (after[name] - before[name]) * 1000 / elapsed for name in before}

    async def of(self, call: Call, at_once: int) -> Figures:
        """Return the rate, the latency and each process's milliseconds a call."""
        return self.beyond(await round_of(self.deployment, lambda: self.patiently(call), at_once))

    def beyond(self, figures: Figures) -> Figures:
        """Take what goes on anyway off a round's figures."""
        used = {of[7:]: value for of, value in figures.items() if of.startswith("cpu_ms.") and of != "cpu_ms.client"}
        spent = {name: value - self.idle.get(name, 0.0) / figures["rate"] for name, value in used.items()}
        rest = {name: round(value, 3) for name, value in spent.items() if value >= 0.005}
        return {"1/s": figures["rate"], "p50 ms": figures["p50_ms"], **rest}

    async def curve(self, name: str, call: Call) -> None:
        """Note a call at each level."""
        for at_once in LEVELS:
            console.print(f"{name}, {at_once} in flight …")
            self.report.shares[f"{name}, {at_once} in flight"] = await self.of(call, at_once)

    async def grown(self, name: str, size: str, call: Call) -> list[float]:
        """Note a call at a size, and return all processes' milliseconds by round."""
        console.print(f"{name}, {size} …")
        rounds = [await self.of(call, AT_ONCE) for _ in range(ROUNDS)]
        names = {of for figures in rounds for of in figures}
        middle = {of: percentile([figures.get(of, 0.0) for figures in rounds], 0.5) for of in sorted(names)}
        self.report.shares[f"{name}, {size}"] = middle
        return [sum(figures.values()) - figures["1/s"] - figures["p50 ms"] for figures in rounds]


@dataclass(frozen=True)
class Callers:
    """Those who call."""

    costs: Costs
    operator: Operator
    http: aiohttp.ClientSession
    audit: AuditClient
    identity: grpc.aio.Channel

    def heartbeat(self, nodes: Sequence[Node]) -> Call:
        """Return a sign of life of one node after the other; most of them are not known to the edge any more."""
        edge, turn = Edge(self.costs.deployment.world.edge_url, self.http), itertools.cycle(nodes)

        async def beat() -> None:
            now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
            answer = await next(turn).heartbeat(edge, now)
            assert answer.status == 200, answer.body

        return beat

    def state(self, nodes: Sequence[Node]) -> Call:
        """Return a pull of all that a node should be."""
        turn, url = itertools.cycle(nodes), self.costs.deployment.world.edge_url

        async def pull() -> None:
            node = next(turn)
            headers = {"Authorization": f"Bearer {node.bearer}"}
            async with self.http.get(f"{url}/v1/nodes/{node.node_id}/state", headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

        return pull

    async def registration(self, fleet: Fleet) -> Call:
        """Return a registration; those of a round fill one fresh Domain after the other."""
        machines: list[Machine] = [one for _ in range(2) for one in await fleet.machines()]
        register, waiting = through_identity(stubs.EnrolmentServiceStub(self.identity)), iter(machines)
        return lambda: register(next(waiting))

    def append(self, chains: Sequence[str]) -> Call:
        """Return an append as a service makes it, over chains in turn."""
        turn = itertools.cycle(chains)
        return lambda: recorded(self.audit, next(turn))

    async def streams(self, nodes: Sequence[Node]) -> None:
        """Note what it takes to open an event stream, of nodes that the edge does not know yet."""
        waiting = iter(nodes)
        async with streaming(self.costs.deployment, self.costs.deployment.state.port("gateway")) as streams:
            for at_once in LEVELS:
                some = list(itertools.islice(waiting, STREAMS))
                before, started = await self.costs.deployment.cpu_s(), time.perf_counter()
                opened = await streams.open(some, at_once=at_once)
                elapsed, after = time.perf_counter() - started, await self.costs.deployment.cpu_s()
                assert opened["opened"] == len(some), opened
                used = {f"cpu_ms.{name}": (after[name] - before[name]) * 1000 / len(some) for name in before}
                rate = len(some) / elapsed
                figures = {"rate": rate, "p50_ms": at_once / rate * 1000, **used}
                self.costs.report.shares[f"stream opened, {at_once} in flight"] = self.costs.beyond(figures)


@asynccontextmanager
async def calling(costs: Costs, operator: Operator) -> AsyncIterator[Callers]:
    """Connect as those who call."""
    state, own = costs.deployment.state, costs.deployment.identity("gateway")
    trust = ssl.create_default_context(cafile=costs.deployment.world.ca_file)
    credentials = grpc.ssl_channel_credentials(
        *(path.read_bytes() for path in (own.ca_file, own.key_file, own.certificate_file))
    )
    options = [*OPTIONS, ("grpc.ssl_target_name_override", "identity")]
    audit = Peer(address=f"127.0.0.1:{state.port('audit')}", name="audit")
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=max(LEVELS))) as http,
        connect(audit, costs.deployment.identity(AS)) as peer,
        grpc.aio.secure_channel(f"127.0.0.1:{state.port('identity')}", credentials, options=options) as identity,
    ):
        yield Callers(costs, operator, http, AuditClient(peer), identity)


async def play(costs: Costs, callers: Callers, report: Report) -> None:
    """Measure all of it."""
    deployment, http = costs.deployment, callers.http
    fleet = Fleet(deployment, callers.operator)
    shelf = await Shelf.fill(deployment, callers.operator)
    planted = await sizes.readers(shelf, NODES)
    shelf = replace(shelf, nodes=planted)
    reading = shelf.reading(http, itertools.count())
    await sizes.refilled(reading)
    await costs.rest()
    report.shares["idle, processor ms a second"] = {name: round(ms, 2) for name, ms in costs.idle.items()}
    chain = str(uuid7())
    await costs.curve("secret read", reading)
    await costs.curve("heartbeat", callers.heartbeat(planted))
    await costs.curve("append", callers.append([chain]))
    for at_once in LEVELS:
        console.print(f"registration, {at_once} in flight …")
        register = await callers.registration(fleet)
        report.shares[f"registration, {at_once} in flight"] = await costs.of(register, at_once)
    (domain,) = await sizes.keys_of(costs, 1)
    async with signed(deployment) as send:
        await sizes.events(deployment, report, lambda: costs.curve("publish", lambda: send(domain)))
    await grow(costs, callers, reading, planted)
    await share(costs, callers)
    await sizes.rows(deployment, report)


async def share(costs: Costs, callers: Callers) -> None:
    """Measure with one Domain, with a hundred and with a thousand."""
    domains = await sizes.keys_of(costs, sizes.DOMAINS[-1])
    # Each key has its row, so each chain is due.
    await sizes.checkpoints(costs, domains)
    await costs.rest()
    async with signed(costs.deployment) as send:
        for count in sizes.DOMAINS:
            over = itertools.cycle(domains[:count])
            await costs.grown("publish", f"{count:,} Domains", lambda: send(next(over)))  # noqa: B023 — awaited here
    for count in sizes.DOMAINS:
        await costs.grown("append", f"{count:,} Domains", callers.append([str(one) for one in domains[:count]]))


async def grow(costs: Costs, callers: Callers, reading: Call, planted: list[Node]) -> None:
    """Measure with a thousand nodes, with ten thousand and with a hundred thousand."""
    place = sizes.Place(costs.deployment, callers.operator)
    named = {"secret read": reading, "heartbeat": callers.heartbeat(planted)}
    found: dict[str, list[list[float]]] = {name: [] for name in named}
    await costs.grown("state", f"{NODES:,} nodes of a Domain", callers.state(planted))
    rows, memory = await place.weigh()
    for size, domains in sizes.STEPS:
        large = await place.plant(domains)
        took = await sizes.refilled(reading) if large else 0.0
        for name, call in named.items():
            found[name].append(await costs.grown(name, f"{size:,} nodes", call))
        if domains == 1:
            await sizes.drift(costs)
            await callers.streams(large)
            await costs.grown("state", f"{sizes.LARGE:,} nodes of a Domain", callers.state(large))
    more, count = await place.weigh(), sizes.LARGE * place.made
    costs.report.shares["bytes of a node"] = {
        "rows": round((more[0] - rows) / count),
        "SpiceDB's memory": round((more[1] - memory) / count),
        "refill, s for the last": took,
    }
    for name, rounds in found.items():
        bar = f"a {name} with {sizes.STEPS[-1][0]:,} nodes, by one with {sizes.STEPS[0][0]:,}"
        costs.report.bars.append(Bar(bar, "processor ms", rounds[-1], rounds[0], GROWTH, at_most=True))


async def main() -> int:
    """Start a stack, measure, print; returns the exit status."""
    settings = (
        f"{', '.join(map(str, LEVELS))} in flight, 3 s each; sizes: {AT_ONCE} in flight, {ROUNDS} rounds; processor "
        "time less that of the idle system; fsync and synchronous_commit on, sync_interval always, TLS 1.3 on every "
        "hop, no span exporter, log level info"
    )
    report = Report("scaling", {"settings": settings})
    async with deployed() as deployment, deployment.operator() as operator:
        await deployment.without_traces(*SERVICES)
        costs = Costs(deployment, report)
        async with calling(costs, operator) as callers:
            await play(costs, callers, report)
        report.notes.append(f"{costs.refused} calls were refused, and made again")
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
