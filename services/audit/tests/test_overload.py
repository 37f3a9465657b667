"""More than audit can take is refused before anything is done for it; what was taken is durable in time."""

import asyncio
import time
import uuid

import asyncpg
import pytest

from libs.audit import DEADLINE_S
from libs.errors import AuditUnavailable
from services.audit.model import Draft
from services.audit.store import PgStore
from services.audit.tests.fakes import trusting
from services.audit.tests.test_store import entry, running, whole
from services.audit.writer import LONGEST_QUEUE, GroupWriter

pytestmark = pytest.mark.integration

# Of a machine on which the whole of all tests runs beside this one.
SLACK = 5


async def test_ten_times_the_queue_is_refused_at_once_and_what_was_taken_is_written_as_fast_as_ever(
    pool: asyncpg.Pool,
) -> None:
    chain, answers = str(uuid.uuid4()), list[int | str]()

    async def append(draft: Draft) -> None:
        try:
            answers.append(await writer.append(draft))
        except AuditUnavailable as error:
            answers.append(str(error))

    async def load(count: int) -> float:
        drafts = [entry(chain) for _ in range(count)]
        began = time.monotonic()
        await asyncio.gather(*map(append, drafts))
        return time.monotonic() - began

    async with running(GroupWriter(pool, trusting(pool))) as writer:
        alone = await load(LONGEST_QUEUE)
        assert answers == list(range(1, LONGEST_QUEUE + 1))
        answers.clear()
        beside = await load(10 * LONGEST_QUEUE)
    # Nobody who was refused waited for a row of anybody else.
    assert answers[:-LONGEST_QUEUE] == ["the queue is full"] * (9 * LONGEST_QUEUE)
    assert answers[-LONGEST_QUEUE:] == list(range(LONGEST_QUEUE + 1, 2 * LONGEST_QUEUE + 1))
    assert await whole(PgStore(pool), chain) == list(range(1, 2 * LONGEST_QUEUE + 1))
    assert alone < DEADLINE_S * SLACK
    assert beside < DEADLINE_S * SLACK
