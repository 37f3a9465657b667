"""A-2: no process of ours leaves a core file."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.world import PLEXCTL, World

pytestmark = pytest.mark.e2e

SERVICES = ("identity", "access", "secrets", "mesh", "audit", "gateway")


@pytest.mark.parametrize("service", SERVICES)
def test_no_process_can_be_dumped(world: World, service: str) -> None:
    command = [*PLEXCTL, "dev", "status", "--json", "--state", str(world.state)]
    status = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pid = next(row["pid"] for row in status["processes"] if row["name"] == service)
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"], core
