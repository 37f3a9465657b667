"""The event streams of this process: one reader of the bus, the gate once per envelope, and fan-out in memory.

Each event is written to a stream's connection as it comes. A client that does not read fills its own buffer and is
dropped when that is full; nobody else waits for it.
"""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from libs.errors import EventStreamUnavailable, PlexError
from libs.telemetry import DELIVERED, REFUSALS, STREAMS, STREAMS_ENDED
from services.gateway.gate import Admitted, Gate, Passage
from services.gateway.ports import Message, Place
from services.gateway.refusals import RefusedEnvelopes
from services.gateway.ring import AT_ONCE_BYTES, Entry, Ring, chunk
from services.gateway.stream import BEAT, LIVE, Stream
from services.gateway.unplaced import Reconcile, Unplaced

BACK_S = 300
BEAT_S = 25
RETRY_S = 0.25
# What the gate says also of a Domain whose keys mesh cannot tell.
UNTOLD = "unknown_key"
PULSE_EVERY_S = 0.5
PULSES = 2
# A connection that has not taken this much is one whose client does not read.
MOST_UNREAD = 1024 * 1024
AT_ONCE = 100
LARGEST_CHECK = 500
# What mesh has noted for so long, and the broker has brought nothing since, is withheld.
WITHHELD_S = 1.0
FEED_GONE_S = 15.0
# Relations cannot be asked for so long: a restart of identity does not send the whole fleet back to it.
RELATIONS_GONE_S = 5.0
CATCH_UP_S = 1.0
# One reconciliation of a Domain goes out in this time; who comes within it gets that one.
RECONCILE_S = 10.0
RETRY_AFTER_MS = (500, 5000)

log = structlog.get_logger()


@dataclass
class Hub:
    """All streams, the ring behind them and the reader before them."""

    gate: Gate
    refusals: RefusedEnvelopes
    reconcile: Reconcile
    wall_ns: Callable[[], int] = time.time_ns
    clock: Callable[[], float] = time.monotonic
    most_unread: int = MOST_UNREAD
    feed_gone_s: float = FEED_GONE_S
    relations_gone_s: float = RELATIONS_GONE_S
    ring: Ring = field(init=False)
    unplaced: Unplaced = field(init=False)
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
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Where reading stood, what mesh had noted by then, and when that was.
    _owed: tuple[int, int, float] = (0, 0, 0.0)

    def __post_init__(self) -> None:
        self.ring = Ring(self.clock)
        self.unplaced = Unplaced(self.gate.nonce_store, self.reconcile, self.reconciled)

    # Reading ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read the bus for as long as the process lives; while it cannot be read, nobody is told otherwise."""
        while True:
            try:
                await self._follow()
            except PlexError as error:
                self._read_up = False
                self._fail(error.code)
            except Exception:
                # Whatever the bus brings must not end the edge.
                log.exception("events.bug")
                self._read_up = False
                self._fail("internal")
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        stream = self.gate.event_stream
        deliveries = stream.follow(self.ring.position if self._begun else None, BACK_S)
        async with contextlib.aclosing(deliveries):
            async for delivery in deliveries:
                if not self._begun:
                    self.ring.begin(stream.floor)
                    self._begun = True
                for start in range(0, len(delivery.messages), LARGEST_CHECK):
                    await self._take(delivery.messages[start : start + LARGEST_CHECK])
                if not delivery.more and not self._read_up:
                    # The broker says so; mesh's log knows.
                    await self._take((), await self.gate.nonce_store.highest())
                    self._read_up = True
                    log.info("events.read_up", position=self.ring.position)
        raise EventStreamUnavailable("the stream ended")

    async def _take(self, messages: Sequence[Message], until: int = 0) -> None:
        """Take messages through the gate to the streams; and from mesh's log what was published up to `until`."""
        async with self._turn:
            if not messages and until <= self.ring.position:
                return
            passage = await self.gate.admit(messages, self.ring.position, self.wall_ns(), until)
            # Reading what was sent meanwhile, some of it is found too late. That is nobody's attack, and nobody has it.
            untold = [one for one in passage.refused if one.reason == UNTOLD and one.domain_id not in passage.trusted]
            late = await self.gate.late(untold if self._read_up else passage.refused)
            self.unplaced.add(passage.refused)
            self._refuse(passage, late)
            # Mesh could not tell their keys, and did publish these: their nodes come back for what they could not have.
            self._end_domains({one.domain_id for one in untold if one.late in late})
            for domain_id, trusted in passage.trusted.items():
                self.ring.untrust(domain_id, trusted)
                if trusted:
                    self.refusals.learn(domain_id)
            for some in together(self._entry(one) for one in passage.admitted):
                entries = [entry for entry in some if self.ring.add(entry)]
                self.ring.reach(some[-1].sequence)
                await self._fan_out(entries)
            self.ring.reach(passage.reached)

    def _refuse(self, passage: Passage, late: Collection[Admitted]) -> None:
        for refusal in passage.refused:
            if refusal.late is not None and refusal.late in late:
                self.ring.miss(refusal.late.domain_id, refusal.late.envelope.scope, refusal.sequence)
                passage.reached = max(passage.reached, refusal.sequence)
            else:
                REFUSALS.labels("mesh", refusal.reason).inc()
                self.refusals.add(refusal)

    def _entry(self, one: Admitted) -> Entry:
        # What the log vouches for is compact, so it has no line break that a frame could end at.
        frame = b"id: %d\nevent: %b\ndata: %b\n\n" % (one.sequence, one.envelope.type.encode(), one.data)
        # One that is ahead of its time is believed for longer.
        at = self.clock() - (self.wall_ns() - one.envelope.issued_ns) / 1e9
        entry = Entry(
            one.sequence, one.id, one.domain_id, one.envelope.scope, one.envelope.key_id, chunk(frame), at
        )  # fmt: skip
        if one.envelope.type == "node_state_updated" and entry.scope == f"domain:{entry.domain_id}":
            self._reconciles[entry.domain_id] = entry
        return entry

    async def _fan_out(self, entries: Iterable[Entry]) -> None:
        # Who is in the middle of a replay finds them in the ring.
        wanted: dict[Stream, list[Entry]] = {}
        for entry in entries:
            for stream in self._receivers.get((entry.domain_id, entry.scope), ()):
                if entry.sequence <= stream.passed:
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

    def replay(self, stream: Stream) -> bool:
        """Write the next of what a stream missed; False when that is all, and from then on it gets what comes."""
        entries = self.ring.after(stream.place.domain_id, stream.scopes, stream.passed)
        stream.passed = entries[-1].sequence if entries else LIVE
        if entries:
            stream.write(entries, self.most_unread)
        return bool(entries)

    def keep_up(self, stream: Stream) -> None:
        """End a stream that took so long over its replay that some of it is gone."""
        if not self.ring.complete(stream.place.domain_id, stream.scopes, stream.passed):
            stream.end("slow")

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

    def _end_domains(self, domain_ids: Collection[UUID | None]) -> None:
        for stream in list(self._streams.values()) if domain_ids else ():
            if stream.place.domain_id in domain_ids:
                stream.end("unavailable")

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
                stream.say(BEAT)
        return now

    async def pulse(self) -> None:
        """Ask the ports that only an event would ask, so that their loss is noticed while there is none."""
        missed = 0
        while True:
            await asyncio.sleep(PULSE_EVERY_S)
            try:
                await self._catch_up(await self.gate.nonce_store.highest())
                await self.unplaced.look(self.ring, self.wall_ns())
                missed, self._answered = 0, True
            except PlexError as error:
                missed += 1
                if missed >= PULSES:
                    self._answered = False
                    self._fail(error.code)
            if self._feed_lost_at is not None and self.clock() - self._feed_lost_at > self.feed_gone_s:
                for stream in list(self._streams.values()):
                    stream.end("revocations_unknown")

    async def _catch_up(self, highest: int) -> None:
        """Take from mesh's log what it noted a while ago, when the broker has brought nothing since."""
        at, owed, since = self._owed
        if self.ring.position != at or owed <= at:
            self._owed = (self.ring.position, highest, self.clock())
        elif self._read_up and self.clock() - since > WITHHELD_S:
            log.warning("events.withheld", after=at, until=owed)
            await self._take((), owed)

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
        if stream := next(iter(self._streams.values()), None):
            self._streams[stream.node_id] = self._streams.pop(stream.node_id)
            await self.ask_about([stream])

    async def ask_about(self, streams: Collection[Stream]) -> None:
        """Ask anew about streams, and end those whose node may receive no longer, or not with that key."""
        kids = await self.gate.relation_checker.agents({stream.node_id for stream in streams}) if streams else {}
        for stream in streams:
            if stream.kid not in kids.get(stream.node_id, ()):
                stream.end("revoked")

    def feed_lost(self) -> None:
        """Note that revocations are not heard."""
        if self._feed_lost_at is None:
            self._feed_lost_at = self.clock()

    async def feed_back(self) -> None:
        """Ask anew about everybody who is connected: something may have been revoked unheard."""
        if self._feed_lost_at is not None:
            await self.ask_about(list(self._streams.values()))
            self._feed_lost_at = None

    async def drain(self, within_s: float) -> None:
        """End all streams spread over some seconds, and tell each when to come back."""
        self._draining = True
        streams = list(self._streams.values())
        random.shuffle(streams)
        pause = within_s / max(1, len(streams))
        for turn, stream in enumerate(streams, 1):
            stream.say(b"retry: %d\n\n" % random.randint(*RETRY_AFTER_MS))  # noqa: S311 — only spreads load
            stream.end("drained")
            if turn % max(1, int(0.02 / pause)) == 0:
                await asyncio.sleep(max(pause, 0.02))


def together(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield entries as they may be written at once."""
    some, size = list[Entry](), 0
    for entry in entries:
        size += len(entry.chunk)
        if some and size > AT_ONCE_BYTES:
            yield some
            some, size = [], len(entry.chunk)
        some.append(entry)
    if some:
        yield some
