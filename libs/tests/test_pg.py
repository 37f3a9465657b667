"""What a look at PostgreSQL tells besides that it is there."""

from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from prometheus_client import REGISTRY

from devstack.layout import State
from libs.errors import DatastoreUnavailable
from libs.pg import check_durable, ping, unavailable
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


async def test_a_role_that_may_not_log_in_now_is_a_database_that_is_not_there(backends: State) -> None:
    dba = await asyncpg.connect(backends.superuser_url)
    try:
        await dba.execute("CREATE ROLE locked_out SUPERUSER NOLOGIN")
        with pytest.raises(DatastoreUnavailable), unavailable():
            await asyncpg.connect(backends.superuser_url, user="locked_out")
    finally:
        await dba.execute("DROP ROLE locked_out")
        await dba.close()
