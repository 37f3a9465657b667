"""Writes what watches the services: alerts, their tests for promtool, and dashboards.

An alert stands once, in tools/alerts_shared.py or tools/alerts_own.py, with an example that makes it fire and one that
does not. The chart gets copies, because it can read nothing outside of itself.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
OBSERVABILITY = ROOT / "deploy/observability"
CHART = ROOT / "deploy/helm/plexsphere/files/observability"
TESTS = ROOT / "tests/observability"
HEADER = "# Written by `make docs`; what it says stands in tools/alerts_shared.py and tools/alerts_own.py.\n"
WINDOW = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])|(?<=offset )(\d+)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
Series = dict[str, str]


@dataclass(frozen=True)
class Service:
    """A service as its owner promised it: `available` and `fast` in percent, `within_s` a bucket of the histogram."""

    name: str
    owner: str
    backends: tuple[str, ...]
    available: float
    within_s: float
    fast: float = 99.0

    @property
    def title(self) -> str:
        """What its alerts begin with."""
        return self.name.capitalize()


@dataclass(frozen=True)
class Alert:
    """An alert, and series (promtool's notation, a value a minute) that make it fire, or leave it quiet.

    `labels` is what the expression's result carries beside the alert's own.
    """

    name: str
    expr: str
    holds: str
    severity: str
    summary: str
    fires: Series
    quiet: Series
    labels: dict[str, str] = field(default_factory=dict)
    at: str = "40m"


@dataclass(frozen=True)
class Rules:
    """All that is watched of one service."""

    name: str
    owner: str
    records: dict[str, str]
    alerts: Sequence[Alert]
    shared: bool = False

    def annotations(self, alert: Alert) -> dict[str, str]:
        """Return what a person who is woken reads; nothing is filled in, so that a pager can group by it."""
        return {
            "summary": alert.summary,
            "runbook_url": f"docs/runbooks/{self.name}.md#{alert.name.lower()}",
        }

    def labels(self, alert: Alert) -> dict[str, str]:
        """Return who is woken, and whether."""
        return {"service": self.name, "severity": alert.severity, "owner": self.owner}

    def groups(self, factor: float = 1) -> dict[str, Any]:
        """Return the rules as Prometheus reads them, with all windows shortened by a factor."""
        records = [{"record": name, "expr": shorter(expr, factor)} for name, expr in self.records.items()]
        alerts = [
            {
                "alert": alert.name,
                "expr": shorter(alert.expr, factor),
                "for": duration(alert.holds, factor),
                "labels": self.labels(alert),
                "annotations": self.annotations(alert),
            }
            for alert in self.alerts
        ]
        named = {f"{self.name}-records": records, f"{self.name}-alerts": alerts}
        return {"groups": [{"name": name, "rules": rules} for name, rules in named.items() if rules]}

    def tests(self) -> dict[str, Any]:
        """Return promtool's tests: every alert firing and not firing."""
        cases = [self._case(alert, series) for alert in self.alerts for series in (alert.fires, alert.quiet)]
        rules = f"../../deploy/observability/rules/{self.name}.yaml"
        return {"rule_files": [rules], "evaluation_interval": "5m", "tests": cases}

    def _case(self, alert: Alert, series: Series) -> dict[str, Any]:
        fired = {"exp_labels": self.labels(alert) | alert.labels, "exp_annotations": self.annotations(alert)}
        return {
            "name": f"{alert.name} {'fires' if series is alert.fires else 'stays quiet'}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [
                {
                    "eval_time": alert.at,
                    "alertname": alert.name,
                    "exp_alerts": [fired] if series is alert.fires else [],
                }
            ],
        }


def duration(text: str, factor: float) -> str:
    """Return a duration shortened by a factor, in milliseconds unless the factor is 1."""
    seconds = int(text[:-1]) * SECONDS[text[-1]]
    return text if factor == 1 else f"{max(1, round(seconds / factor * 1000))}ms"


def shorter(expr: str, factor: float) -> str:
    """Return an expression with all of its windows shortened by a factor."""
    return WINDOW.sub(lambda found: duration(found[0], factor), expr)


def grew(selector: str, window: str) -> str:
    """Return an expression for counters that rose, a new one among them: its first value is no rise to Prometheus."""
    return f"sum(increase({selector}[{window}])) > 0 or sum({selector} unless {selector} offset {window}) > 0"


def dump(value: Any) -> str:
    """Return YAML in the order in which it was made."""
    return HEADER + yaml.safe_dump(value, sort_keys=False, width=1000)


def outputs() -> Iterator[tuple[Path, str]]:
    """Yield every file that is written."""
    from tools.alerts_own import all_rules  # noqa: PLC0415 — they are made of what stands above
    from tools.dashboards import dashboard  # noqa: PLC0415

    for rules in all_rules():
        yield OBSERVABILITY / f"rules/{rules.name}.yaml", dump(rules.groups())
        yield CHART / f"alerts/{rules.name}.yaml", dump(rules.groups())
        yield TESTS / f"{rules.name}.test.yaml", dump(rules.tests())
        board = json.dumps(dashboard(rules), indent=1) + "\n"
        yield OBSERVABILITY / f"dashboards/{rules.name}.json", board
        yield CHART / f"dashboards/{rules.name}.json", board


def main() -> None:
    """Write all of it."""
    for path, text in outputs():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
