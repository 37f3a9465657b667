"""The chart as the Helm engine renders it, in this process and without a cluster."""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

from tools.chart import CHART

SERVICES = ("access", "audit", "gateway", "identity", "mesh", "secrets")
VALUES_FILES = ("values.yaml", "values-ha.yaml")
NAMESPACE = "plexsphere"
# What is off by default, and whatever else makes an object that the defaults do not.
EVERYTHING: dict[str, Any] = {
    "monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboards")},
    "tests": {"nodeBearerSecret": "a-node"},
    "edge": {"certificateSecret": "edge-public"},
    "services": {"audit": {"archiveClaim": "archive", "settings": {"archive": {"url": "file:///var/lib/plexsphere/audit"}}}},
}  # fmt: skip
JSON = dict[str, Any]


def values_of(name: str) -> JSON:
    found: JSON = yaml.safe_load((CHART / name).read_text())
    return found


@functools.cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    texts: dict[str, str] = _chart().render(dict(values), name="plex", namespace=NAMESPACE)
    return texts


@functools.cache
def _rendered(values: str) -> list[JSON]:
    texts = [text for path, text in _texts(json.loads(values)).items() if not path.endswith(".txt")]
    # The parser in C: all of the objects, a hundred times, would take a minute with the other.
    return [one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one]


def render(values: Mapping[str, Any] | None = None) -> list[JSON]:
    """Return every object that an installation with these values has; raises HelmError for values that are refused."""
    return _rendered(json.dumps(values or {}, sort_keys=True))


def notes(values: Mapping[str, Any] | None = None) -> str:
    return next(text for path, text in _texts(values or {}).items() if path.endswith("NOTES.txt"))


def find(kind: str, name: str, values: Mapping[str, Any] | None = None) -> JSON:
    (found,) = [one for one in render(values) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod_specs(values: Mapping[str, Any] | None = None) -> Iterator[tuple[str, JSON]]:
    """Every pod that could ever run: of Deployments, of the hook and of the tests."""
    for one in render(values):
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield name, one["spec"]
        elif "template" in one.get("spec", {}):
            yield name, one["spec"]["template"]["spec"]


def containers(spec: JSON) -> list[JSON]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def settings_file(name: str, folder: Path, values: Mapping[str, Any] | None = None) -> Path:
    """Write the settings of a process as its ConfigMap has them."""
    path = folder / f"{name}.toml"
    path.write_text(find("ConfigMap", f"plexsphere-{name}", values)["data"][f"{name}.toml"])
    return path


def one_of(service: str, **block: Any) -> JSON:
    """Return values that say something of one service."""
    return {"services": {service: block}}


def each(**block: Any) -> JSON:
    """Return values that say the same of every service, each in its own block."""
    return {"services": dict.fromkeys(SERVICES, block)}
