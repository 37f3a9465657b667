"""The event streams of this process: one reader of the bus, the gate once per envelope, and fan-out in memory.

Each event is written to a stream's connection as it comes. A client that does not read fills its own buffer and is
dropped when that is full; nobody else waits for it.
"""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from libs.errors import EventStreamUnavailable, PlexError
from libs.telemetry import DELIVERED, REFUSALS, STREAMS, STREAMS_ENDED
from services.gateway.gate import Admitted, Gate, Message, Place
from services.gateway.refusals import RefusedEnvelopes
from services.gateway.ring import Entry, Ring

BACK_S = 300
BEAT_S = 25
BEAT = b":keep-alive\n\n"
RETRY_S = 0.25
PULSE_EVERY_S = 0.5
PULSES = 2
# A connection that has not taken this much is one whose client does not read.
MOST_UNREAD = 1024 * 1024
AT_ONCE = 100
LARGEST_CHECK = 500
FEED_GONE_S = 15.0
# Relations cannot be asked for so long: a restart of identity does not send the whole fleet back to it.
RELATIONS_GONE_S = 5.0
CATCH_UP_S = 1.0
# One reconciliation of a Domain goes out in this time; who comes within it gets that one.
RECONCILE_S = 10.0
RETRY_AFTER_MS = (500, 5000)

log = structlog.get_logger()


def chunk(data: bytes) -> bytes:
    """Return data as one HTTP chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


BEAT_CHUNK = chunk(BEAT)


@dataclass(eq=False, slots=True)
class Stream:
    """One node's open connection."""

    node_id: UUID
    place: Place
    digest: str
    transport: asyncio.WriteTransport
    chunked: bool
    ended: "asyncio.Future[str]"

    @property
    def scopes(self) -> tuple[str, str, str]:
        """What it receives."""
        return (f"node:{self.node_id}", f"project:{self.place.project_id}", f"domain:{self.place.domain_id}")

    def write(self, entries: Sequence[Entry], most_unread: int) -> None:
        """Write events in order, or drop a client that does not read."""
        if self.transport.is_closing():
            self.end("gone")
        elif self.transport.get_write_buffer_size() > most_unread:
            self.end("slow")
            self.transport.abort()
        elif len(entries) == 1:
            self.transport.write(entries[0].chunk if self.chunked else entries[0].frame)
        else:
            self.transport.write(b"".join(entry.chunk if self.chunked else entry.frame for entry in entries))

    def beat(self) -> None:
        """Write a comment, so that nobody on the way takes the connection for dead."""
        if self.transport.is_closing():
            self.end("gone")
        else:
            self.transport.write(BEAT_CHUNK if self.chunked else BEAT)

    def end(self, cause: str) -> None:
        """End the stream; only the first cause counts."""
        if not self.ended.done():
            self.ended.set_result(cause)


@dataclass
class Hub:
    """All streams, the ring behind them and the reader before them."""

    gate: Gate
    refusals: RefusedEnvelopes
    wall_ns: Callable[[], int] = time.time_ns
    clock: Callable[[], float] = time.monotonic
    most_unread: int = MOST_UNREAD
    feed_gone_s: float = FEED_GONE_S
    relations_gone_s: float = RELATIONS_GONE_S
    ring: Ring = field(init=False)
    opened: int = 0
    _read_up: bool = False
    _answered: bool = True
    _draining: bool = False
    _begun: bool = False
    _streams: dict[UUID, Stream] = field(default_factory=dict)
    _receivers: dict[tuple[UUID, str], set[Stream]] = field(default_factory=lambda: defaultdict(set))
    _beats: list[set[Stream]] = field(default_factory=lambda: [set() for _ in range(BEAT_S)])
    _feed_lost_at: float | None = None
    _reconciles: dict[UUID, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ring = Ring(self.clock)

    # Reading ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read the bus for as long as the process lives; while it cannot be read, nobody is told otherwise."""
        while True:
            try:
                await self._follow()
            except PlexError as error:
                self._read_up = False
                self._fail(error.code)
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        stream = self.gate.event_stream
        deliveries = stream.follow(self.ring.position if self._begun else None, BACK_S)
        async with contextlib.aclosing(deliveries):
            async for delivery in deliveries:
                if not self._begun:
                    first = delivery.messages[0].sequence - 1 if delivery.messages else stream.position
                    self.ring.begin(first)
                    self._begun = True
                for start in range(0, len(delivery.messages), LARGEST_CHECK):
                    await self._take(delivery.messages[start : start + LARGEST_CHECK])
                if not delivery.more and not self._read_up:
                    self._read_up = True
                    log.info("events.read_up", position=self.ring.position)
        raise EventStreamUnavailable("the stream ended")

    async def _take(self, messages: Sequence[Message]) -> None:
        gaps, before = [], self.ring.position
        for message in messages:
            if message.sequence > before + 1:
                gaps.append((before + 1, message.sequence - 1))
            before = max(before, message.sequence)
        passage = await self.gate.admit(messages, gaps, self.wall_ns())
        # Reading what was sent meanwhile, some of it is found too late. That is nobody's attack, and nobody has it.
        late = set() if self._read_up else await self.gate.late(passage.refused)
        for refusal in passage.refused:
            if refusal.late in late:
                self.ring.miss(refusal.late.domain_id, refusal.late.envelope.scope, refusal.sequence)
            else:
                REFUSALS.labels("mesh", refusal.reason).inc()
                self.refusals.add(refusal)
        for domain_id, trusted in passage.trusted.items():
            self.ring.untrust(domain_id, trusted)
            if trusted:
                self.refusals.learn(domain_id)
        entries = []
        for one in passage.admitted:
            if self.ring.add(entry := self._entry(one)):
                entries.append(entry)
                if one.envelope.type == "node_state_updated" and entry.scope == f"domain:{entry.domain_id}":
                    self._reconciles[entry.domain_id] = entry
        self.ring.reach(before)
        await self._fan_out(entries)

    def _entry(self, one: Admitted) -> Entry:
        # What the log vouches for is compact, so it has no line break that a frame could end at.
        frame = b"id: %d\nevent: %b\ndata: %b\n\n" % (one.sequence, one.envelope.type.encode(), one.data)
        age_s = max(0, self.wall_ns() - one.envelope.issued_ns) / 1e9
        return Entry(
            one.sequence, one.id, one.domain_id, one.envelope.scope, one.envelope.key_id, frame, chunk(frame),
            self.clock() - age_s,
        )  # fmt: skip

    async def _fan_out(self, entries: Iterable[Entry]) -> None:
        wanted: dict[Stream, list[Entry]] = {}
        for entry in entries:
            for stream in self._receivers.get((entry.domain_id, entry.scope), ()):
                wanted.setdefault(stream, []).append(entry)
        for turn, (stream, its) in enumerate(wanted.items(), 1):
            stream.write(its, self.most_unread)
            DELIVERED.inc(len(its))
            if turn % AT_ONCE == 0:
                await asyncio.sleep(0)

    # Streams ----------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether everything that was published is read, and would be believed."""
        return self._read_up and self._answered and not self._draining

    @property
    def held(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def require_ready(self) -> None:
        """Raise EventStreamUnavailable while events cannot be read, or may have been missed."""
        if not self.ready:
            raise EventStreamUnavailable

    async def can_resume(self, place: Place, scopes: Sequence[str], after: int) -> bool:
        """Whether the ring has everything after a sequence; waits a moment for what another process has read first."""
        deadline = self.clock() + CATCH_UP_S
        while after > self.ring.position and self.clock() < deadline:  # noqa: ASYNC110 — bounded, and rare
            await asyncio.sleep(RETRY_S)
        return after <= self.ring.position and self.ring.complete(place.domain_id, scopes, after)

    def reconciled(self, domain_id: UUID) -> int:
        """Return the sequence of a Domain's reconciliation of the last seconds; 0 when there was none."""
        entry = self._reconciles.get(domain_id)
        return entry.sequence if entry and entry.at >= self.clock() - RECONCILE_S else 0

    def open(self, stream: Stream) -> None:
        """Let a stream receive from now on; it replaces the node's earlier one."""
        if earlier := self._streams.get(stream.node_id):
            earlier.end("replaced")
            self.close(earlier)
        self._streams[stream.node_id] = stream
        self.opened += 1
        for scope in stream.scopes:
            self._receivers[stream.place.domain_id, scope].add(stream)
        self._beats[int(self.clock()) % BEAT_S].add(stream)
        STREAMS.inc()

    def close(self, stream: Stream) -> None:
        """Let go of a stream that ended."""
        if self._streams.get(stream.node_id) is not stream:
            return
        del self._streams[stream.node_id]
        for scope in stream.scopes:
            receivers = self._receivers[stream.place.domain_id, scope]
            receivers.discard(stream)
            if not receivers:
                del self._receivers[stream.place.domain_id, scope]
        for beat in self._beats:
            beat.discard(stream)
        STREAMS.dec()
        STREAMS_ENDED.labels(stream.ended.result() if stream.ended.done() else "gone").inc()

    def end_node(self, node_id: UUID, cause: str) -> None:
        """End a node's stream."""
        if stream := self._streams.get(node_id):
            stream.end(cause)

    def end_credential(self, digest: str) -> None:
        """End the streams that a credential opened."""
        for stream in list(self._streams.values()):
            if stream.digest == digest:
                stream.end("revoked")

    def _fail(self, cause: str) -> None:
        if self._streams:
            log.warning("events.lost", cause=cause, streams=len(self._streams))
        for stream in list(self._streams.values()):
            stream.end("unavailable")

    # In the background ------------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Keep every connection alive, each one every 25 seconds."""
        done = int(self.clock())
        while True:
            await asyncio.sleep(1)
            done = self.beat_since(done)

    def beat_since(self, done: int) -> int:
        """Beat those whose turn has come after a second of the clock; returns the second up to which this is done."""
        now = int(self.clock())
        for second in range(max(done, now - BEAT_S) + 1, now + 1):
            for stream in list(self._beats[second % BEAT_S]):
                stream.beat()
        return now

    async def pulse(self) -> None:
        """Ask the ports that only an event would ask, so that their loss is noticed while there is none."""
        missed = 0
        while True:
            await asyncio.sleep(PULSE_EVERY_S)
            try:
                await self.gate.nonce_store.check((), ())
                missed, self._answered = 0, True
            except PlexError as error:
                missed += 1
                if missed >= PULSES:
                    self._answered = False
                    self._fail(error.code)
            if self._feed_lost_at is not None and self.clock() - self._feed_lost_at > self.feed_gone_s:
                for stream in list(self._streams.values()):
                    stream.end("revocations_unknown")

    async def probe(self) -> None:
        """Ask the relation checker about one stream after the other: its loss ends them, and so does a denial."""
        answered = self.clock()
        while True:
            await asyncio.sleep(PULSE_EVERY_S)
            try:
                await self._ask_about_next()
                answered = self.clock()
            except PlexError as error:
                if self.clock() - answered > self.relations_gone_s:
                    self._fail(error.code)

    async def _ask_about_next(self) -> None:
        node_id = next(iter(self._streams), None)
        if node_id is None:
            return
        self._streams[node_id] = self._streams.pop(node_id)
        if node_id not in await self.gate.relation_checker.agents([node_id]):
            self.end_node(node_id, "revoked")

    def feed_lost(self) -> None:
        """Note that revocations are not heard."""
        if self._feed_lost_at is None:
            self._feed_lost_at = self.clock()

    async def feed_back(self) -> None:
        """Ask anew about everybody who is connected: something may have been revoked unheard."""
        if self._feed_lost_at is None:
            return
        node_ids = list(self._streams)
        agents = await self.gate.relation_checker.agents(node_ids) if node_ids else frozenset()
        for node_id in node_ids:
            if node_id not in agents:
                self.end_node(node_id, "revoked")
        self._feed_lost_at = None

    async def drain(self, within_s: float) -> None:
        """End all streams spread over some seconds, and tell each when to come back."""
        self._draining = True
        streams = list(self._streams.values())
        random.shuffle(streams)
        pause = within_s / max(1, len(streams))
        for turn, stream in enumerate(streams, 1):
            retry = f"retry: {random.randint(*RETRY_AFTER_MS)}\n\n".encode()  # noqa: S311 — only spreads load
            if not stream.transport.is_closing():
                stream.transport.write(chunk(retry) if stream.chunked else retry)
            stream.end("drained")
            if turn % max(1, int(0.02 / pause)) == 0:
                await asyncio.sleep(max(pause, 0.02))
