"""What a pod reads is what ships, with what the installation says over it; what none would start with is refused."""

import tomllib
from pathlib import Path
from typing import Any

import helm_python
import pytest

from libs.migrations import Migrate
from libs.settings import Runtime, load
from services.mesh.settings import MeshSettings
from tests.chart.rendering import (
    EVERYTHING,
    JSON,
    SERVICES,
    VALUES_FILES,
    each,
    find,
    notes,
    one_of,
    render,
    settings_file,
    values_of,
)  # fmt: skip
from tools import chart

pytestmark = pytest.mark.unit

SHIPPED = Path(__file__).resolve().parents[2] / "deploy/config"
RELEASES = {**{name: values_of(name) for name in VALUES_FILES}, "everything": EVERYTHING}
# What an installation by the chart has otherwise, and nothing else may drift.
OTHERWISE = {
    "access": {"openbao.kubernetes"}, "mesh": {"openbao.kubernetes"}, "secrets": {"openbao.kubernetes"},
    "audit": {"openbao.kubernetes", "archive.url"}, "gateway": {"drain_s"},
    "identity": {"openbao.kubernetes", "sign_in.provider_ca_file"}, "migrate": set(),
}  # fmt: skip


def flat(table: JSON, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" != "openbao.kubernetes"
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", SERVICES)
def test_every_service_takes_its_settings(release: str, name: str, tmp_path: Path) -> None:
    settings = load(settings_file(name, tmp_path, RELEASES[release]), chart.MODELS[name])
    assert settings.service == name


@pytest.mark.parametrize("name", OTHERWISE)
def test_they_are_those_that_ship_but_for_what_is_meant(name: str, tmp_path: Path) -> None:
    rendered, shipped = (
        flat(tomllib.loads(path.read_text())) for path in (settings_file(name, tmp_path), SHIPPED / f"{name}.toml")
    )
    assert {key for key in rendered | shipped if rendered.get(key) != shipped.get(key)} == OTHERWISE[name]


@pytest.mark.parametrize(("release", "replicas"), [("values.yaml", 1), ("values-ha.yaml", 3)])
def test_in_three_zones_three_servers_hold_the_stream(release: str, replicas: int, tmp_path: Path) -> None:
    settings = load(settings_file("mesh", tmp_path, RELEASES[release]), MeshSettings)
    assert settings.stream.replicas == replicas


def test_the_migration_job_takes_its_settings(tmp_path: Path) -> None:
    assert load(settings_file("migrate", tmp_path), Migrate).postgres.user == "migrator"


def test_what_the_installation_says_arrives(tmp_path: Path) -> None:
    values: JSON = {
        "edge": {"url": "https://edge.example.com"},
        "backends": {
            "postgres": {"host": "pg.example.com", "port": 6432}, "nats": {"host": "nats.example.com"},
            "openbao": {"host": "bao.example.com", "kubernetes": {"mount": "jwt"}}, "spicedb": {"name": "zed"},
        },
        "services": {
            "gateway": {"settings": {"limits": {"registration": {"per_minute": 7}}, "trusted_proxies": ["10.0.0.0/8"]}},
            "identity": {"settings": {"bootstrap": {"platform_admins": ["ada"]}}},
        },
    }  # fmt: skip
    loaded: dict[str, Any] = {
        name: load(settings_file(name, tmp_path, values), chart.MODELS[name]) for name in SERVICES
    }
    gateway, identity = loaded["gateway"], loaded["identity"]
    assert (gateway.public_url, gateway.allowed_origins) == ("https://edge.example.com", ["https://edge.example.com"])
    assert (gateway.limits.registration.per_minute, gateway.limits.registration.burst) == (7, 300)
    assert (identity.bootstrap.platform_admins, identity.sign_in.edge_url) == (["ada"], "https://edge.example.com")
    assert (loaded["access"].issuer, identity.spicedb.name) == ("https://edge.example.com", "zed")
    assert {loaded[name].postgres.port for name in SERVICES if name != "gateway"} == {6432}
    assert loaded["secrets"].openbao.kubernetes.mount == "jwt"
    assert loaded["mesh"].nats.address == "tls://nats.example.com:4222"


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "gateway"])
def test_openbao_is_logged_in_to_by_the_pod_with_a_token_for_it_alone(name: str, tmp_path: Path) -> None:
    settings: Any = load(settings_file(name, tmp_path), chart.MODELS[name])
    spec = find("Deployment", name)["spec"]["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "openbao"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"] == {"path": "token", "audience": "openbao", "expirationSeconds": 600}
    (mount,) = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == "openbao"]
    assert settings.openbao.kubernetes.token_file == Path(mount["mountPath"]) / "token"
    off: JSON = {"backends": {"openbao": {"kubernetes": {"enabled": False}}}}
    without: Any = load(settings_file(name, tmp_path, off), chart.MODELS[name])
    assert without.openbao.kubernetes is None
    assert "serviceAccountToken" not in str(find("Deployment", name, off))


def named(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(named(one) for one in value.values()))
    return {value} if isinstance(value, str) and value.startswith("/run/plexsphere/") else set()


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", [*SERVICES, "migrate"])
def test_every_file_that_settings_name_is_mounted(release: str, name: str, tmp_path: Path) -> None:
    values = RELEASES[release]
    kind, owner = ("Job", "plexsphere-migrate") if name == "migrate" else ("Deployment", name)
    spec = find(kind, owner, values)["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    there = set()
    for mount in spec["containers"][0]["volumeMounts"]:
        for source in volumes[mount["name"]].get("projected", {}).get("sources", []):
            paths = [item["path"] for item in source.get("secret", {}).get("items", [])] or [
                source["serviceAccountToken"]["path"]
            ]
            there |= {f"{mount['mountPath']}/{path}" for path in paths}
        if "secret" in volumes[mount["name"]]:
            there |= {path for path in named(tomllib.loads(settings_file(name, tmp_path, values).read_text()))
                      if path.startswith(mount["mountPath"])}  # fmt: skip
    assert named(tomllib.loads(settings_file(name, tmp_path, values).read_text())) <= there


def test_the_notes_name_the_files_to_make_and_what_is_left_undone() -> None:
    text = notes()
    identity = next(line for line in text.splitlines() if "plexsphere-identity-files" in line)
    for key in ("csrf", "cursor", "pkce", "pseudonym", "spicedb"):
        assert f"--from-file={key}.key" in identity
    assert "helm test plex" in text
    assert "mirrored nowhere" in text
    assert "NOTE" not in notes(
        {"edge": {"url": "https://edge.example.com"}, **one_of("audit", settings={"archive": {"url": "s3://a/b"}})}
    )


# Refusals -------------------------------------------------------------------------------------------------------------

TYPOS: dict[str, JSON] = {
    "a table": {"imagee": {}},
    "a service": {"services": {"identiti": {}}},
    "a key of a service": one_of("mesh", replica=3),
    "a key of all": {"defaults": {"resource": {}}},
    "a resource": one_of("mesh", resources={"request": {"cpu": "1"}}),
    "an amount": one_of("mesh", resources={"requests": {"cpu": "100mm"}}),
    "a probe": one_of("mesh", probes={"period": 3}),
    "an autoscaler": one_of("mesh", autoscaling={"maxReplica": 3}),
    "a budget": one_of("mesh", podDisruptionBudget={"minAvailable": 1}),
    "how to spread": one_of("mesh", topologySpread={"topology.kubernetes.io/zone": "DoNotSchedul"}),
    "an affinity": one_of("mesh", affinity={"podAfinity": {}}),
    "a digest": one_of("mesh", image={"digest": "sha256:abc"}),
    "a backend": {"backends": {"postgress": {}}},
    "a key of a backend": {"backends": {"postgres": {"user": "identity"}}},
    "a port": {"backends": {"nats": {"port": "4222"}}},
    "nobody to reach": {"backends": {"nats": {"to": []}}},
    "a peer": {"backends": {"nats": {"to": [{"podSelectors": {}}]}}},
    "plain HTTP": {"edge": {"url": "http://edge.example.com"}},
    "a path at the edge": {"edge": {"url": "https://edge.example.com/v1"}},
    "an issuer": {"certManager": {"issuer": "x"}},
    "a duration": {"certManager": {"duration": "30 days"}},
    "a policy": {"networkPolicy": {"enable": False}},
    "a text for a switch": {"networkPolicy": {"enabled": "false"}},
    "a toggle": {"monitoring": {"serviceMonitors": {"enabled": True}}},
    "a collector without TLS": {"backends": {"otlp": {"endpoint": "http://collector:4317"}}},
    "settings of all at once": {"defaults": {"settings": {"drain_s": 3}}},
    "a token that is short-lived beyond use": {"backends": {"openbao": {"kubernetes": {"expirationSeconds": 60}}}},
}
SETTINGS: dict[str, tuple[str, JSON]] = {
    "a setting": ("gateway", {"trusted_proxy": []}),
    "a setting in a table": ("secrets", {"limits": {"node_rate": 3}}),
    "a text for a number": ("access", {"postgres": {"max_size": "3"}}),
    "a number out of range": ("audit", {"checkpoints": {"every_entries": 0}}),
    "a word that is not one of the list": ("mesh", {"telemetry": {"log_level": "loud"}}),
    "a port of the gate": ("gateway", {"ports": ["nonce_stor"]}),
    "who may call": ("audit", {"callers": {"plexsphere.audit.v1.AuditAppendService": ["operator"]}}),
    "whom it calls": ("access", {"peers": {"audit": {"address": "elsewhere:1"}}}),
    "whose role it takes": ("access", {"postgres": {"user": "audit"}}),
    "whose policy it takes": ("access", {"openbao": {"role": "audit"}}),
    "where it listens": ("mesh", {"listen": {"port": 80}}),
    "a setting of another service": ("mesh", {"sign_in": {}}),
}  # fmt: skip


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_refused(typo: str) -> None:
    with pytest.raises(helm_python.HelmError, match="at '"):
        render(TYPOS[typo])


@pytest.mark.parametrize("typo", SETTINGS)
def test_a_setting_that_is_none_or_is_not_for_values_is_refused(typo: str) -> None:
    name, settings = SETTINGS[typo]
    with pytest.raises(helm_python.HelmError, match=f"at '/services/{name}/settings"):
        render(one_of(name, settings=settings))


def test_what_every_service_has_can_be_set_for_each() -> None:
    render(each(settings={"environment": "stage", "telemetry": {"log_level": "debug"}}))


def test_schema_and_readme_are_current() -> None:
    assert (chart.CHART / "values.schema.json").read_text() == chart.schema()
    assert (chart.CHART / "README.md").read_text() == chart.readme()


def test_nothing_in_the_values_is_a_secret() -> None:
    assert all(issubclass(model, Runtime) for model in chart.MODELS.values())
    held = [one for one in render(EVERYTHING) if one["kind"] == "Secret"]
    assert held == []
