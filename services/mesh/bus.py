"""The stream `EVENTS` on NATS JetStream. mesh alone may publish to it, and makes the gateways' consumers."""

import datetime
import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

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
SETTINGS: dict[str, Any] = {
    "name": STREAM,
    "subjects": ["events.>"],
    "retention": "limits",
    "storage": "file",
    # Envelopes are good for five minutes and gateways keep as long; the rest is for one that is behind.
    "max_age": 15 * 60 * SECOND_NS,
    # A flood by who holds the broker must not fill the disk; what it pushes out comes from the log.
    "max_bytes": 2 * 1024**3,
    "discard": "old",
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "no_ack": False,
    # An envelope is 60,000 bytes at most; subject and headers come on top.
    "max_msg_size": 65_536,
    # What is published together is stored together, with one write to the disk.
    "allow_atomic": True,
    # Mesh sends no message ids: what was not acknowledged is published at a new sequence, because gateways refuse the
    # earlier one. The shortest window is the one that costs least.
    "duplicate_window": SECOND_NS,
    "allow_direct": True,
    "allow_rollup_hdrs": False,
}
# Settings that are not ours and would change what is stored, or end that anything is.
FOREIGN = ("sealed", "subject_transform", "republish", "mirror", "sources")
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

    def __init__(self, bus: Bus, replicas: int) -> None:
        self._bus = bus
        self._settings = SETTINGS | {"num_replicas": replicas}

    async def publish(self, rows: Sequence[Logged]) -> list[int]:
        """Publish in order, all or nothing, and return the acknowledged sequences.

        One atomic batch (NATS ADR-50): the broker writes to its disk once, and answers once.
        """
        batch, size = uuid4().hex, len(rows)
        try:
            client = self._bus.client
            for turn, row in enumerate(rows[:-1], 1):
                await client.publish(row.subject, row.envelope, headers=_member(batch, turn))
            commit = _member(batch, size) | {"Nats-Batch-Commit": "1"}
            answer = await client.request(rows[-1].subject, rows[-1].envelope, timeout=ACK_WITHIN_S, headers=commit)
            last, count = _acknowledged(answer.data)
        except (NatsError, OSError, TimeoutError) as error:
            raise EventBusUnavailable(type(error).__name__) from error
        if count != size:
            raise EventBusUnavailable("not all was acknowledged")
        return list(range(last - size + 1, last + 1))

    async def state(self) -> StreamState | None:
        """Return how the stream is; None when there is none."""
        answer = await self._bus.request(f"$JS.API.STREAM.INFO.{STREAM}", {"deleted_details": True})
        if answer.get("error", {}).get("err_code") == NOT_FOUND:
            return None
        try:
            state = _checked(answer)["state"]
            deleted, config = tuple(state.get("deleted") or ()), answer["config"]
            ours = all(config.get(name, False) == value for name, value in self._settings.items())
            ours = ours and not any(config.get(name) for name in FOREIGN)
            return StreamState(int(state["first_seq"]), int(state["last_seq"]), deleted, ours)
        except (ValueError, KeyError, TypeError) as error:
            raise EventBusUnavailable("the broker's answer cannot be read") from error

    async def create(self, first: int) -> None:
        """Make the stream; its first message gets the sequence `first`. Changes the settings of one that is there."""
        answer = await self._bus.request(f"$JS.API.STREAM.CREATE.{STREAM}", self._settings | {"first_seq": first})
        if "error" in answer:
            _checked(await self._bus.request(f"$JS.API.STREAM.UPDATE.{STREAM}", self._settings))

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


def _member(batch: str, turn: int) -> dict[str, str]:
    return {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(turn)}


def _acknowledged(data: bytes) -> tuple[int, int]:
    """Return the last sequence and the number of messages of a batch that the broker says it stored."""
    try:
        answer = _checked(json.loads(data))
        return int(answer["seq"]), int(answer["count"])
    except (ValueError, KeyError, TypeError) as error:
        raise EventBusUnavailable("not an acknowledgement") from error


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise EventBusUnavailable(str(answer["error"].get("description", "refused")))
    return answer
