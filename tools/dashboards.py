"""Dashboards for Grafana, made of the rules: calls by method, then a panel for each series that an alert looks at."""

import re
from typing import Any

from tools.alerts import Rules

NAME = re.compile(r"plexsphere_\w+")
PANEL = {"h": 8, "w": 12}
SOURCE = {"type": "prometheus", "uid": "${source}"}
CALLERS = 'method!~"/grpc[.].*"'
# How the value of a metric reads, by the end of its name.
UNITS = (("_timestamp_seconds", "dateTimeFromNow"), ("_seconds", "s"), ("_seconds_bucket", "s"))


def calls(job: str) -> dict[str, list[str]]:
    """Return the expressions of rate, errors and duration by method."""
    where = f'job="{job}",{CALLERS}'
    return {
        "Calls a second, by method": [f"sum by (method) (rate(plexsphere_rpc_calls_total{{{where}}}[5m]))"],
        "Refused and failed calls a second, by code": [
            f'sum by (code) (rate(plexsphere_rpc_calls_total{{{where},code!="ok"}}[5m]))'
        ],
        "Failed calls a second, by whose fault": [
            f"sum by (cause) (rate(plexsphere_rpc_failures_total{{{where}}}[5m]))"
        ],
        "Seconds of a call, p50 and p99": [
            f"histogram_quantile({q}, sum by (le) (rate(plexsphere_rpc_seconds_bucket{{{where}}}[5m])))"
            for q in (0.5, 0.99)
        ],
        "Refusals a second, by control and reason": [
            f'sum by (control, reason) (rate(plexsphere_refusals_total{{job="{job}"}}[5m]))'
        ],
    }


def watched(rules: Rules) -> dict[str, list[str]]:
    """Return an expression for each metric that an alert looks at and no panel of calls shows."""
    expressions = [alert.expr for alert in rules.alerts] + (list(rules.records.values()) if rules.shared else [])
    names = sorted({name for expr in expressions for name in NAME.findall(expr)})
    found = {}
    for name in names:
        if name.startswith(("plexsphere_rpc_", "plexsphere_refusals_")):
            continue
        series = f'{name}{{job="{rules.name}"}}' if not rules.shared else name
        title = name.removeprefix("plexsphere_").removesuffix("_bucket").replace("_", " ").capitalize()
        if name.endswith("_bucket"):
            series = f"histogram_quantile(0.95, sum by (le) (rate({series}[5m])))"
        elif name.endswith("_total"):
            series = f"rate({series}[5m])"
        elif name.endswith("_timestamp_seconds"):
            series = f"{series} * 1000"
        found[title] = [series]
    return found


def dashboard(rules: Rules) -> dict[str, Any]:
    """Return the dashboard of a service."""
    shown = ({} if rules.shared else calls(rules.name)) | watched(rules)
    budget = [name for name in rules.records if name.endswith(("rate1h", "rate3d"))]
    if budget:
        shown["Share of calls that failed, and that were slow"] = [f'{name}{{job="{rules.name}"}}' for name in budget]
    panels = [_panel(turn, title, expressions) for turn, (title, expressions) in enumerate(shown.items())]
    return {
        "uid": f"plexsphere-{rules.name}",
        "title": f"plexsphere / {rules.name}",
        "tags": ["plexsphere", rules.owner.rpartition("/")[2]],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def _panel(turn: int, title: str, expressions: list[str]) -> dict[str, Any]:
    (name,) = NAME.findall(expressions[0])[:1] or [""]
    unit = next((unit for end, unit in UNITS if name.endswith(end)), "short")
    return {
        "id": turn + 1,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": PANEL | {"x": turn % 2 * PANEL["w"], "y": turn // 2 * PANEL["h"]},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expr}
            for number, expr in enumerate(expressions)
        ],
    }
