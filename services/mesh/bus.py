"""The stream `EVENTS` on NATS JetStream. mesh alone may publish to it, and makes the gateways' consumers."""

import asyncio
import datetime
import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from libs.errors import EventBusUnavailable
from libs.nats import Bus
from services.mesh.model import Logged, StreamState

STREAM = "EVENTS"
# Half of what gateways wait for the note of a place: one acknowledgement that never comes must not hold up the notes of
# all that came with it beyond that.
ACK_WITHIN_S = 1.0
SECOND_NS = 1_000_000_000
NOT_FOUND = 10059
GONE = "503"
SETTINGS: dict[str, Any] = {
    "name": STREAM,
    "subjects": ["events.>"],
    "retention": "limits",
    "storage": "file",
    # One replica as one server has no more. With three servers this is three; the log refills what a lost one had.
    "num_replicas": 1,
    # Envelopes are good for five minutes and gateways keep as long; the rest is for one that is behind.
    "max_age": 15 * 60 * SECOND_NS,
    # A flood by who holds the broker must not fill the disk; what it pushes out comes from the log.
    "max_bytes": 2 * 1024**3,
    "discard": "old",
    # An envelope is 60,000 bytes at most; subject and headers come on top.
    "max_msg_size": 65_536,
    # A client that sends once more after a lost connection does so within seconds. Mesh never relies on it: what was
    # not acknowledged is published under a new message id, at a new sequence, because gateways refuse the earlier one.
    "duplicate_window": 120 * SECOND_NS,
    "allow_direct": True,
    "allow_rollup_hdrs": False,
}
CONSUMER: dict[str, Any] = {
    "ack_policy": "none",
    "replay_policy": "instant",
    "filter_subject": "events.>",
    # Gone a moment after its gateway; a new one begins where the old one was.
    "inactive_threshold": 30 * SECOND_NS,
    "mem_storage": True,
    "max_waiting": 16,
}


class JetStream:
    """The stream."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._inbox = f"{bus.inbox}.ack{uuid4().hex}"
        self._subscribed = 0
        self._count = 0

    async def publish(self, rows: Sequence[Logged]) -> list[int | Exception]:
        """Publish in order and return the acknowledged sequences; what was not acknowledged is an exception."""
        futures = []
        try:
            await self._listen()
            client, loop = self._bus.client, asyncio.get_running_loop()
            for row in rows:
                self._count += 1
                token = str(self._count)
                self._waiting[token] = future = loop.create_future()
                futures.append((token, future))
                headers = {"Nats-Msg-Id": f"{row.id}/{token}/{self._inbox[-8:]}"}
                await client.publish(row.subject, row.envelope, reply=f"{self._inbox}.{token}", headers=headers)
        except (NatsError, OSError, EventBusUnavailable) as error:
            failed = EventBusUnavailable(type(error).__name__)
            for _, future in futures:
                if not future.done():
                    future.set_exception(failed)
        if futures:
            await asyncio.wait([future for _, future in futures], timeout=ACK_WITHIN_S)
        outcomes: list[int | Exception] = [EventBusUnavailable("not sent")] * (len(rows) - len(futures))
        return [self._outcome(token, future) for token, future in futures] + outcomes

    def _outcome(self, token: str, future: "asyncio.Future[int]") -> int | Exception:
        self._waiting.pop(token, None)
        if not future.done():
            future.cancel()
            return EventBusUnavailable("no acknowledgement")
        failed = future.exception()
        if failed is None:
            return future.result()
        return failed if isinstance(failed, Exception) else EventBusUnavailable("not sent")

    async def _listen(self) -> None:
        client = self._bus.client
        if self._subscribed == 0:
            await client.subscribe(f"{self._inbox}.*", cb=self._acknowledged)
            self._subscribed = 1

    async def _acknowledged(self, message: Msg) -> None:
        future = self._waiting.get(message.subject.rsplit(".", 1)[1])
        if future is None or future.done():
            return
        if message.headers and message.headers.get("Status") == GONE:
            future.set_exception(EventBusUnavailable("there is no stream"))
            return
        try:
            answer = json.loads(message.data)
            # A duplicate would stand at a sequence that was refused before.
            if "error" in answer or answer.get("duplicate"):
                future.set_exception(EventBusUnavailable(str(answer.get("error", {}).get("err_code", "duplicate"))))
            else:
                future.set_result(int(answer["seq"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            future.set_exception(EventBusUnavailable("not an acknowledgement"))

    async def state(self) -> StreamState | None:
        """Return how the stream is; None when there is none."""
        answer = await self._bus.request(f"$JS.API.STREAM.INFO.{STREAM}", {"deleted_details": True})
        if answer.get("error", {}).get("err_code") == NOT_FOUND:
            return None
        try:
            state = _checked(answer)["state"]
            return StreamState(int(state["first_seq"]), int(state["last_seq"]), tuple(state.get("deleted") or ()))
        except (ValueError, KeyError, TypeError) as error:
            raise EventBusUnavailable("the broker's answer cannot be read") from error

    async def create(self, first: int) -> None:
        """Make the stream; its first message gets the sequence `first`. Changes the settings of one that is there."""
        answer = await self._bus.request(f"$JS.API.STREAM.CREATE.{STREAM}", SETTINGS | {"first_seq": first})
        if "error" in answer:
            _checked(await self._bus.request(f"$JS.API.STREAM.UPDATE.{STREAM}", SETTINGS))

    async def restart(self, first: int) -> None:
        """Empty the stream; its next message gets the sequence `first`."""
        _checked(await self._bus.request(f"$JS.API.STREAM.PURGE.{STREAM}", {"seq": first}))

    async def read(self, first: int, count: int) -> list[tuple[int, bytes]]:
        """Return up to `count` messages from a sequence on; what cannot be read is left out."""
        client, found = self._bus.client, []
        inbox = f"{self._bus.inbox}.read{uuid4().hex}"
        subscription = await client.subscribe(inbox)
        try:
            request = json.dumps({"seq": first, "batch": count}).encode()
            await client.publish(f"$JS.API.DIRECT.GET.{STREAM}", request, reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=ACK_WITHIN_S)
                if "Nats-Sequence" not in (message.headers or {}):
                    break
                found.append((int((message.headers or {})["Nats-Sequence"]), message.data))
        except (NatsError, OSError, TimeoutError, ValueError):
            # What was not read counts as lost; publishing it once more does no harm.
            return found
        finally:
            await subscription.unsubscribe()
        return found

    async def open_consumer(self, start: int, back: datetime.timedelta) -> tuple[str, int]:
        """Open a pull consumer from a sequence on, or from a time ago for 0; returns its name and what waits for it."""
        name = f"gateway-{uuid4().hex}"
        where: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": start}
        if not start:
            since = datetime.datetime.now(datetime.UTC) - back
            where = {"deliver_policy": "by_start_time", "opt_start_time": since.isoformat().replace("+00:00", "Z")}
        config = {"stream_name": STREAM, "config": CONSUMER | where | {"name": name}, "action": "create"}
        made = _checked(await self._bus.request(f"$JS.API.CONSUMER.CREATE.{STREAM}.{name}.events.>", config))
        return name, int(made["num_pending"])


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise EventBusUnavailable(str(answer["error"].get("description", "refused")))
    return answer
