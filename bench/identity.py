"""`make bench-identity`: id_tokens, node bearers and registrations, on an embedded stack of its own."""

import argparse
import asyncio
import uuid

from bench import bearers, id_tokens, registering
from bench.deployment import deployed
from bench.measure import ROUNDS, Report, console

PARTS = ("id-tokens", "bearers", "registrations")


async def main() -> int:
    """Measure what is asked for and print it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parts: list[str] = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    report = Report(
        "identity" if parts == list(PARTS) else "identity-" + "-".join(parts),
        {
            "settings": f"id_tokens in one process, {id_tokens.SECONDS:.0f} s; bearers: {bearers.IN_FLIGHT} in flight, "
            f"{bearers.SECONDS:.0f} s; registrations: {registering.NODES} in a fresh Domain, {registering.IN_FLIGHT} "
            f"in flight; {ROUNDS} rounds A B A B; fsync and synchronous_commit on, TLS 1.3 on every hop, no span "
            "exporter, log level info",
        },
    )
    if "id-tokens" in parts:
        console.print("id_token validation against the bare library …")
        await id_tokens.measure(report)
    if {"bearers", "registrations"} & set(parts):
        async with deployed() as deployment:
            await deployment.without_traces("identity", "mesh", "audit", "gateway")
            async with deployment.operator() as operator:
                if "bearers" in parts:
                    console.print("node bearers at the edge …")
                    project = await operator.project(await operator.domain(200))
                    node, _ = await operator.node(project, f"bench-{uuid.uuid4().hex[:8]}")
                    await bearers.measure(deployment, node, report)
                if "registrations" in parts:
                    console.print("registrations against the raw transaction …")
                    await registering.measure(deployment, operator, report)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
