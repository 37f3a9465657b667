"""A Service of Kubernetes on this machine: one address before several replicas, which come and go."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Self

CHUNK = 64 * 1024


@dataclass
class Virtual:
    """One address. A new connection goes to one of `behind`; an open one stays where it is, whatever comes."""

    port: int
    behind: list[int] = field(default_factory=list)
    _open: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            async with self._behind() as (there, back), asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, back))
                group.create_task(_carry(there, writer))
        writer.close()

    @contextlib.asynccontextmanager
    async def _behind(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        there, back = await asyncio.open_connection("127.0.0.1", random.choice(self.behind))
        try:
            yield there, back
        finally:
            back.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until they end; what breaks on one side breaks on the other."""
    try:
        while some := await reader.read(CHUNK):
            writer.write(some)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
