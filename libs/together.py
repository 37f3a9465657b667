"""Work that is done for many at once: what is asked for while a batch is under way goes together into the next one."""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from libs.errors import Unavailable

Key = TypeVar("Key")
Kept = TypeVar("Kept")
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Each(Generic[Key, Kept]):
    """One for each key, for as long as somebody uses it."""

    def __init__(self, make: Callable[[Key], Kept]) -> None:
        self._make = make
        self._kept: WeakValueDictionary[Key, Kept] = WeakValueDictionary()

    def __getitem__(self, key: Key) -> Kept:
        """Return what is for a key."""
        if (kept := self._kept.get(key)) is None:
            kept = self._kept[key] = self._make(key)
        return kept


class Together(Generic[Asked, Answer]):
    """Answers each by one batch at a time; nothing waits that could start, and nothing is asked twice.

    `work` gets what is asked, in order, and returns as many answers; an answer that is an exception is raised for its
    asker alone. When `work` itself raises Unavailable, that is raised for all of its batch; after anything else each is
    asked for alone.
    """

    def __init__(self, work: Callable[[list[Asked]], Awaitable[Sequence[Answer | Exception]]], most: int = 64) -> None:
        self._work = work
        self._most = most
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._busy = False
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """Return the answer to one; who asks alone has it worked for in its own trace and within its own deadline."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._busy:
            return await future
        self._busy = True
        try:
            # Who asks at the same moment goes along.
            await asyncio.sleep(0)
            if len(self._waiting) == 1:
                self._waiting = []
                await self._answer([(asked, future)])
        except BaseException:  # cancelled too: nobody is left who would take the answer
            future.cancel()
            raise
        finally:
            self._hand_on()
        return await future

    def _hand_on(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            # Of no caller's context: the deadline and the trace of one are not those of the others.
            self._worker = asyncio.get_running_loop().create_task(self._serve(), context=contextvars.Context())

    async def _serve(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                # Who has gone away meanwhile is not worked for.
                if batch := [(asked, future) for asked, future in batch if not future.done()]:
                    await self._answer(batch)
        finally:
            self._busy = False

    async def _answer(self, batch: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        answers = await self._answers([asked for asked, _ in batch])
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def _answers(self, asked: list[Asked]) -> Sequence[Answer | Exception]:
        try:
            answers = await self._work(asked)
            if len(answers) != len(asked):
                # Nobody may be left waiting for an answer that never comes.
                raise LookupError("not as many answers as were asked for")  # noqa: TRY301 — raised where it was asked
        except asyncio.CancelledError:
            # A call below was ended, as when its channel is closed; nobody asked for this worker's own end.
            if (worker := asyncio.current_task()) is None or worker.cancelling():
                raise
            return [Unavailable("the work was ended")] * len(asked)
        except Unavailable as error:
            return [error] * len(asked)
        except Exception as error:  # noqa: BLE001 — it is raised where it was asked for
            if len(asked) == 1:
                return [error]
            # What is wrong with one must not keep the others from their answers.
            return [answer for one in asked for answer in await self._answers([one])]
        return answers


@dataclass
class Rank:
    """Those who go abreast, and how many of them are still on their way."""

    left: int = 0


class Abreast:
    """Lets those who come meanwhile go on abreast, so that what each asks for on its way is asked for together.

    So many ranks are on their way at a time, one of them while the other waits for disks; a rank has `most` at most.
    """

    def __init__(self, ranks: int = 2, most: int = 32) -> None:
        self._free = ranks
        self._most = most
        self._waiting: deque[asyncio.Future[Rank]] = deque()

    @contextlib.asynccontextmanager
    async def rank(self) -> AsyncIterator[None]:
        """Wait for a rank's turn, and be in it for the block."""
        mine: asyncio.Future[Rank] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._go()
        try:
            await mine
            yield
        finally:
            # Also for who was given a place and cancelled before it was taken.
            if mine.done() and not mine.cancelled():
                self._leave(mine.result())

    def _go(self) -> None:
        while self._free and self._waiting:
            going = [mine for mine in self._take() if not mine.done()]
            if going:
                self._free -= 1
                rank = Rank(len(going))
                for mine in going:
                    mine.set_result(rank)

    def _take(self) -> list["asyncio.Future[Rank]"]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]

    def _leave(self, rank: Rank) -> None:
        rank.left -= 1
        if not rank.left:
            self._free += 1
            self._go()
