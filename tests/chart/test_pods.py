"""Every pod that the chart can make, also of hooks and tests, passes the `restricted` profile and the schemas."""

import json
import re
from decimal import Decimal

import helm_python
import kubernetes_validate
import pytest

from tests.chart.rendering import (
    EVERYTHING,
    JSON,
    VALUES_FILES,
    containers,
    pod_specs,
    render,
    values_of,
)  # fmt: skip
from tools.chart import CHART

pytestmark = pytest.mark.unit

RELEASES = {**{name: values_of(name) for name in VALUES_FILES}, "everything": EVERYTHING}
VERSIONS = ("1.30", "1.37")
FOREIGN = ("cert-manager.io/", "monitoring.coreos.com/")
# Volume types of the profile (Pod Security Standards, restricted).
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
QUANTITY = re.compile(r"([0-9.]+)(m|Ki|Mi|Gi)?")
SCALE = {None: Decimal(1), "m": Decimal("0.001"), "Ki": Decimal(1024), "Mi": Decimal(1024**2), "Gi": Decimal(1024**3)}

# What three releases have in common need not be held against the schemas three times.
VALID: set[tuple[str, str]] = set()

every_release = pytest.mark.parametrize("release", RELEASES)


def amount(text: str) -> Decimal:
    found = QUANTITY.fullmatch(text)
    assert found, text
    return Decimal(found[1]) * SCALE[found[2]]


@pytest.mark.parametrize("values", VALUES_FILES)
def test_lint_finds_nothing(values: str) -> None:
    report = helm_python.lint(CHART, values_of(values), strict=True)
    assert [one for one in report["messages"] if one["severity"] > 1] == []


@every_release
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(release: str, version: str) -> None:
    objects = [one for one in render(RELEASES[release]) if not one["apiVersion"].startswith(FOREIGN)]
    assert len(objects) > 40
    for one in objects:
        if (seen := (version, json.dumps(one, sort_keys=True))) not in VALID:
            kubernetes_validate.validate(one, version, strict=True)
            VALID.add(seen)


@every_release
def test_names_are_unique_and_nothing_leaves_the_namespace(release: str) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in render(RELEASES[release])]
    assert len(names) == len(set(names))
    assert {kind for kind, _ in names}.isdisjoint({"ClusterRole", "ClusterRoleBinding", "Namespace", "Secret", "Role"})


@every_release
def test_every_pod_passes_the_restricted_profile(release: str) -> None:
    seen = []
    for name, spec in pod_specs(RELEASES[release]):
        seen.append(name)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert all(set(volume) - {"name"} <= VOLUMES for volume in spec["volumes"]), name
        for container in containers(spec):
            limits = container["securityContext"]
            assert limits["allowPrivilegeEscalation"] is False, name
            assert limits["privileged"] is False, name
            assert limits["capabilities"] == {"drop": ["ALL"]}, name
            assert all("hostPort" not in port for port in container.get("ports", [])), name
    assert {"Job/plexsphere-migrate", "Pod/plexsphere-test-network"} <= set(seen)
    assert len(seen) == 6 + 1 + (4 if release == "everything" else 3)


@every_release
def test_no_pod_writes_its_image_or_has_a_token_that_it_does_not_need(release: str) -> None:
    for name, spec in pod_specs(RELEASES[release]):
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        writable = {
            volume["name"] for volume in spec["volumes"] if {"emptyDir", "persistentVolumeClaim"} & volume.keys()
        }
        for container in containers(spec):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
            assert {mount for mount, how in mounts.items() if not how.get("readOnly")} <= writable, name
            assert "subPath" not in str(mounts), "a file below subPath never changes, and certificates have to"


@every_release
def test_amounts_are_amounts_and_no_limit_is_below_its_request(release: str) -> None:
    for name, spec in pod_specs(RELEASES[release]):
        for container in containers(spec):
            asked, most = (container["resources"][kind] for kind in ("requests", "limits"))
            assert amount(asked["cpu"]) > 0, name
            assert amount(asked["memory"]) <= amount(most["memory"]), name


@every_release
def test_what_is_mounted_is_there_and_keys_are_for_the_group_of_the_process_alone(release: str) -> None:
    for name, spec in pod_specs(RELEASES[release]):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]} == set(
            volumes
        ), name
        for volume in volumes.values():
            for kind in {"secret", "projected"} & volume.keys():
                assert volume[kind]["defaultMode"] == 0o440, name
        assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"], name


def test_an_archive_in_a_folder_needs_a_volume() -> None:
    values: JSON = {"services": {"audit": {"settings": {"archive": {"url": "file:///var/lib/plexsphere/audit"}}}}}
    with pytest.raises(helm_python.HelmRenderError, match=r"services\.audit\.archiveClaim"):
        render(values)
