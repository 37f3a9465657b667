"""The event stream port: a pull consumer that mesh opens, read over NATS. This process can publish nothing there."""

import asyncio
import contextlib
import json
import re
from collections import deque
from collections.abc import AsyncGenerator
from uuid import uuid4

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from libs.errors import EventStreamUnavailable, PlexError
from libs.nats import Bus
from libs.rpc.channel import Peer
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from services.gateway.ports import Delivery, Message

BATCH = 1000
# Asked for again at half of it, so that there is always a pull waiting on the broker.
AGAIN = 500
EXPIRES_S = 20
HEARTBEAT_S = 1
LOOK_EVERY_S = 0.1
# Without a heartbeat for so long the consumer or the broker is gone.
SILENT_S = 3.0
# Messages wait for this consumer, and none comes: the broker cannot read what it stored.
STALLED_S = 3.0
SECOND_NS = 1_000_000_000
OVER = frozenset({"404", "408"})
ALIVE = "100"
LAST_PLACE = 2**63 - 1
# $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<time>.<pending>
PLACE = re.compile(r"\$JS\.ACK\.(?:[^.]+\.)+[0-9]{1,19}\.([0-9]{1,19})\.[0-9]{1,19}\.[0-9]{1,19}\.([0-9]{1,19})")


class JetStreamEvents:
    """The stream as this process reads it."""

    def __init__(self, bus: Bus, mesh: Peer) -> None:
        self._bus = bus
        self._delivery = mesh_pb2_grpc.DeliveryServiceStub(mesh)
        self.floor = 0

    async def follow(self, after: int | None, back_s: int) -> AsyncGenerator[Delivery, None]:
        """Yield what comes after a sequence, or from some seconds ago on; nothing of it is believed."""
        opened = await self._open(0 if after is None else after + 1, back_s)
        if after is not None and opened.last_sequence < after:
            # What stands there now is not what was read: read all again, and let mesh's log say what is new.
            opened = await self._open(0, back_s)
        self.floor = opened.floor
        reader = Reader(self._bus, opened.name, opened.pending)
        try:
            if not opened.pending:
                yield Delivery((), more=False)
            async for delivery in reader.read():
                yield delivery
        except (NatsError, OSError, TimeoutError) as error:
            raise EventStreamUnavailable(type(error).__name__) from error
        finally:
            await reader.close()

    async def _open(self, start: int, back_s: int) -> mesh_pb2.OpenConsumerResponse:
        request = mesh_pb2.OpenConsumerRequest(start_sequence=start, back_seconds=back_s)
        try:
            return await self._delivery.OpenConsumer(request)
        except PlexError as error:
            raise EventStreamUnavailable(error.code) from error


class Reader:
    """One consumer; whatever comes to its inbox and is not what was asked for ends it."""

    def __init__(self, bus: Bus, consumer: str, pending: int = 0) -> None:
        self._bus = bus
        self._consumer = consumer
        self._inbox = f"{bus.inbox}.{uuid4().hex}"
        self._received: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._granted = 0
        self._pending = pending
        self._over = ""
        self._subscription: Subscription | None = None

    async def read(self) -> AsyncGenerator[Delivery, None]:
        """Yield what arrives, as much at once as there is."""
        client, generation = self._bus.client, self._bus.generation
        self._subscription = await client.subscribe(self._inbox, cb=self._take, pending_bytes_limit=256 * 1024 * 1024)
        await self._pull()
        loop = asyncio.get_running_loop()
        moved = heard = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._arrived.wait()
            if self._arrived.is_set():
                heard = loop.time()
                self._arrived.clear()
            if self._received:
                moved = loop.time()
                messages = tuple(self._received)
                self._received.clear()
                yield Delivery(messages, more=self._pending > 0)
            elif self._pending and loop.time() - moved > STALLED_S:
                raise EventStreamUnavailable("the stream is stalled")
            if loop.time() - heard > SILENT_S or not client.is_connected or generation != self._bus.generation:
                raise EventStreamUnavailable("the broker is away, or was")
            if self._over:
                raise EventStreamUnavailable(f"the consumer ended: {self._over}")
            if self._granted < AGAIN:
                await self._pull()

    async def _pull(self) -> None:
        request = {"batch": BATCH, "expires": EXPIRES_S * SECOND_NS, "idle_heartbeat": HEARTBEAT_S * SECOND_NS}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{self._consumer}"
        await self._bus.client.publish(subject, json.dumps(request).encode(), reply=self._inbox)
        self._granted += BATCH

    async def _take(self, message: Msg) -> None:
        headers = message.headers or {}
        found = PLACE.fullmatch(message.reply)
        # What comes from the stream is no word of the broker's own, whatever its headers say.
        status = "" if found else headers.get("Status", "")
        if status == ALIVE:
            pass
        elif status in OVER:
            # A pull that ran out says how many messages it had not delivered.
            left = headers.get("Nats-Pending-Messages", str(BATCH))
            if re.fullmatch("[0-9]{1,9}", left) and int(left) <= self._granted:
                self._granted -= int(left)
            else:
                self._over = "more is left than was asked for"
        elif status:
            self._over = status
        elif not found or not 0 < int(found[1]) <= LAST_PLACE:
            self._over = "a message without a place"
        elif self._granted <= 0:
            self._over = "more came than was asked for"
        else:
            self._pending = int(found[2])
            self._received.append(Message(int(found[1]), message.subject, message.data))
            self._granted -= 1
        self._arrived.set()

    async def close(self) -> None:
        """Stop listening; the consumer goes by itself when nobody pulls from it."""
        if self._subscription is not None:
            with contextlib.suppress(NatsError, OSError):
                await self._subscription.unsubscribe()
