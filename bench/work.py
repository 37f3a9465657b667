"""What an envelope and a reconnect cost: counted, not timed."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence

from nats.aio.msg import Msg

from bench.deployment import Deployment
from bench.measure import Check, Report
from bench.streams import Signed, Streams, publisher, streaming
from tests.e2e.outside import Node

VERIFIED = "plexsphere_envelopes_verified_total"
CALLS = "plexsphere_rpc_calls_total"
EVENTS = 50
RECONNECTS = 200
MISSED = 3
SETTLE_S = 3.0
# Of the calls that go on anyway, a few more or less fall into a window.
LEEWAY = 0.05


@contextlib.asynccontextmanager
async def wiretap(deployment: Deployment) -> AsyncIterator[Counter[str]]:
    """Count what everybody asks JetStream during the block, as whoever holds the broker hears it."""
    heard: Counter[str] = Counter()

    async def hear(message: Msg) -> None:
        heard[".".join(message.subject.split(".")[2:5])] += 1

    broker = await deployment.broker()
    try:
        await broker.subscribe("$JS.API.>", cb=hear)
        await broker.flush()
        yield heard
        await broker.flush()
    finally:
        await broker.close()


async def calls(deployment: Deployment, name: str) -> Counter[str]:
    """Return how often each method of a process was called, whatever came of it; its own health is left out."""
    found: Counter[str] = Counter()
    for sample, value in (await deployment.metrics(name)).items():
        if sample.startswith(CALLS) and "grpc.health" not in sample:
            found[sample.split('method="', 1)[1].split('"', 1)[0]] += round(value)
    return found


async def measure(deployment: Deployment, domain_id: str, nodes: Sequence[Node], report: Report) -> None:
    """Add the checks."""
    await deployment.restart("gateway")
    async with publisher(deployment) as stub, streaming(deployment, deployment.state.port("gateway")) as streams:
        for count in (1, len(nodes)):
            opened = await streams.open(nodes[:count])
            await asyncio.sleep(SETTLE_S)
            before = (await deployment.metrics("gateway"))[VERIFIED]
            source = Signed(stub, domain_id)
            for _ in range(EVENTS):
                await source.send()
            await streams.all_have(EVENTS)
            verified = (await deployment.metrics("gateway"))[VERIFIED] - before
            report.checks.append(
                Check(
                    f"signatures verified for {EVENTS} events to {opened['opened']} streams",
                    str(EVENTS),
                    f"{verified:.0f}",
                    verified == EVENTS,
                )
            )
        await _reconnects(deployment, Signed(stub, domain_id), streams, nodes[:RECONNECTS], report)


async def _reconnects(
    deployment: Deployment, source: Signed, streams: Streams, nodes: Sequence[Node], report: Report
) -> None:
    """Let nodes come back with their cursors after they missed events, and count what that asked of others."""
    await streams.open(nodes)
    await source.send()
    await streams.all_have(1)
    await streams.ask(do="drop")
    for _ in range(MISSED):
        await source.send()
    # What was published is also checked; that is not part of a reconnect.
    await asyncio.sleep(SETTLE_S)
    idle_s, idle, idle_broker = await _counted(deployment, asyncio.sleep(2 * SETTLE_S))
    busy_s, busy, busy_broker = await _counted(deployment, streams.ask(do="again", within_s=120.0))
    await streams.all_have(1 + MISSED)
    state = await streams.state()
    # What goes on anyway, in proportion to the time.
    extra = {
        name: Counter({method: round(count - idle[name][method] * busy_s / idle_s) for method, count in those.items()})
        for name, those in busy.items()
    }
    asked = Counter({method: count for method, count in extra["identity"].items() if count > 0})
    once = sum(asked.values()) / len(nodes)
    report.checks += [
        Check(
            f"{len(nodes)} reconnects after {MISSED} missed events: lost, twice, refused",
            "0",
            str(sum(state["faults"].values())),
            not state["faults"],
        ),
        Check("identity calls a reconnect", "at most 1", f"{once:.2f} {_short(asked)}", once <= 1.0 + LEEWAY),
        Check(
            "JetStream requests during the reconnects, beyond what goes on anyway",
            "0",
            f"{_beyond(busy_broker, idle_broker, busy_s / idle_s)} "
            f"(asked {dict(busy_broker)} in {busy_s:.1f} s; idle {dict(idle_broker)} in {idle_s:.1f} s)",
            _beyond(busy_broker, idle_broker, busy_s / idle_s) <= LEEWAY * len(nodes),
        ),
    ]
    report.shares[f"calls beyond what goes on anyway during {len(nodes)} reconnects"] = {
        f"{name} {method.rsplit('/', 1)[-1]}": float(count)
        for name, those in extra.items()
        for method, count in those.items()
        if count > 0
    }


async def _counted(
    deployment: Deployment, doing: Awaitable[object]
) -> tuple[float, dict[str, Counter[str]], Counter[str]]:
    """Do something and return how long it took, the calls of identity and mesh, and JetStream's requests meanwhile."""
    begun = time.monotonic()
    before = {name: await calls(deployment, name) for name in ("identity", "mesh")}
    async with wiretap(deployment) as heard:
        await doing
    after = {name: await calls(deployment, name) for name in before}
    return time.monotonic() - begun, {name: after[name] - before[name] for name in before}, heard


def _beyond(busy: Counter[str], idle: Counter[str], share: float) -> int:
    return max(0, round(sum(busy.values()) - sum(idle.values()) * share))


def _short(asked: Counter[str]) -> str:
    return ", ".join(f"{method.rsplit('/', 1)[-1]} {count}" for method, count in asked.items())
