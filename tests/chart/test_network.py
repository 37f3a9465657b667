"""Who may reach whom: what the design's picture says, and nothing else; certificates, migrations, monitoring."""

from typing import Any

import pytest

from devstack.pki import CLIENTS
from tests.chart.rendering import EVERYTHING, JSON, NAMESPACE, SERVICES, find, render

pytestmark = pytest.mark.unit

# The table of the design, written down a second time on purpose: the chart takes it from the settings.
CALLS = {
    "identity": {"audit", "mesh"},
    "access": {"identity", "mesh", "audit"},
    "secrets": {"identity", "mesh", "audit"},
    "mesh": {"identity", "audit"},
    "audit": {"identity"},
    "gateway": {"identity", "access", "secrets", "mesh", "audit"},
}
BACKENDS = {
    "identity": {"postgres", "openbao", "spicedb"},
    "access": {"postgres", "openbao"},
    "secrets": {"postgres", "openbao"},
    "mesh": {"postgres", "openbao", "nats"},
    "audit": {"postgres", "openbao"},
    "gateway": {"nats"},
}
PORTS = {"postgres": 5432, "openbao": 8200, "spicedb": 50051, "nats": 4222}
NAME = "app.kubernetes.io/name"


def policy(name: str, values: JSON | None = None) -> JSON:
    found: JSON = find("NetworkPolicy", f"plexsphere-{name}", values)["spec"]
    return found


def reached(rules: list[JSON], side: str) -> set[tuple[str, int]]:
    """Return names and ports of the pods that rules allow; an address or a namespace counts under its own text."""
    found = set()
    for rule in rules:
        for peer in rule.get(side, [{}]):
            name = peer.get("podSelector", {}).get("matchLabels", {}).get(NAME) or str(peer)
            found |= {(name, port["port"]) for port in rule["ports"]}
    return found


def test_every_pod_of_the_release_starts_from_nothing() -> None:
    deny = policy("default-deny")
    assert deny == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "plexsphere"}},
        "policyTypes": ["Ingress", "Egress"],
    }
    for one in render():
        if one["kind"] in {"Deployment", "Job"}:
            assert one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "plexsphere"


@pytest.mark.parametrize("name", SERVICES)
def test_who_reaches_it_are_those_who_call_it(name: str) -> None:
    callers = {(caller, 8443) for caller, called in CALLS.items() if name in called}
    assert reached(policy(name)["ingress"], "from") == (callers or {("{}", 8443)})
    assert policy(name)["podSelector"]["matchLabels"][NAME] == name


@pytest.mark.parametrize("name", SERVICES)
def test_whom_it_reaches_are_those_whom_it_calls_and_the_backends_that_it_owns(name: str) -> None:
    allowed = reached(policy(name)["egress"], "to")
    names = {one for one in allowed if one[1] != 53}
    wanted = {(called, 8443) for called in CALLS[name]} | {(backend, PORTS[backend]) for backend in BACKENDS[name]}
    outside = {one for one in names if "ipBlock" in one[0]}
    assert names - outside == wanted
    assert {port for _, port in outside} == ({443} if name == "identity" else set())
    assert all("kube-system" in one for one, port in allowed if port == 53)


def test_providers_are_on_the_internet_and_not_within() -> None:
    (block,) = [rule["to"][0]["ipBlock"] for rule in policy("identity")["egress"] if "ipBlock" in rule["to"][0]]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(block["except"])


def test_the_migration_job_reaches_the_database_alone_and_nobody_reaches_it() -> None:
    job = policy("migrate")
    assert {one for one in reached(job["egress"], "to") if one[1] != 53} == {("postgres", 5432)}
    assert "ingress" not in job
    assert set(job["policyTypes"]) == {"Ingress", "Egress"}


def test_metrics_are_for_monitoring_alone_and_only_where_it_is_on() -> None:
    for name in SERVICES:
        assert 9464 not in {port for _, port in reached(policy(name)["ingress"], "from")}
        (rule,) = [one for one in policy(name, EVERYTHING)["ingress"] if one["ports"][0]["port"] == 9464]
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_only_while_it_is_tested_something_else_reaches_a_service() -> None:
    found = find("NetworkPolicy", "plexsphere-test")
    assert found["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "hook-succeeded" in found["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    stranger = find("Pod", "plexsphere-test-network")["metadata"]["labels"]
    assert "app.kubernetes.io/part-of" not in stranger
    assert stranger[NAME] not in str(render_policies())


def render_policies() -> list[JSON]:
    return [one for one in render() if one["kind"] == "NetworkPolicy"]


# Certificates ---------------------------------------------------------------------------------------------------------


def certificate(name: str) -> JSON:
    found: JSON = find("Certificate", f"plexsphere-{name}", EVERYTHING)["spec"]
    return found


@pytest.mark.parametrize("name", [*SERVICES, "migrator", "probe", "prometheus"])
def test_each_identity_has_a_certificate_that_says_its_name_and_no_other(name: str) -> None:
    issued = certificate(name)
    assert issued["uris"] == [f"spiffe://plexsphere/{name}"]
    assert issued["commonName"] == name
    assert issued["privateKey"] == {"algorithm": "ECDSA", "size": 256, "encoding": "PKCS8", "rotationPolicy": "Always"}
    server = name in SERVICES
    assert issued.get("dnsNames") == ([name, f"{name}.{NAMESPACE}.svc"] if server else None)
    assert ("server auth" in issued["usages"]) is server
    assert "client auth" in issued["usages"]
    assert not {"cert sign", "crl sign"} & set(issued["usages"])


def test_assertions_are_signed_by_a_certificate_that_opens_no_connection() -> None:
    signer = certificate("assertion")
    assert signer["uris"] == ["spiffe://plexsphere/identity/assertion"]
    assert signer["usages"] == ["digital signature"]
    assert signer["privateKey"]["algorithm"] == "Ed25519"
    assert "dnsNames" not in signer


def test_nobody_gets_the_operators_certificate() -> None:
    issued = {one["spec"]["commonName"] for one in render(EVERYTHING) if one["kind"] == "Certificate"}
    assert issued == {*SERVICES, *CLIENTS, "assertion", "prometheus"} - {"operator"}


def test_without_cert_manager_the_same_secrets_are_expected() -> None:
    off: JSON = {"certManager": {"enabled": False}}
    assert [one for one in render(off) if one["kind"] == "Certificate"] == []
    assert all(find("Deployment", name, off) == find("Deployment", name) for name in SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_has_the_certificate_that_is_its_own_and_no_other(name: str) -> None:
    spec = find("Deployment", name)["spec"]["template"]["spec"]
    held = {
        source["secret"]["name"]
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "secret" in source
    }
    extra = {"plexsphere-assertion"} if name == "identity" else set()
    assert held == {certificate(name)["secretName"]} | extra


# Migrations and monitoring --------------------------------------------------------------------------------------------


def test_migrations_run_before_an_upgrade_as_the_owner_of_the_schemas_and_never_at_a_rollback() -> None:
    job = find("Job", "plexsphere-migrate")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "--config",
        "/etc/plexsphere/migrate.toml",
        "access",
        "audit",
        "identity",
        "mesh",
        "secrets",
    ]
    secrets = [
        source["secret"]["name"]
        for volume in job["spec"]["template"]["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    ]
    assert set(secrets) == {"plexsphere-migrator-tls"}
    hooks = {one["metadata"].get("annotations", {}).get("helm.sh/hook") for one in render()}
    assert hooks == {None, "pre-install,pre-upgrade", "test"}


def test_what_the_migration_needs_is_there_before_it() -> None:
    def weight(one: JSON) -> int:
        return int(one["metadata"]["annotations"]["helm.sh/hook-weight"])

    job = find("Job", "plexsphere-migrate")
    needed = [find(kind, "plexsphere-migrate") for kind in ("ConfigMap", "ServiceAccount", "NetworkPolicy")]
    needed.append(find("Certificate", "plexsphere-migrator"))
    for one in needed:
        assert one["metadata"]["annotations"]["helm.sh/hook"] == job["metadata"]["annotations"]["helm.sh/hook"]
        assert weight(one) < weight(job)


@pytest.mark.parametrize("name", SERVICES)
def test_metrics_are_read_over_mtls_by_the_name_of_the_service(name: str) -> None:
    monitor = find("ServiceMonitor", f"plexsphere-{name}", EVERYTHING)["spec"]
    service: Any = find("Service", f"{name}-metrics")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["tlsConfig"]["serverName"] == name
    assert "insecureSkipVerify" not in endpoint["tlsConfig"]
    assert endpoint["tlsConfig"]["keySecret"] == {"name": certificate("prometheus")["secretName"], "key": "tls.key"}


def test_monitoring_is_off_unless_it_is_wanted() -> None:
    assert {one["kind"] for one in render()}.isdisjoint({"ServiceMonitor", "PrometheusRule"})
