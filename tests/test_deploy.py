"""What ships: the compose file names the six processes, hardened; the chart has tests of its own (tests/chart)."""

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
SERVICES = {"access", "audit", "gateway", "identity", "mesh", "secrets"}


def test_compose_runs_the_six_processes_hardened_and_publishes_the_edge_alone() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert set(compose["services"]) == SERVICES
    for name, service in compose["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert ("ports" in service) is (name == "gateway")
        assert service["build"]["args"] == {"SERVICE": name}
        for volume in service["volumes"]:
            assert volume.endswith(":ro")
