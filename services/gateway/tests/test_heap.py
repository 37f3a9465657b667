"""Garbage is looked for between waves of streams, and nothing that ended stays for good."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from services.gateway import heap

pytestmark = pytest.mark.unit


class Cycle:
    """Refers to itself, as a connection does."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_set_aside_and_ended_is_found_at_the_next_time() -> None:
    one = Cycle()
    gone = weakref.ref(one)
    heap.settle()
    del one
    gc.collect()
    assert gone() is not None
    heap.settle()
    assert gone() is None


async def test_it_settles_when_a_wave_is_over_and_not_again_without_one() -> None:
    settled: list[int] = []
    opened, rising = 0, True

    def count() -> int:
        nonlocal opened
        opened += 60 if rising else 0
        return opened

    running = asyncio.ensure_future(heap.keep_settled(count, lambda: 400, lambda: settled.append(opened), 0.001))
    await asyncio.sleep(0.05)
    assert len(settled) == 1
    rising = False
    await asyncio.sleep(0.05)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert settled[1:] == [opened]
