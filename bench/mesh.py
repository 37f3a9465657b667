"""`make bench-mesh`: the bars of the signed event bus, on an embedded stack of its own."""

import argparse
import asyncio
from uuid import UUID

from bench import fan_out, held, publishing, work
from bench.deployment import Deployment, deployed
from bench.measure import ROUNDS, Report, console

PARTS = ("publish", "fan-out", "work", "held")


async def play(deployment: Deployment, parts: list[str], report: Report) -> None:
    """Measure what is asked for."""
    await deployment.without_traces("identity", "mesh", "audit", "gateway")
    async with deployment.operator() as operator:
        count = max(publishing.DOMAINS) if "publish" in parts else 1
        domains = [await operator.domain(number) for number in range(1, count + 1)]
        project = await operator.project(domains[0])
    if "publish" in parts:
        console.print("signed publish against the raw path …")
        await publishing.measure(deployment, [UUID(domain) for domain in domains], report)
    place = (domains[0], project)
    if {"fan-out", "work"} & set(parts):
        nodes = await deployment.plant_nodes(*place, fan_out.STREAMS)
        report.notes.append(f"{len(nodes)} nodes were inserted as superuser, not registered over HTTPS")
        if "fan-out" in parts:
            console.print("verified fan-out against a bare one …")
            await fan_out.measure(deployment, domains[0], nodes, report)
        if "work" in parts:
            console.print("work per envelope and per reconnect …")
            await work.measure(deployment, domains[0], nodes, report)
    if "held" in parts:
        console.print(f"{held.STREAMS} idle streams …")
        nodes = await deployment.plant_nodes(*place, held.STREAMS)
        await held.measure(deployment, domains[0], nodes, report)


async def main() -> int:
    """Start a stack, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parts: list[str] = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    report = Report(
        "mesh" if parts == list(PARTS) else "mesh-" + "-".join(parts),
        {
            "settings": f"{publishing.IN_FLIGHT} in flight from one process, {publishing.SECONDS:.0f} s, no gateway; "
            f"{fan_out.STREAMS} streams, {fan_out.BURST} events with at most {fan_out.WINDOW} on their way, then "
            f"{fan_out.STEADY} at {fan_out.PER_SECOND}/s; {ROUNDS} rounds A B A B; sync_interval always, "
            "fsync and synchronous_commit on, TLS 1.3 on every hop, no span exporter, log level info",
        },
    )
    async with deployed() as deployment:
        await play(deployment, parts, report)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
