"""Work that is done for many at once: what is asked for while a batch is under way goes together into the next one."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Together(Generic[Asked, Answer]):
    """Answers each by one batch at a time; nothing waits that could start, and nothing is asked twice.

    `work` gets what is asked, in order, and returns as many answers; an answer that is an exception is raised for its
    asker alone, and what `work` itself raises is raised for all of its batch.
    """

    def __init__(self, work: Callable[[list[Asked]], Awaitable[Sequence[Answer | Exception]]], most: int = 64) -> None:
        self._work = work
        self._most = most
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """Return the answer to one."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, future))
        if self._worker is None:
            # Of no caller's context: the deadline and the trace of one are not those of the others.
            self._worker = loop.create_task(self._serve(), context=contextvars.Context())
        return await future

    async def _serve(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                # Who has gone away meanwhile is not worked for.
                if batch := [(asked, future) for asked, future in batch if not future.done()]:
                    await self._answer(batch)
        finally:
            self._worker = None

    async def _answer(self, batch: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._work([asked for asked, _ in batch])
            if len(answers) != len(batch):
                # Nobody may be left waiting for an answer that never comes.
                raise LookupError("not as many answers as were asked for")  # noqa: TRY301 — raised where it was asked
        except Exception as error:  # noqa: BLE001 — it is raised where it was asked for
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
