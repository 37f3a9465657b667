"""Each of the six services is rolled in turn under the load of the story, as `make rolling` does at length."""

import pytest

from bench.deployment import Deployment
from bench.everybody import prepare
from bench.measure import Report
from bench.rolling import Rollout, under
from devstack.layout import State
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

PRE_STOP_S, DRAIN_S = 1.0, 3.0


async def test_a_rolling_restart_of_each_service_fails_no_request_and_no_stream(world: World) -> None:
    deployment, report = Deployment(State(world.state), world), Report("rolling", {})
    async with Rollout.of(deployment, PRE_STOP_S, DRAIN_S) as rollout, deployment.operator() as operator:
        load = await prepare(deployment, operator)
        await under(load, report, [rollout.all(load)])
        rollout.tell(report)
    assert [f"{check.name}: {check.observed}" for check in report.checks if not check.ok] == []
