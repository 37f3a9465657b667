"""`make demo`: start the embedded stack and play the main job as an outside client, with a verdict line a step."""

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.e2e.outside import Edge, Outside
from tests.e2e.stories.main_job import Step, Story
from tests.e2e.stories.main_job_audit import STEPS
from tests.e2e.world import PLEXCTL, World, run

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / "build" / "demo-state"
REPORT = ROOT / "build" / "demo-report.json"

console = Console(highlight=False)


async def play(story: Story, step: Step) -> dict[str, Any]:
    """Play one step and return its row of the report; an exception is what was observed."""
    started = time.monotonic()
    story.shown.clear()
    try:
        observed = await step.run(story)
    except Exception as error:  # noqa: BLE001 — whatever goes wrong in a step is the step's verdict
        observed = f"{type(error).__name__}: {error}"
    return {
        "step": step.name,
        "expected": step.expected,
        "observed": observed,
        "ok": observed == step.expected,
        "shown": list(story.shown),
        "seconds": round(time.monotonic() - started, 2),
    }


def show(number: int, row: dict[str, Any]) -> None:
    """Print a verdict line; a failed one says what was expected and what was seen."""
    mark = "[green]ok  [/]" if row["ok"] else "[bold red]FAIL[/]"
    console.print(f" {mark} {number:2}. {row['step']}  [dim]{row['seconds']} s[/]", soft_wrap=True)
    if row["shown"]:
        console.print("          [cyan]$ plexctl events tail --key-file node-a.key[/]")
    for line in row["shown"]:
        console.print("          " + line, style="cyan", markup=False, soft_wrap=True)
    if row["ok"]:
        console.print(f"          [dim]{row['observed']}[/]", soft_wrap=True)
    else:
        console.print(f"          expected: {row['expected']}\n          observed: {row['observed']}", soft_wrap=True)


async def story_of(world: World, rows: list[dict[str, Any]]) -> None:
    """Play all steps; stops at the first that fails."""
    async with Outside(world.edge_url, world.ca_file) as outside:
        story = Story(world, outside, Edge(world.edge_url, outside.http))
        for number, step in enumerate(STEPS, 1):
            with console.status(f"{number}. {step.name}"):
                row = await play(story, step)
            rows.append(row)
            show(number, row)
            if not row["ok"]:
                return


async def main() -> int:
    """Start the stack, play the story, stop the stack; returns the exit status."""
    started = time.monotonic()
    # The attacker's NATS client ends its TLS with a warning that concerns nobody here.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    console.print("[bold]Plexsphere security core: the main job over HTTPS, against real backends[/]")
    up = await asyncio.create_subprocess_exec(*PLEXCTL, "dev", "up", "--detach", "--state", STATE)
    if await up.wait():
        console.print(f"[bold red]FAIL[/] the stack did not start; its logs are in {STATE}/log")
        return 1
    healthy_s = round(time.monotonic() - started, 1)
    console.print(f"      stack healthy after {healthy_s} s\n")
    rows: list[dict[str, Any]] = []
    told = time.monotonic()
    try:
        await story_of(await World.of(STATE), rows)
    finally:
        await run(*PLEXCTL, "dev", "down", "--state", STATE)
    ok = len(rows) == len(STEPS) and all(row["ok"] for row in rows)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps({"ok": ok, "healthy_seconds": healthy_s, "steps": rows}, indent=2) + "\n")
    verdict = "[bold green]all steps ok[/]" if ok else "[bold red]stopped at the first failure[/]"
    console.print(f"\n{verdict}: {len(rows)} of {len(STEPS)} steps in {time.monotonic() - told:.1f} s; {REPORT}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
