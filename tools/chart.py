"""Keeps what is made from elsewhere current in deploy/helm/plexsphere: `python tools/chart.py [--check]`.

values.schema.json gets the settings of each service from its own model, so that a typo is refused before anything is
installed; README.md gets its table from the comments of values.yaml.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "proto")]

from libs.settings import Runtime  # noqa: E402 — the checkout's, wherever this is started
from services.access.settings import AccessSettings  # noqa: E402
from services.audit.settings import AuditSettings  # noqa: E402
from services.gateway.settings import GatewaySettings  # noqa: E402
from services.identity.settings import IdentitySettings  # noqa: E402
from services.mesh.settings import MeshSettings  # noqa: E402
from services.secrets.settings import SecretsSettings  # noqa: E402

CHART = ROOT / "deploy/helm/plexsphere"
MODELS: dict[str, type[Runtime]] = {
    "access": AccessSettings, "audit": AuditSettings, "gateway": GatewaySettings,
    "identity": IdentitySettings, "mesh": MeshSettings, "secrets": SecretsSettings,
}  # fmt: skip
# What the chart itself says, or what nobody changes at an installation: above all who may call whom.
FIXED = {
    "": {"service", "callers", "listen", "tls", "peers"},
    "telemetry": {"metrics_host", "metrics_port", "otlp_endpoint"},
    "postgres": {"host", "port", "database", "user"},
    "openbao": {"address", "role", "kubernetes"},
    "nats": {"address"},
    "spicedb": {"address", "name", "key_file"},
}
# Secrets that a service's block names, besides its certificate.
SECRETS = {
    "access": ("filesSecret",), "audit": ("filesSecret",), "identity": ("filesSecret", "assertionSecret"),
    "secrets": ("filesSecret",),
}  # fmt: skip
NOISE = {"title", "default", "description", "required", "format"}
JSON = dict[str, Any]


def settings_of(model: type[Runtime]) -> JSON:
    """Return the schema of what an installation may set of a service: nothing is required, nothing unknown is taken."""
    schema = model.model_json_schema()
    return _partial(schema, schema.get("$defs", {}), "")


def _partial(schema: JSON, parts: JSON, path: str) -> JSON:
    if "$ref" in schema:
        return _partial(parts[schema["$ref"].rpartition("/")[2]], parts, path)
    found: JSON = {}
    for key, value in schema.items():
        if key == "properties":
            fixed = FIXED.get(path, set())
            inner = {name: one for name, one in value.items() if name not in fixed}
            found[key] = {name: _partial(one, parts, f"{path}.{name}".strip(".")) for name, one in inner.items()}
        elif key in {"anyOf", "prefixItems"}:
            found[key] = [_partial(one, parts, path) for one in value]
        elif key in {"items", "additionalProperties"} and isinstance(value, dict):
            found[key] = _partial(value, parts, path)
        elif key not in NOISE | {"$defs"}:
            found[key] = value
    return found


def schema() -> str:
    """Return values.schema.json as it should be."""
    found: JSON = json.loads((CHART / "values.schema.json").read_text())
    own, parts = found["$defs"]["own"], found["$defs"]
    # Settings of all services at once would be settings of none.
    parts["defaults"] = _closed(own | {"settings": {"type": "object", "maxProperties": 0}})
    for name, model in MODELS.items():
        named = {secret: {"$ref": "#/$defs/name"} for secret in (*SECRETS.get(name, ()), "tlsSecret")}
        claim = {"archiveClaim": {"$ref": "#/$defs/maybe"}} if name == "audit" else {}
        found["properties"]["services"]["properties"][name] = _closed(
            own | named | claim | {"settings": settings_of(model)}
        )
    return json.dumps(found, indent=1) + "\n"


def _closed(properties: JSON) -> JSON:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, default and meaning of every value that has a comment above it."""
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, values: JSON, path: str) -> Iterator[tuple[str, str, str]]:
        for key, value in node.value:
            at, here, default = key.start_mark.line, f"{path}.{key.value}".strip("."), values[key.value]
            above: list[str] = []
            while at and lines[at - 1].strip().startswith("#"):
                at -= 1
                above.insert(0, lines[at].strip(" #"))
            inner = isinstance(value, yaml.MappingNode) and bool(value.value) and not value.flow_style
            if above:
                yield here, "" if inner else json.dumps(default), " ".join(above)
            if inner:
                yield from walk(value, default, here)

    top = yaml.compose(text)
    assert isinstance(top, yaml.MappingNode)
    yield from walk(top, yaml.safe_load(text), "")


def readme() -> str:
    """Return README.md as it should be: what stands above the table stays."""
    above = (CHART / "README.md").read_text().partition("## Values\n")[0]
    table = [
        f"| `{path}` | {f'`{default}`' if default else ''} | {meaning} |"
        for path, default, meaning in rows((CHART / "values.yaml").read_text())
    ]
    return "\n".join([f"{above}## Values\n", "| value | default | meaning |", "|---|---|---|", *table, ""])


def main() -> None:
    """Write both files, or with --check say which is not current."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, text in (("values.schema.json", schema()), ("README.md", readme())):
        path = CHART / name
        if path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        raise SystemExit(f"not current, run `make docs`: {', '.join(stale)}")


if __name__ == "__main__":
    main()
