"""Each of the six services has all that a team needs to run it alone, and its own block changes it for it alone."""

import re
from typing import Any

import pytest

from libs import telemetry
from tests.chart.rendering import JSON, SERVICES, each, find, one_of, render, values_of

pytestmark = pytest.mark.unit

GRPC = tuple(name for name in SERVICES if name != "gateway")


def deployment(name: str, values: JSON | None = None) -> JSON:
    found: JSON = find("Deployment", name, values)["spec"]
    return found


def pod(name: str, values: JSON | None = None) -> JSON:
    found: JSON = deployment(name, values)["template"]["spec"]
    return found


def container(name: str, values: JSON | None = None) -> JSON:
    (only,) = pod(name, values)["containers"]
    found: JSON = only
    return found


def test_there_are_six_and_no_more() -> None:
    assert sorted(one["metadata"]["name"] for one in render() if one["kind"] == "Deployment") == sorted(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_replicas_are_its_own_and_left_to_the_autoscaler_where_there_is_one(name: str) -> None:
    values = each(replicas=7, autoscaling={"enabled": False})
    assert deployment(name, values)["replicas"] == 7
    assert "replicas" not in deployment(name)
    assert not [
        one for one in render(values) if one["kind"] == "HorizontalPodAutoscaler" and one["metadata"]["name"] == name
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_it_scales_by_the_processor_and_by_what_means_load_for_it(name: str) -> None:
    scaler = find("HorizontalPodAutoscaler", name)["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    assert 1 < scaler["minReplicas"] < scaler["maxReplicas"]
    processor, load = scaler["metrics"]
    assert processor["resource"]["name"] == "cpu"
    assert container(name)["resources"]["requests"]["cpu"], "a share of nothing cannot be computed"
    wanted = "plexsphere_event_streams" if name == "gateway" else "plexsphere_rpc_calls_per_second"
    assert load["pods"]["metric"]["name"] == wanted
    assert int(load["pods"]["target"]["averageValue"]) > 0


def test_the_adapter_makes_each_metric_of_one_that_processes_have() -> None:
    rules: Any = values_of("files/adapter-rules.yaml")
    served = {rule["name"]["as"] for rule in rules}
    scalers = [one["spec"]["metrics"] for one in render() if one["kind"] == "HorizontalPodAutoscaler"]
    assert {metrics[1]["pods"]["metric"]["name"] for metrics in scalers} == served
    exported = {
        name
        for collector in (telemetry.CALLS, telemetry.STREAMS)
        for metric in collector.collect()
        for name in (metric.name, f"{metric.name}_total")
    }
    assert {re.split("[{]", rule["seriesQuery"])[0] for rule in rules} <= exported


@pytest.mark.parametrize("name", SERVICES)
def test_an_eviction_takes_one_pod_at_a_time(name: str) -> None:
    budget = find("PodDisruptionBudget", name)["spec"]
    assert budget["maxUnavailable"] == 1
    labels = deployment(name)["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_spread_over_zones_and_hosts(name: str) -> None:
    spread = {one["topologyKey"]: one["whenUnsatisfiable"] for one in pod(name)["topologySpreadConstraints"]}
    assert spread == {"topology.kubernetes.io/zone": "ScheduleAnyway", "kubernetes.io/hostname": "ScheduleAnyway"}
    for one in pod(name)["topologySpreadConstraints"]:
        assert one["labelSelector"]["matchLabels"]["app.kubernetes.io/name"] == name


@pytest.mark.parametrize("name", SERVICES)
def test_in_three_zones_none_has_two_replicas_more_than_another(name: str) -> None:
    ha = values_of("values-ha.yaml")
    zone = next(one for one in pod(name, ha)["topologySpreadConstraints"] if one["topologyKey"].endswith("/zone"))
    assert (zone["maxSkew"], zone["whenUnsatisfiable"]) == (1, "DoNotSchedule")
    assert find("HorizontalPodAutoscaler", name, ha)["spec"]["minReplicas"] >= 3


@pytest.mark.parametrize("name", SERVICES)
def test_where_it_runs_is_its_own(name: str) -> None:
    where: JSON = {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["core"]}]}]}}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "core", "operator": "Exists"}],
        "priorityClassName": "core",
    }  # fmt: skip
    values = each(**where)
    assert {key: pod(name, values)[key] for key in where} == where


@pytest.mark.parametrize("name", SERVICES)
def test_resources_and_image_are_its_own(name: str) -> None:
    values = each(resources={"requests": {"cpu": "3"}}, image={"digest": f"sha256:{'ab' * 32}"})
    memory = "1Gi" if name == "gateway" else "192Mi"
    assert container(name, values)["resources"]["requests"] == {"cpu": "3", "memory": memory}
    assert container(name, values)["image"] == f"plexsphere/{name}@sha256:{'ab' * 32}"
    assert container(name)["image"] == f"plexsphere/{name}:0.1.0"


@pytest.mark.parametrize("name", SERVICES)
def test_its_account_is_its_own_and_has_no_token_of_the_api(name: str) -> None:
    values = each(serviceAccount={"annotations": {"cloud/role": "x"}})
    account = find("ServiceAccount", f"plexsphere-{name}", values)
    assert account["metadata"]["annotations"] == {"cloud/role": "x"}
    assert account["automountServiceAccountToken"] is False
    assert pod(name)["serviceAccountName"] == f"plexsphere-{name}"
    assert pod(name)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", GRPC)
def test_readiness_asks_for_all_that_it_needs_and_liveness_for_its_loop_alone(name: str) -> None:
    asked: dict[str, Any] = {
        probe: container(name)[f"{probe}Probe"]["exec"]["command"] for probe in ("startup", "readiness", "liveness")
    }
    assert {probe: command[-1] for probe, command in asked.items()} == {
        "startup": "ready", "readiness": "ready", "liveness": "live",
    }  # fmt: skip
    for command in asked.values():
        assert command[1:5] == ["-m", "libs.probe", "--config", f"/etc/plexsphere/{name}.toml"]


def test_the_edge_is_asked_over_https() -> None:
    edge = container("gateway")
    for probe, path in (("readiness", "/v1/health"), ("liveness", "/v1/version")):
        assert edge[f"{probe}Probe"]["httpGet"] == {"scheme": "HTTPS", "port": "main", "path": path}


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_that_ends_is_left_alone_first_and_then_has_time_to_drain(name: str) -> None:
    values = each(preStopSeconds=7, settings={"drain_s": 33})
    assert container(name, values)["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    assert pod(name, values)["terminationGracePeriodSeconds"] == 7 + 33 + 10
    assert deployment(name)["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


@pytest.mark.parametrize("name", SERVICES)
def test_its_block_is_for_it_alone_and_other_settings_make_other_pods(name: str) -> None:
    values = one_of(name, settings={"telemetry": {"log_level": "debug"}})
    annotation = "checksum/settings"
    for other in SERVICES:
        before, after = deployment(other), deployment(other, values)
        assert (before != after) is (other == name)
        assert (
            before["template"]["metadata"]["annotations"][annotation]
            != after["template"]["metadata"]["annotations"][annotation]
        ) is (other == name)


@pytest.mark.parametrize("name", SERVICES)
def test_environment_of_other_services_does_not_reach_it(name: str) -> None:
    assert pod(name)["enableServiceLinks"] is False
    assert "env" not in container(name)


@pytest.mark.parametrize("name", SERVICES)
def test_labels_select_its_pods_and_no_others(name: str) -> None:
    labels = deployment(name)["template"]["metadata"]["labels"]
    assert deployment(name)["selector"]["matchLabels"].items() <= labels.items()
    chosen = find("Service", name)["spec"]["selector"].items()
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in render() if one["kind"] in {"Deployment", "Job"}]
    assert [one["app.kubernetes.io/name"] for one in pods if chosen <= one.items()] == [name]
    assert find("Service", name)["spec"]["ports"][0]["port"] == 8443
