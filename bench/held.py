"""Thousands of idle streams: held, nothing lost, all resumed after a SIGKILL of the gateway."""

import asyncio
import time
from collections.abc import Sequence

from bench.deployment import Deployment, memory_bytes
from bench.measure import Check, Report
from bench.streams import Signed, Streams, publisher, streaming
from tests.e2e.outside import Node

STREAMS = 5000
HELD_S = 60.0
EVENTS_MEANWHILE = 3
MISSED = 2
OPEN_WITHIN_S = 600.0
RESUME_WITHIN_S = 300.0


async def measure(deployment: Deployment, domain_id: str, nodes: Sequence[Node], report: Report) -> None:
    """Add the checks."""
    await deployment.restart("gateway")
    pid = (await deployment.pids())["gateway"][0]
    async with publisher(deployment) as stub, streaming(deployment, deployment.state.port("gateway")) as streams:
        source = Signed(stub, domain_id)
        begun = time.monotonic()
        opened = await streams.open(nodes, within_s=OPEN_WITHIN_S, reconnect=True)
        opening_s = time.monotonic() - begun
        await streams.all_have(await source.send())
        for _ in range(EVENTS_MEANWHILE):
            await asyncio.sleep(HELD_S / EVENTS_MEANWHILE)
            await streams.all_have(await source.send())
        held, weight = await streams.state(), memory_bytes(pid)
        report.checks.append(
            Check(
                f"{len(nodes)} idle streams held for {HELD_S:.0f} s",
                f"{len(nodes)} open, every event at each, no faults",
                f"{held['open']} open, at least event {held['least']} of {source.number}, faults {held['faults']}",
                held["open"] == len(nodes) == opened["opened"]
                and held["least"] == source.number
                and not held["faults"],
            )
        )
        resumed_s = await _through_a_restart(deployment, streams, source)
        state = await streams.state()
        lost = {name: count for name, count in state["faults"].items() if not name.startswith("again: ")}
        refused = {name: count for name, count in state["faults"].items() if name.startswith("again: status")}
        report.checks.append(
            Check(
                "all resumed after a SIGKILL of the gateway",
                f"{len(nodes)} open, nothing lost or twice",
                f"{state['open']} open, at least event {state['least']} of {source.number}, faults {lost}",
                state["open"] == len(nodes) and state["least"] == state["most"] == source.number and not lost,
            )
        )
        final = [name for name in refused if "503" not in name and "429" not in name]
        report.checks.append(
            Check("answers while it came back", "nothing that stops an agent for good", str(refused or "{}"), not final)
        )
        report.shares[f"{len(nodes)} streams"] = {
            "opened/s": len(nodes) / opening_s,
            "resumed within s": resumed_s,
            "gateway MiB": weight / 2**20,
        }


async def _through_a_restart(deployment: Deployment, streams: Streams, source: Signed) -> float:
    """Kill the gateway, publish, start it, publish; returns how long it took until every stream had everything."""
    await deployment.kill("gateway")
    for _ in range(MISSED):
        await source.send()
    begun = time.monotonic()
    await deployment.start("gateway")
    await streams.all_have(source.number, RESUME_WITHIN_S)
    elapsed = time.monotonic() - begun
    await streams.all_have(await source.send())
    return elapsed
