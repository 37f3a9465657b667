"""What a look at PostgreSQL tells besides that it is there."""

from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from prometheus_client import REGISTRY

from devstack.layout import State
from libs.pg import check_durable, ping
from libs.telemetry import SKEW

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("look", [ping, check_durable])
async def test_a_look_compares_the_clocks(backends: State, look: Callable[[asyncpg.Pool], Awaitable[None]]) -> None:
    SKEW.labels("postgres").set(1e6)
    async with asyncpg.create_pool(backends.superuser_url, min_size=1, max_size=1) as pool:
        await look(pool)
    skew = REGISTRY.get_sample_value("plexsphere_clock_skew_seconds", {"clock": "postgres"})
    assert skew is not None
    assert abs(skew) < 5
