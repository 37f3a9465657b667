"""The limiter on the real database: exact across replicas, neither cell charged in vain, a true Retry-After."""

import asyncio
from collections import Counter

import asyncpg
import pytest

from libs.errors import LimiterUnavailable, PerDomainRateLimited, PerNodeRateLimited, PlexError
from libs.ids import uuid7
from services.secrets.limits import PgLimiter
from services.secrets.settings import Limits

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
CALLERS = 50


def limiters(pools: Pools, node: tuple[int, int], domain: tuple[int, int]) -> tuple[PgLimiter, PgLimiter]:
    """Return a limiter of each replica; limits are pairs of a rate per minute and a burst."""
    limits = Limits(
        node_rate_per_minute=node[0], node_burst=node[1], domain_rate_per_minute=domain[0], domain_burst=domain[1]
    )
    return PgLimiter(pools[0], limits), PgLimiter(pools[1], limits)


async def outcome(limiter: PgLimiter, node: object, domain: object) -> str:
    try:
        await limiter.spend(node, domain)  # type: ignore[arg-type]  # UUIDs
    except PlexError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("shared", ["node", "domain"])
async def test_fifty_callers_of_two_replicas_get_exactly_the_burst(pools: Pools, shared: str) -> None:
    domain, node = uuid7(), uuid7()
    both = limiters(pools, node=(1, 10), domain=(1, 20))
    calls = [outcome(both[n % 2], node if shared == "node" else uuid7(), domain) for n in range(CALLERS)]
    counted = Counter(await asyncio.gather(*calls))
    burst, code = (10, "per_node_rate_limited") if shared == "node" else (20, "per_domain_rate_limited")
    assert counted == {"ok": burst, code: CALLERS - burst}


async def test_a_node_over_its_limit_does_not_drain_its_domain(pools: Pools) -> None:
    domain, greedy = uuid7(), uuid7()
    both = limiters(pools, node=(1, 2), domain=(1, 5))
    greed = Counter(await asyncio.gather(*(outcome(both[n % 2], greedy, domain) for n in range(CALLERS))))
    assert greed == {"ok": 2, "per_node_rate_limited": CALLERS - 2}
    others = Counter([await outcome(both[n % 2], uuid7(), domain) for n in range(5)])
    assert others == {"ok": 3, "per_domain_rate_limited": 2}


async def test_a_domain_over_its_limit_charges_no_node_and_slows_no_other_domain(pools: Pools) -> None:
    domain, node = uuid7(), uuid7()
    both = limiters(pools, node=(1, 2), domain=(1, 1))
    assert await outcome(both[0], uuid7(), domain) == "ok"
    refused = Counter(await asyncio.gather(*(outcome(both[n % 2], node, domain) for n in range(CALLERS))))
    assert refused == {"per_domain_rate_limited": CALLERS}
    elsewhere = uuid7()
    wide = limiters(pools, node=(1, 2), domain=(1, 9))[0]
    assert [await outcome(wide, node, elsewhere) for _ in range(3)] == ["ok", "ok", "per_node_rate_limited"]


@pytest.mark.parametrize(
    ("node", "domain", "error"),
    [((30, 1), (6000, 600), PerNodeRateLimited), ((6000, 600), (30, 1), PerDomainRateLimited)],
)
async def test_who_waits_as_long_as_told_gets_through(
    pools: Pools, node: tuple[int, int], domain: tuple[int, int], error: type[PlexError]
) -> None:
    limiter = limiters(pools, node, domain)[0]
    one, its_domain = uuid7(), uuid7()
    await limiter.spend(one, its_domain)
    with pytest.raises(error) as refused:
        await limiter.spend(one, its_domain)
    wait = refused.value.extra["retry_after_s"]
    assert wait == 2
    await asyncio.sleep(wait / 2)
    with pytest.raises(error) as refused:
        await limiter.spend(one, its_domain)
    assert refused.value.extra["retry_after_s"] == 1
    await asyncio.sleep(wait / 2)
    await limiter.spend(one, its_domain)


async def test_without_its_database_nobody_reads(pools: Pools) -> None:
    limiter = limiters(pools, (60, 10), (60, 10))[0]
    pools[0].terminate()
    with pytest.raises(LimiterUnavailable):
        await limiter.spend(uuid7(), uuid7())
