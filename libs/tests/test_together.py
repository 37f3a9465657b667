"""What is asked at once is worked for together, and each gets its own answer."""

import asyncio
from contextvars import ContextVar

import pytest

from libs.errors import Unavailable
from libs.together import Abreast, Each, Together

pytestmark = pytest.mark.unit


class Doubling:
    """Doubles numbers, when it is let; the odd one out is refused alone, and a zero breaks the work."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.batches.append(numbers)
        await self.open.wait()
        if 0 in numbers:
            raise ZeroDivisionError
        return [ValueError(str(number)) if number % 2 else number * 2 for number in numbers]


async def test_what_is_asked_while_a_batch_is_under_way_goes_into_the_next() -> None:
    work = Doubling()
    together = Together(work)
    first = asyncio.create_task(together.ask(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(together.ask(number)) for number in (4, 6, 8)]
    await asyncio.sleep(0)
    work.open.set()
    assert list(await asyncio.gather(first, *others)) == [4, 8, 12, 16]
    assert work.batches == [[2], [4, 6, 8]]


CALLER: ContextVar[str] = ContextVar("caller", default="nobody")


async def test_who_asks_alone_is_worked_for_in_its_own_context_and_several_in_nobodys() -> None:
    seen = []

    async def work(numbers: list[int]) -> list[int]:
        await asyncio.sleep(0)
        seen.append((CALLER.get(), len(numbers)))
        return numbers

    together = Together(work)
    CALLER.set("me")
    assert await together.ask(1) == 1
    assert list(await asyncio.gather(together.ask(1), together.ask(2))) == [1, 2]
    assert seen == [("me", 1), ("nobody", 2)]


async def test_who_asks_alone_and_leaves_holds_up_nobody() -> None:
    work = Doubling()
    together = Together(work)
    first = asyncio.create_task(together.ask(2))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(together.ask(4))
    await asyncio.sleep(0.01)
    first.cancel()
    work.open.set()
    assert await second == 8
    assert work.batches == [[2], [4]]
    # Also who leaves before it has begun.
    third, fourth = asyncio.create_task(together.ask(6)), asyncio.create_task(together.ask(8))
    await asyncio.sleep(0)
    third.cancel()
    assert await fourth == 16


async def test_a_batch_has_a_largest_size() -> None:
    work = Doubling()
    work.open.set()
    together = Together(work, most=2)
    assert await asyncio.gather(*(together.ask(number) for number in (2, 4, 6))) == [4, 8, 12]
    assert [len(batch) for batch in work.batches] == [2, 1]


async def test_a_refusal_is_for_its_asker_and_so_is_what_breaks_the_work() -> None:
    work = Doubling()
    work.open.set()
    together = Together(work)
    even, odd = await asyncio.gather(together.ask(2), together.ask(3), return_exceptions=True)
    assert even == 4
    assert isinstance(odd, ValueError)
    answers = await asyncio.gather(*(together.ask(number) for number in (2, 0, 4)), return_exceptions=True)
    assert [type(one) for one in answers] == [int, ZeroDivisionError, int]
    assert await together.ask(2) == 4


async def test_what_cannot_be_had_is_not_asked_for_one_by_one() -> None:
    batches = []

    async def away(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        raise Unavailable

    together = Together(away)
    failed = await asyncio.gather(*(together.ask(number) for number in (1, 2, 3)), return_exceptions=True)
    assert {type(one) for one in failed} == {Unavailable}
    assert batches == [[1, 2, 3]]


async def test_who_leaves_takes_nobody_along_and_is_not_worked_for() -> None:
    work = Doubling()
    together = Together(work)
    first, second = asyncio.create_task(together.ask(2)), asyncio.create_task(together.ask(4))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting, leaving = asyncio.create_task(together.ask(6)), asyncio.create_task(together.ask(8))
    await asyncio.sleep(0)
    second.cancel()
    leaving.cancel()
    await asyncio.sleep(0)
    work.open.set()
    assert list(await asyncio.gather(first, waiting)) == [4, 12]
    assert work.batches == [[2, 4], [6]]


async def test_an_answer_that_is_missing_leaves_nobody_waiting() -> None:
    async def short(numbers: list[int]) -> list[int | Exception]:
        return [*numbers[1:]]

    together = Together(short)
    failed = await asyncio.gather(together.ask(2), together.ask(4), return_exceptions=True)
    assert [type(one) for one in failed] == [LookupError, LookupError]


async def test_who_comes_while_all_ranks_are_on_their_way_goes_abreast_with_the_others() -> None:
    abreast, ends, going = Abreast(ranks=2, most=3), [asyncio.Event() for _ in range(7)], list[int]()

    async def go(number: int) -> None:
        async with abreast.rank():
            going.append(number)
            await ends[number].wait()

    walkers = [asyncio.create_task(go(number)) for number in range(7)]
    await asyncio.sleep(0.01)
    assert going == [0, 1]
    ends[1].set()
    await asyncio.sleep(0.01)
    assert going == [0, 1, 2, 3, 4]
    walkers[5].cancel()
    ends[0].set()
    await asyncio.sleep(0.01)
    assert going == [0, 1, 2, 3, 4, 6]
    for end in ends:
        end.set()
    await asyncio.gather(*walkers, return_exceptions=True)
    async with asyncio.timeout(1), abreast.rank(), abreast.rank():
        pass


async def test_who_is_cancelled_with_its_turn_gives_it_back() -> None:
    abreast = Abreast(ranks=1)
    async with abreast.rank():
        waiting = asyncio.create_task(stand(abreast))
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(1), abreast.rank():
        pass


async def stand(abreast: Abreast) -> None:
    async with abreast.rank():
        await asyncio.sleep(10)


async def test_a_call_that_is_ended_below_is_a_refusal_and_ends_no_worker() -> None:
    ended = True

    async def work(numbers: list[int]) -> list[int]:
        await asyncio.sleep(0)
        if ended:
            raise asyncio.CancelledError
        return numbers

    together = Together(work)
    for answer in await asyncio.gather(together.ask(1), together.ask(2), return_exceptions=True):
        assert isinstance(answer, Unavailable)
    ended = False
    assert await together.ask(3) == 3


async def test_each_key_has_one_of_its_own_while_it_is_used() -> None:
    each: Each[int, Abreast] = Each(lambda _: Abreast())
    one, other = each[1], each[2]
    assert each[1] is one is not other
