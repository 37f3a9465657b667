"""Verified fan-out through the gateway, against a bare aiohttp fan-out of the same bytes."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from bench.deployment import Deployment, memory_bytes
from bench.measure import Bar, Check, Figures, Report, alternate, column, percentile
from bench.streams import Raw, Signed, Streams, bare_server, frames_of, publisher, streaming
from tests.e2e.outside import Node

STREAMS = 1000
BURST = 100
WINDOW = 16
STEADY = 40
PER_SECOND = 4
SETTLE_S = 2.0
WARM_UP = 50
FLOOR, AIM = 0.6, 0.85
SLOWEST = 2.0
HEAVIEST = 1.3


class Source(Protocol):
    """Where the numbered events of a round come from."""

    published: dict[int, int]

    async def send(self) -> int:
        """Send the next one."""


async def round_of(streams: Streams, source: Source, pid: int, nodes: Sequence[Node]) -> Figures:
    """Open the streams, weigh them, then send as fast as they take it, then at a steady pace."""
    # What a first connection loads is not a stream's weight.
    await streams.open(nodes[:WARM_UP])
    await asyncio.sleep(SETTLE_S)
    streams.tell(do="close")
    await asyncio.sleep(SETTLE_S)
    empty = memory_bytes(pid)
    begun = time.perf_counter()
    opened = await streams.open(nodes)
    opening_s = time.perf_counter() - begun
    assert opened["opened"] == len(nodes), opened
    await asyncio.sleep(SETTLE_S)
    full = memory_bytes(pid)
    begun = time.perf_counter()
    for number in range(1, BURST + 1):
        await streams.all_have(max(0, number - WINDOW))
        await source.send()
    await streams.all_have(BURST)
    elapsed = time.perf_counter() - begun
    for _ in range(STEADY):
        await asyncio.gather(source.send(), asyncio.sleep(1 / PER_SECOND))
    await streams.all_have(BURST + STEADY)
    steady = {number: at for number, at in source.published.items() if number > BURST}
    latencies = await streams.ask(do="latencies", sent=steady)
    state = await streams.state()
    return {
        "rate": BURST * len(nodes) / elapsed,
        "p50_ms": latencies["p50"],
        "p99_ms": latencies["p99"],
        "bytes": (full - empty) / len(nodes),
        "opened/s": len(nodes) / opening_s,
        "faults": float(sum(state["faults"].values())),
    }


async def measure(deployment: Deployment, domain_id: str, nodes: Sequence[Node], report: Report) -> None:
    """Add the bars of verified fan-out."""
    frames: list[bytes] = []

    async def verified() -> Figures:
        await deployment.restart("gateway")
        pid = (await deployment.pids())["gateway"][0]
        async with publisher(deployment) as stub, streaming(deployment, deployment.state.port("gateway")) as streams:
            source = Signed(stub, domain_id)
            before = await deployment.cpu_s()
            figures = await round_of(streams, source, pid, nodes)
            after = await deployment.cpu_s()
            from_call = {number: at for number, at in source.called.items() if number > BURST}
            asked = await streams.ask(do="latencies", sent=from_call)
        frames[:] = await frames_of(deployment, domain_id, BURST + STEADY)
        cpu = {f"cpu_s.{name}": after[name] - before[name] for name in after}
        return {**figures, "p99_ms from the call": asked["p99"], **cpu}

    async def bare() -> Figures:
        async with bare_server(deployment) as server, streaming(deployment, server.port) as streams:
            _, feed = await asyncio.open_unix_connection(str(server.feed))
            try:
                return await round_of(streams, Raw(feed, frames), server.process.pid, nodes)
            finally:
                feed.close()

    a, b = await alternate(verified, bare)
    name = f"verified fan-out to {len(nodes)} streams"
    report.bars += [
        Bar(name, "deliveries/s", column(a, "rate"), column(b, "rate"), FLOOR, AIM),
        Bar(f"{name}, p99", "ms", column(a, "p99_ms"), column(b, "p99_ms"), SLOWEST, at_most=True),
        Bar("memory of an idle stream", "bytes", column(a, "bytes"), column(b, "bytes"), HEAVIEST, at_most=True),
    ]
    faults = sum(column(a, "faults"))
    report.checks.append(Check("fan-out: streams ended, events lost or twice", "0", f"{faults:.0f}", faults == 0))
    report.shares[f"{name}: gateway"] = {
        figure: percentile(column(a, figure), 0.5) for figure in a[0] if percentile(column(a, figure), 0.5) >= 0.01
    }
    report.shares[f"{name}: bare"] = {figure: percentile(column(b, figure), 0.5) for figure in b[0]}
