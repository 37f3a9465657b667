"""The edge in front of a bench, and nodes on their streams."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from aiohttp import ClientError
from aiohttp.test_utils import TestClient

from devstack.process import until
from libs.custody import Secret
from libs.ids import uuid7
from libs.nsk import format_bearer
from services.gateway.credentials import AssertionCache
from services.gateway.tests.fakes import FakePeer
from services.gateway.tests.five import Bench

NODE, OTHER = uuid7(), uuid7()
PROJECT = uuid7()


def bearer(node: UUID) -> dict[str, str]:
    return {"Authorization": "Bearer " + format_bearer("dev", node, Secret(bytes(32)))}


@dataclass
class Listener:
    """A node on its stream."""

    answer: Any
    frames: list[dict[str, str]] = field(default_factory=list)
    comments: int = 0
    ended: bool = False

    async def read(self) -> None:
        frame: dict[str, str] = {}
        with contextlib.suppress(ConnectionError, ClientError, asyncio.CancelledError):
            async for line in self.answer.content:
                text = line.decode().rstrip("\n")
                if not text and frame:
                    self.frames.append(frame)
                    frame = {}
                elif text.startswith(":"):
                    self.comments += 1
                elif text:
                    name, _, value = text.partition(": ")
                    frame[name] = value
        self.ended = True

    @property
    def sequences(self) -> list[int]:
        return [int(frame["id"]) for frame in self.frames if "id" in frame]


@dataclass
class Desk:
    """The edge in front of a bench."""

    bench: Bench
    client: TestClient[Any, Any]
    peer: FakePeer = field(default_factory=FakePeer)
    cache: AssertionCache = field(default_factory=AssertionCache)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def listen(self, node: UUID = NODE, after: str | None = None) -> Listener:
        headers = bearer(node) | ({} if after is None else {"Last-Event-ID": after})
        answer = await self.client.get(f"/v1/nodes/{node}/events", headers=headers)
        assert answer.status == 200, await answer.text()
        listener = Listener(answer)
        self.tasks.append(asyncio.ensure_future(listener.read()))
        await until(lambda: listener.comments, 2)
        return listener

    def publish(self, scope: str = "", **more: Any) -> int:
        mesh = self.bench.mesh
        return mesh.put(mesh.sign(scope=scope or f"domain:{mesh.domain}", **more))
