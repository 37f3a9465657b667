"""What watches the services: current, correct by promtool, about metrics that exist, and with somebody to wake."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

import libs.telemetry  # noqa: F401 — what it registers is what services expose
from tools.alerts import OBSERVABILITY, TESTS, Alert, Rules, Service, outputs, shorter
from tools.alerts_own import SERVICES, all_rules

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
ALERTS = [(rules, alert) for rules in all_rules() for alert in rules.alerts]
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
METRIC = re.compile(r"plexsphere_\w+")


def promtool(*arguments: str | Path) -> str:
    found = shutil.which("promtool")
    assert found, "promtool is not installed: run `make ci-deps`"
    done = subprocess.run([found, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def exposed() -> set[str]:
    return {name for metric in REGISTRY.collect() for name in (metric.name, *_samples(metric.name, metric.type))}


def _samples(name: str, kind: str) -> list[str]:
    return {"counter": [f"{name}_total"], "histogram": [f"{name}_{end}" for end in ("bucket", "count", "sum")]}.get(
        kind, []
    )


def test_what_is_committed_is_what_the_tables_say() -> None:
    assert [str(path) for path, text in outputs() if not path.exists() or path.read_text() != text] == []


def test_promtool_takes_all_rules() -> None:
    promtool("check", "rules", *sorted(OBSERVABILITY.glob("rules/*.yaml")))


def test_every_alert_fires_and_stays_quiet() -> None:
    files = sorted(TESTS.glob("*.test.yaml"))
    assert len(files) == len(all_rules())
    promtool("test", "rules", *files)


@pytest.mark.parametrize(("rules", "alert"), ALERTS, ids=lambda one: one.name)
def test_an_alert_says_whom_it_wakes_and_where_it_says_what_to_do(rules: Rules, alert: Alert) -> None:
    labels, link = rules.labels(alert), rules.annotations(alert)["runbook_url"]
    assert labels["severity"] in {"page", "ticket"}
    owned = rf"^/docs/runbooks/{rules.name}\.md +{labels['owner']}$"
    assert re.search(owned, (ROOT / "CODEOWNERS").read_text(), re.MULTILINE)
    page, _, anchor = link.partition("#")
    anchors = {heading.lower() for heading in HEADING.findall((ROOT / page).read_text())}
    assert anchor in anchors


@pytest.mark.parametrize("rules", all_rules(), ids=lambda one: one.name)
def test_only_metrics_are_watched_that_a_service_exposes(rules: Rules) -> None:
    expressions = (*rules.records.values(), *(one.expr for one in rules.alerts))
    asked = {name for expr in expressions for name in METRIC.findall(expr) if name != "plexsphere"}
    assert asked - exposed() == set()


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: one.name)
def test_a_runbook_states_what_the_alerts_hold_a_service_to(service: Service) -> None:
    page = (ROOT / f"docs/runbooks/{service.name}.md").read_text()
    assert f"{service.available:g} % of calls" in page
    assert f"{service.fast:g} % within {service.within_s * 1000:g} ms" in page


def test_windows_are_shortened_together() -> None:
    assert shorter("rate(a[1h]) unless b offset 15m > 900", 15) == "rate(a[240000ms]) unless b offset 60000ms > 900"
