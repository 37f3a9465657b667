"""F-2: whoever reads in bulk gets what the limits let out and not one more, and slows nobody else."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.freeze import running, send
from tests.e2e.outside import Answer, Node
from tests.e2e.stories.main_job import SECRET_NAME
from tests.e2e.threats.secrets.conftest import REST, Stage, configured, counted
from tests.e2e.threats.secrets.crowd import plant

pytestmark = pytest.mark.e2e

NODE_BURST, DOMAIN_BURST, NODES, TIMES = 6, 24, 200, 50
AT_ONCE = 64
LIMITED = """
SELECT context -> 'limiter' ->> 0 AS code, count(*) AS rows FROM audit.entries
WHERE chain = $1 AND context -> 'action' ->> 0 = 'secret.read_limited' AND seq > $2 GROUP BY 1
"""
REFILLS_EVERY_S = 60


@pytest.fixture
async def strict(stage: Stage) -> AsyncIterator[Stage]:
    """Limits that fill up by one a minute, so that no read of a test comes from the time that it takes."""
    shipped = stage.world.config("secrets")
    strict = configured(
        shipped, node_rate_per_minute=1, node_burst=NODE_BURST, domain_rate_per_minute=1, domain_burst=DOMAIN_BURST
    )
    await stage.world.restart("secrets", strict)
    try:
        await stage.back()
        await stage.rest()
        yield stage
    finally:
        await stage.world.restart("secrets", shipped)
        await stage.back()


async def flood(stage: Stage, nodes: list[Node], total: int, name: str = SECRET_NAME) -> list[Answer]:
    """Read as often in all as nodes can, in turn, so many at once."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Answer:
        async with turn:
            return await stage.read(nodes[number % len(nodes)], name)

    return await asyncio.gather(*map(one, range(total)))


async def test_fifty_times_the_limit_releases_the_limit_to_the_unit(strict: Stage) -> None:
    """One node, then 200 of a Domain; the Domain's limit is not drained by the node that is over its own."""
    stage, since = strict, await strict.rows()
    many = await plant(stage.dba, stage.story, NODES)
    await stage.rest()
    async with stage.accounted() as answers:
        began = time.monotonic()
        answers.extend(await flood(stage, [stage.story.node_a], NODE_BURST * TIMES))
        assert counted(answers) == {"200": NODE_BURST, "429 per_node_rate_limited": NODE_BURST * (TIMES - 1)}
        # Names that do not exist cost the same: nobody finds out which there are any faster.
        probing = await flood(stage, [stage.story.node_b], 3 * NODE_BURST, "no-such-name")
        assert counted(probing) == {"404 secret_not_found": NODE_BURST, "429 per_node_rate_limited": 2 * NODE_BURST}
        undisturbed = asyncio.create_task(steadily(stage))
        together = await flood(stage, many, DOMAIN_BURST * TIMES)
        released = counted(together)["200"]
        assert counted(together) == {
            "200": released, "429 per_domain_rate_limited": DOMAIN_BURST * TIMES - released
        }  # fmt: skip
        left, grown = DOMAIN_BURST - 2 * NODE_BURST, int((time.monotonic() - began) / REFILLS_EVERY_S)
        assert left <= released <= left + grown
        assert await undisturbed == {"200": NODE_BURST}
        # Whom the Domain's limit alone refused has lost nothing of its own.
        await stage.dba.execute(f"{REST} WHERE id = $1", stage.story.domain_id)
        served = {number % NODES for number, answer in enumerate(together) if answer.status == 200}
        others = [node for number, node in enumerate(many) if number not in served]
        again = await flood(stage, others[: DOMAIN_BURST // NODE_BURST], DOMAIN_BURST)
        assert counted(again) == {"200": DOMAIN_BURST}
        answers.extend([*probing, *together, *again])
    for answer in answers:
        assert answer.status != 429 or 1 <= int(answer.headers["Retry-After"]) <= REFILLS_EVERY_S
    await recorded(stage, since)


async def steadily(stage: Stage) -> Counter[str]:
    """Read in another Domain as often as its node may, one after the other."""
    node = stage.scene.story.node_a
    answers = []
    for _ in range(NODE_BURST):
        answers.append(await stage.read(node))
        assert node.open(answers[-1].body) == stage.scene.story.value
        await asyncio.sleep(0.05)
    return counted(answers)


async def recorded(stage: Stage, since: int) -> None:
    """See that thousands of refusals are one row a reason and minute, which whoever is drained does not take along."""
    await send(stage.world, "secrets", signal.SIGTERM)

    async def ended() -> bool:
        return "secrets" not in await running(stage.world)

    await eventually(ended)
    await stage.world.start("secrets")
    rows = {row["code"]: row["rows"] for row in await stage.dba.fetch(LIMITED, stage.story.domain_id, since)}
    assert rows.keys() == {"per_node_rate_limited", "per_domain_rate_limited"}
    assert max(rows.values()) <= 2
