"""The reader of the bus: what comes to its inbox is not believed, and what was not asked for ends it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from devstack.process import until
from libs.errors import EventStreamUnavailable
from plexsphere.mesh.v1 import mesh_pb2
from services.gateway import bus
from services.gateway.bus import BATCH, JetStreamEvents
from services.gateway.ports import Message
from services.gateway.tests.fakes import FakePeer

pytestmark = pytest.mark.unit


@dataclass
class FakeMsg:
    """A message of the broker."""

    reply: str = ""
    headers: dict[str, str] | None = None
    subject: str = "events.x"
    data: bytes = b"{}"


@dataclass
class FakeBus:
    """A connection to a broker, its client and its one subscription."""

    generation: int = 1
    inbox: str = "_INBOX.gateway"
    is_connected: bool = True
    pulls: int = 0
    take: Callable[[Any], Awaitable[None]] | None = None
    read: list[Message] = field(default_factory=list)

    @property
    def client(self) -> Any:
        return self

    async def subscribe(self, _: str, cb: Any, **__: Any) -> Any:
        self.take = cb
        return self

    async def unsubscribe(self) -> None:
        return

    async def publish(self, *_: Any, **__: Any) -> None:
        self.pulls += 1

    async def bring(self, message: FakeMsg) -> None:
        assert self.take is not None
        await self.take(message)


def at(sequence: object, pending: int = 0) -> FakeMsg:
    return FakeMsg(f"$JS.ACK.EVENTS.gateway-1.1.{sequence}.1.1700000000000000000.{pending}")


def opened(last: int = 0, pending: int = 0, floor: int = 0) -> FakePeer:
    answer = mesh_pb2.OpenConsumerResponse(name="gateway-1", last_sequence=last, pending=pending, floor=floor)
    return FakePeer(answers={"OpenConsumer": lambda _: answer})


@contextlib.asynccontextmanager
async def reading(broker: FakeBus, mesh: FakePeer, after: int | None = None) -> Any:
    """Read for the block; yields the task, which ends when the reader does."""
    events = JetStreamEvents(cast("Any", broker), cast("Any", mesh))

    async def read() -> None:
        async with contextlib.aclosing(events.follow(after, 300)) as deliveries:
            async for delivery in deliveries:
                broker.read.extend(delivery.messages)

    task = asyncio.ensure_future(read())
    await until(lambda: broker.pulls or task.done(), 1)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_the_consumer_brings_is_handed_on_with_its_place() -> None:
    broker = FakeBus()
    async with reading(broker, opened()):
        for sequence in (7, 2**63 - 1):
            await broker.bring(at(sequence))
        await until(lambda: len(broker.read) == 2, 1)
    assert [message.sequence for message in broker.read] == [7, 2**63 - 1]


@pytest.mark.parametrize("status", ["100", "408", "409", "\u00b2"])
async def test_a_stored_message_does_not_speak_for_the_broker(status: str) -> None:
    broker = FakeBus()
    async with reading(broker, opened()) as task:
        stored = at(7)
        stored.headers = {"Status": status, "Nats-Pending-Messages": "999999999"}
        await broker.bring(stored)
        await until(lambda: len(broker.read) == 1, 1)
        assert not task.done()
    assert broker.read[0].sequence == 7


JUNK = {
    "no place": FakeMsg(),
    "a place of something else": FakeMsg("_INBOX.mesh.x"),
    "a negative sequence": at(-5),
    "sequence zero": at(0),
    "a sequence that no database has": at(2**63),
    "a sequence that no message can carry": at(2**64),
    "a sequence in other digits": at("\u0661"),
    "more left over than was asked for": FakeMsg(headers={"Status": "408", "Nats-Pending-Messages": str(10 * BATCH)}),
    "a negative rest": FakeMsg(headers={"Status": "408", "Nats-Pending-Messages": "-1000"}),
    "a rest that is no number": FakeMsg(headers={"Status": "408", "Nats-Pending-Messages": "x"}),
}


@pytest.mark.parametrize("name", JUNK)
async def test_junk_in_the_inbox_ends_the_reader_and_nothing_of_it_is_read(name: str) -> None:
    broker = FakeBus()
    async with reading(broker, opened()) as task:
        await broker.bring(JUNK[name])
        with pytest.raises(EventStreamUnavailable):
            await asyncio.wait_for(task, 1)
    assert broker.read == []


async def test_who_sends_more_than_was_asked_for_fills_no_memory() -> None:
    broker = FakeBus()
    async with reading(broker, opened()) as task:
        # The reader has no turn meanwhile, as when the gate is busy.
        for sequence in range(1, 3 * BATCH):
            await broker.bring(at(sequence))
        with pytest.raises(EventStreamUnavailable, match="more came"):
            await asyncio.wait_for(task, 1)
    assert len(broker.read) <= BATCH


async def test_what_waits_and_never_comes_is_a_stalled_stream() -> None:
    broker = FakeBus()
    async with reading(broker, opened(last=9, pending=9)) as task:
        for _ in range(int(bus.STALLED_S / 0.2) + 10):
            if task.done():
                break
            await broker.bring(FakeMsg(headers={"Status": bus.ALIVE}))
            await asyncio.sleep(0.2)
        with pytest.raises(EventStreamUnavailable, match="stalled"):
            await asyncio.wait_for(task, 1)


async def test_a_stream_that_ends_before_what_was_read_is_read_again_from_the_beginning() -> None:
    mesh = opened(last=10)
    async with reading(FakeBus(), mesh, after=100):
        pass
    assert [request.start_sequence for _, request, _ in mesh.asked] == [101, 0]
    mesh = opened(last=100)
    async with reading(FakeBus(), mesh, after=100):
        pass
    assert [request.start_sequence for _, request, _ in mesh.asked] == [101]
