"""The system in containers: hardened, TLS and files for secrets everywhere, and no way around the networks."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from devstack import compose
from devstack.layout import SERVICES
from libs.migrations import Migrate
from libs.settings import load
from tools.chart import MODELS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
FILES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONTAINERS: dict[str, Any] = FILES["services"]
ONCE = {"migrate", "spicedb-migrate"}
OBSERVABILITY = {"otel", "prometheus", "grafana"}
SOURCES = "/etc/grafana/provisioning/datasources/prometheus.yaml"
# Who owns something in which backend, after the table of the design.
OWNERS = {
    "postgres": {"identity", "access", "secrets", "mesh", "audit", "migrate", "spicedb", "spicedb-migrate"},
    "openbao": {"identity", "access", "secrets", "mesh", "audit"},
    "nats": {"mesh", "gateway"},
    # PostgreSQL only answers.
    "spicedb": {"identity", "postgres", "spicedb-migrate"},
    "oidc-a": {"identity"},
}

every_container = pytest.mark.parametrize("name", CONTAINERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compose")
    compose.prepare(made, observability=True)
    return made


def test_all_of_the_system_is_there() -> None:
    assert set(CONTAINERS) == {*SERVICES, "postgres", "nats", "openbao", "spicedb", "oidc-a", *ONCE, *OBSERVABILITY}
    assert {name for name, one in CONTAINERS.items() if one.get("profiles")} == OBSERVABILITY


@every_container
def test_a_container_can_do_little(name: str) -> None:
    one = CONTAINERS[name]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert one["user"] == "${PLEX_UID:-10001}:${PLEX_GID:-10001}"
    assert one["pids_limit"] > 0
    assert one["mem_limit"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & one.keys()


@every_container
def test_only_data_is_writable_and_nothing_of_the_host_but_its_own_folder_is_seen(name: str) -> None:
    for volume in CONTAINERS[name]["volumes"]:
        outside, inside, *mode = volume.replace("${PLEX_COMPOSE:-./build/compose}", "MADE").split(":")
        assert outside.startswith(("MADE/", "./deploy/")), volume
        assert "docker.sock" not in volume
        if mode != ["ro"]:
            assert (outside, inside) == (f"MADE/data/{name}", "/var/lib/plexsphere")
        if inside == "/run/plexsphere":
            owner = {"spicedb-migrate": "spicedb", "migrate": "migrator"}.get(name, name)
            assert outside == f"MADE/{owner}"


@every_container
def test_it_says_how_it_is_and_waits_for_what_it_needs(name: str) -> None:
    one = CONTAINERS[name]
    assert (name in ONCE) or one["healthcheck"]["test"][0] == "CMD"
    for other, how in one.get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
        assert how == {"condition": wanted}
    if name in SERVICES and name != "gateway":
        assert {"migrate", "postgres", "openbao"} <= set(one["depends_on"])


def test_the_edge_alone_is_published_and_on_this_machine_alone() -> None:
    assert {name: one["ports"] for name, one in CONTAINERS.items() if "ports" in one} == {
        "gateway": ["127.0.0.1:8443:8443"]
    }
    assert {name for name, one in FILES["networks"].items() if not one.get("internal")} == {"edge"}
    assert {name for name, one in CONTAINERS.items() if "edge" in one["networks"]} == {"gateway"}


@pytest.mark.parametrize("backend", OWNERS)
def test_a_backend_is_reached_by_those_who_own_something_in_it_whatever_network_they_share(backend: str) -> None:
    mine = set(CONTAINERS[backend]["networks"])
    there = {name for name, one in CONTAINERS.items() if mine & set(one["networks"])}
    assert there - {backend} == OWNERS[backend]


def test_the_six_share_a_network_and_no_backend_is_in_it() -> None:
    assert {name for name, one in CONTAINERS.items() if "services" in one["networks"]} == set(SERVICES)


@every_container
def test_no_secret_stands_in_the_file(name: str) -> None:
    said = {**CONTAINERS[name].get("environment", {})}
    for key, value in said.items():
        if re.search("PASS|SECRET|TOKEN|PRESHARED", key):
            assert key.endswith("_FILE")
            assert value.startswith("/run/plexsphere/secrets/")
    assert "env_file" not in CONTAINERS[name]
    assert "@" not in " ".join(map(str, CONTAINERS[name].get("command", [])))


@pytest.mark.parametrize("name", SERVICES)
def test_each_of_the_six_is_built_from_its_own_part_and_started_with_its_own_file(name: str) -> None:
    one = CONTAINERS[name]
    assert one["build"]["args"]["SERVICE"] == name
    assert one["command"] == ["--config", f"/etc/plexsphere/{name}.toml"]
    assert f"${{PLEX_COMPOSE:-./build/compose}}/config/{name}.toml:/etc/plexsphere/{name}.toml:ro" in one["volumes"]


# What is made for it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_takes_its_file_and_has_every_file_that_it_names_and_no_other(folder: Path, name: str) -> None:
    path = folder / f"config/{name}.toml"
    assert load(path, MODELS[name]).telemetry.otlp_endpoint == "https://otel:4317"
    named = set(re.findall(r"/run/plexsphere/([a-z]+/[a-z0-9.-]+)", path.read_text()))
    held = {str(one.relative_to(folder / name)) for one in (folder / name).rglob("*") if one.is_file()}
    assert held == named


def test_the_job_takes_its_file(folder: Path) -> None:
    assert load(folder / "config/migrate.toml", Migrate).postgres.user == "migrator"
    assert (folder / "migrator/tls/migrator.key").exists()


def test_whoever_reads_a_key_is_its_owner(folder: Path) -> None:
    made = [one for one in folder.rglob("*") if one.is_file() and one.parent.name in {"tls", "secrets", "config"}]
    assert len(made) > 40
    assert {oct(one.stat().st_mode & 0o777) for one in made if "state" not in one.parts} == {"0o600"}


def test_nobody_is_an_attacker_in_containers(folder: Path) -> None:
    bao = json.loads((folder / "config/openbao.json").read_text())
    names = [next(iter(one)) for one in bao["initialize"][0]["setup"]["request"]]
    assert not [name for name in names if "operator" in name]
    assert {"policy-audit", "role-audit", "idp"} <= set(names)
    assert "operator" not in (folder / "config/nats.conf").read_text()
    assert not list(folder.glob("[!s]*/tls/operator.*"))


def test_everything_made_speaks_of_what_is_inside(folder: Path) -> None:
    for path in sorted((folder / "config").iterdir()):
        text = path.read_text()
        assert str(folder) not in text, path.name
        assert "127.0.0.1" not in text, path.name
        assert not re.search("@[A-Z]+@", text), path.name


def test_backends_are_reached_over_tls_only(folder: Path) -> None:
    assert "tls://nats" in (folder / "config/mesh.toml").read_text()
    assert "verify_and_map: true" in (folder / "config/nats.conf").read_text()
    assert "sslmode=verify-full" in (folder / "config/spicedb.env").read_text()
    listener = json.loads((folder / "config/openbao.json").read_text())["listener"]["tcp"]
    assert listener["tls_require_and_verify_client_cert"] is True
    assert "ssl=on" in CONTAINERS["postgres"]["command"]
    hba = (ROOT / "deploy/compose/pg_hba.conf").read_text()
    assert [line.split()[-1] for line in hba.splitlines() if line.startswith("host")] == ["cert", "cert"]
    assert not [line for line in hba.splitlines() if line.startswith(("host ", "hostnossl"))]


def test_certificates_are_for_the_names_of_the_network(folder: Path) -> None:
    for name in (*SERVICES, "postgres", "nats", "openbao", "spicedb", "oidc-a", *OBSERVABILITY):
        leaf = x509.load_pem_x509_certificate((folder / name / "tls" / f"{name}.crt").read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert name in names.get_values_for_type(x509.DNSName)


def test_to_make_it_again_changes_no_key(folder: Path) -> None:
    before = (folder / "audit/tls/audit.key").read_bytes(), tomllib.loads((folder / "config/audit.toml").read_text())
    compose.prepare(folder, observability=True)
    assert before == (
        (folder / "audit/tls/audit.key").read_bytes(),
        tomllib.loads((folder / "config/audit.toml").read_text()),
    )


# What watches it ------------------------------------------------------------------------------------------------------


def outside_of(name: str, inside: str) -> Path:
    """Return what is mounted at a place of a container."""
    pairs = [volume.split(":")[:2] for volume in CONTAINERS[name]["volumes"]]
    return ROOT.joinpath(next(outside for outside, place in pairs if place == inside))


def test_prometheus_takes_its_settings_and_finds_the_shipped_rules(folder: Path, tmp_path: Path) -> None:
    (pattern,) = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())["rule_files"]
    rules = outside_of("prometheus", str(Path(pattern).parent))
    assert rules == ROOT / "deploy/observability/rules"
    text = outside_of("prometheus", "/etc/plexsphere/prometheus.yml").read_text()
    text = text.replace(str(Path(pattern).parent), str(rules)).replace("/run/plexsphere", str(folder / "prometheus"))
    (tmp_path / "prometheus.yml").write_text(text)
    checked = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(re.findall(r"SUCCESS: [1-9]\d* rules found", checked.stdout)) == len(list(rules.glob("*.yaml"))) > 0


def test_prometheus_sees_each_service_as_the_job_that_rules_ask_for() -> None:
    (scrape,) = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())["scrape_configs"]
    (relabel,) = scrape["relabel_configs"]
    found = [re.fullmatch(relabel["regex"], target) for target in scrape["static_configs"][0]["targets"]]
    assert (relabel["source_labels"], relabel["target_label"]) == (["__address__"], "job")
    assert {match[1] for match in found if match} == set(SERVICES)


def test_grafana_is_provisioned_with_the_shipped_dashboards() -> None:
    settings = outside_of("grafana", "/etc/grafana/provisioning/dashboards/plexsphere.yaml")
    (provider,) = yaml.safe_load(settings.read_text())["providers"]
    dashboards = outside_of("grafana", provider["options"]["path"])
    assert dashboards == ROOT / "deploy/observability/dashboards"
    made = [json.loads(path.read_text()) for path in dashboards.glob("*.json")]
    assert len({one["uid"] for one in made}) == len(made) == len(SERVICES) + 1
    # Each asks for a source by its type, and the default one is Prometheus.
    (source,) = yaml.safe_load(outside_of("grafana", SOURCES).read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert {panel["datasource"]["uid"] for one in made for panel in one["panels"] if "datasource" in panel} == {
        "${source}"
    }


# Without a registry ---------------------------------------------------------------------------------------------------

LOCAL: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.local.yml").read_text())
STAND_INS = {"postgres", "nats", "openbao", "spicedb", "oidc-a", "prometheus"}


def test_stand_ins_swap_images_and_nothing_that_hardens() -> None:
    assert set(LOCAL["services"]) == {*SERVICES, *ONCE, *STAND_INS}
    for name, one in LOCAL["services"].items():
        swapped = (
            {"image", "build", "command", "entrypoint", "healthcheck", "mem_limit"}
            if name in STAND_INS | ONCE
            else {"build"}
        )
        assert set(one) <= swapped, name


def test_each_stand_in_is_a_target_of_one_file() -> None:
    targets = set(
        re.findall(r"^FROM .* AS ([a-z-]+)$", (ROOT / "deploy/compose/local.Dockerfile").read_text(), re.MULTILINE)
    )
    assert {LOCAL["services"][name]["build"]["target"] for name in STAND_INS} <= targets
    assert {one["build"]["secrets"][0] for one in LOCAL["services"].values() if "build" in one} == {"ca_bundle"}
