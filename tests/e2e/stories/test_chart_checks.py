"""What `helm test` runs, against a real stack: each check passes where it should, and fails where it must."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from devstack.layout import SERVICES, State
from tests.e2e.conftest import Scene
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

CHECKS = Path(__file__).resolve().parents[3] / "deploy/helm/plexsphere/files/checks.py"
PORTS = re.compile(r"^ports = \[.*\]$", re.MULTILINE)


async def check(world: World, name: str, *more: str) -> tuple[int, str]:
    """Run one check as a pod would, and return its status and what it says."""
    state = State(world.state)
    places = [f"--at={service}=127.0.0.1:{state.port(service)}" for service in SERVICES]
    process = await asyncio.create_subprocess_exec(
        sys.executable, CHECKS, name, "--tls", state / "pki", *places, *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode().strip()


async def test_a_release_is_healthy_until_a_service_is_gone(world: World, scene: Scene) -> None:
    assert await check(world, "healthy") == (0, "healthy: ok")
    await world.kill("access")
    try:
        status, said = await check(world, "healthy")
        assert (status, "AioRpcError" in said) == (1, True)
    finally:
        await world.start("access")


async def test_a_certificate_in_no_caller_list_is_refused_until_somebody_lists_it(world: World, scene: Scene) -> None:
    assert await check(world, "wrong-caller") == (0, "wrong-caller: ok")
    before = world.config("mesh")
    row = '"plexsphere.mesh.v1.PublishService" = ["access", "identity", "secrets"]'
    assert row in before
    await world.restart("mesh", before.replace(row, row.replace("]", ', "probe"]')))
    try:
        assert await check(world, "wrong-caller") == (1, "wrong-caller: Wrong mesh answered INVALID_ARGUMENT to probe")
    finally:
        await world.restart("mesh", before)


async def test_an_edge_that_lacks_a_port_is_told_from_one_that_has_all(
    world: World, scene: Scene, tmp_path: Path
) -> None:
    node = await scene.newcomer("chart-checks")
    bearer = tmp_path / "bearer"
    bearer.write_text(f"{node.bearer}\n")
    lacking = (f"--at=lacking=127.0.0.1:{State(world.state).port('gateway')}", f"--bearer={bearer}")
    status, said = await check(world, "missing-port", *lacking)
    assert (status, said) == (1, "missing-port: Wrong an edge without a port answered 200")
    before = world.config("gateway")
    await world.restart("gateway", PORTS.sub('ports = ["event_stream", "signature_verifier"]', before))
    try:
        assert await check(world, "missing-port", *lacking) == (0, "missing-port: ok")
    finally:
        await world.restart("gateway", before)


async def test_without_policies_a_stranger_is_seen_to_reach_a_service(world: World, scene: Scene) -> None:
    status, said = await check(world, "network")
    assert (status, said) == (1, "network: Wrong identity can be reached from a pod that has no business with it")
    nowhere = [f"--at={name}=127.0.0.1:1" for name in SERVICES if name != "gateway"]
    assert await check(world, "network", *nowhere) == (0, "network: ok")
