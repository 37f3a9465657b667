"""The only way to the bus: key, canonical bytes, signature, self-check, log, stream, place in the log.

Callers that come at the same time share the trips: one query, one signing call a Domain, one insert, one wait for the
broker. Each step that fails refuses those whom it concerns, and nothing of theirs goes any further.
"""

import asyncio
import base64
import contextlib
import datetime
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from libs import envelope
from libs.canon import NotJson, compact
from libs.clock import Clock, rfc3339
from libs.envelope import EnvelopeRefused
from libs.errors import (
    EventBusUnavailable,
    EventConflict,
    EventExpired,
    EventNotSignable,
    EventTooLarge,
    EventTypeReserved,
    PlexError,
    SigningKeyMissing,
    SigningUnavailable,
)
from services.mesh.model import FRESH, MARGIN, ROTATED, Event, Keys, Logged, SigningKey
from services.mesh.ports import KeyStore, Log, Stream, Vault
from services.mesh.service import Halves

LARGEST_BATCH = 128
# Two, so that one is made while the other waits for disks; more would only make them smaller.
BATCHES = 2
LONGEST_QUEUE = 4096
# A broker that claims a place farther ahead is not believed: a place near the end of all numbers, noted once, would
# leave none for what follows.
FARTHEST_AHEAD = 1_000_000_000
# From the moment that an event is sent: gateways wait two seconds for its place, and some time goes to asking.
PLACED_WITHIN_S = 1.5
MOST_UNANSWERED = 10_000
UUID7 = 7
# Ids are kept by the day that they were made on; the log has the partition of yesterday and those of the next days.
OLDEST_ID = datetime.timedelta(hours=20)

log = structlog.get_logger()


@dataclass
class Waiting:
    """A caller, its event, and what the pipeline has made of it so far."""

    event: Event
    # Whatever is in front of it on the way to the bus.
    before: "Waiting | None" = None
    answer: "asyncio.Future[int]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    logged: Logged | None = None

    @property
    def gone(self) -> bool:
        """Whether the caller has its answer, or waits no longer."""
        return self.answer.done()

    @property
    def refused(self) -> bool:
        """Whether it will not be published this time."""
        return self.gone and (self.answer.cancelled() or self.answer.exception() is not None)

    def settle(self, sequence: int) -> None:
        """Give the caller its sequence, unless it went away."""
        if not self.answer.done():
            self.answer.set_result(sequence)

    def fail(self, error: Exception) -> None:
        """Refuse the caller, unless it went away."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Publisher:
    """Publishes for all callers of this process."""

    def __init__(self, keys: KeyStore, halves: Halves, vault: Vault, log: Log, stream: Stream, clock: Clock) -> None:
        self._keys = keys
        self._halves = halves
        self._vault = vault
        self._log = log
        self._stream = stream
        self._clock = clock
        self._queue: deque[list[Waiting]] = deque()
        self._queued = 0
        self._under_way: list[int] = []
        self._moved = asyncio.Event()
        # Their place may have been noted after gateways had stopped to wait for it.
        self._unanswered: set[UUID] = set()
        self.doubtful = asyncio.Event()

    async def publish(self, event: Event) -> int:
        """Return the sequence at which exactly this event was published; asked again, the same one.

        Asked again after a refusal, it may be another one, which counts as well; receivers drop the second copy.
        """
        (sequence,) = await self.publish_in_order([event])
        return sequence

    async def publish_in_order(self, events: Sequence[Event]) -> list[int]:
        """Return the sequences of those before the first that cannot be published; raises when that is the very first.

        They are in one batch, so that none overtakes another.
        """
        for place, event in enumerate(events):
            try:
                check_id(event.id, self._clock.now())
            except PlexError:
                if place == 0:
                    raise
                events = events[:place]
                break
        if self._queued + len(events) > LONGEST_QUEUE:
            raise EventBusUnavailable("the queue is full")
        run: list[Waiting] = []
        for event in events:
            run.append(Waiting(event, run[-1] if run else None))
        self._queue.append(run)
        self._queued += len(run)
        self._moved.set()
        answers = await asyncio.gather(*(waiting.answer for waiting in run), return_exceptions=True)
        sequences: list[int] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                if not sequences:
                    raise answer
                break
            sequences.append(answer)
        return sequences

    async def run(self) -> None:
        """Publish batches for as long as the process lives."""
        async with asyncio.TaskGroup() as group:
            while True:
                while not self._due():
                    self._moved.clear()
                    await self._moved.wait()
                batch = self._next()
                self._under_way.append(len(batch))
                group.create_task(self._batch(batch))

    def _next(self) -> list[Waiting]:
        batch = self._queue.popleft()
        while self._queue and len(batch) + len(self._queue[0]) <= LARGEST_BATCH:
            batch += self._queue.popleft()
        self._queued -= len(batch)
        return batch

    def _due(self) -> bool:
        """Whether a batch begins now: at once when none is under way, else when it is as large as the one that is.

        A second batch of whoever came first would take all the trips of a large one, for one event.
        """
        return len(self._under_way) < BATCHES and self._queued >= max(self._under_way, default=1)

    async def _batch(self, batch: list[Waiting]) -> None:
        try:
            await self._process([waiting for waiting in batch if not waiting.gone])
        except PlexError as error:
            self._refuse(batch, error)
        except Exception as error:
            log.exception("publish.bug", size=len(batch))
            self._refuse(batch, EventBusUnavailable(type(error).__name__))
        finally:
            self._under_way.remove(len(batch))
            self._moved.set()

    def _refuse(self, batch: list[Waiting], error: PlexError) -> None:
        for waiting in batch:
            waiting.fail(error)

    async def _process(self, batch: list[Waiting]) -> None:
        first: dict[UUID, Waiting] = {}
        for waiting in batch:
            if waiting is not first.setdefault(waiting.event.id, waiting):
                # The same event twice at once: who is second is told to ask again, and then gets the first one's place.
                waiting.fail(EventBusUnavailable("the event is being published"))
        if not first:
            return
        # The highest place before this batch is sent: each of its own is above.
        highest, known, keys = await asyncio.gather(
            self._log.highest(),
            self._log.find(first.keys()),
            self._keys.keys({waiting.event.domain_id for waiting in first.values()}),
        )
        signing: dict[tuple[UUID, str], list[Waiting]] = defaultdict(list)
        for waiting in first.values():
            try:
                if logged := known.get(waiting.event.id):
                    self._again(waiting, logged)
                else:
                    signer = self._signer(waiting.event, keys.get(waiting.event.domain_id, Keys()))
                    signing[signer.domain_id, signer.kid].append(waiting)
            except PlexError as error:
                waiting.fail(error)
        await asyncio.gather(
            *(self._sign(keys[domain].by_id(kid), waiters) for (domain, kid), waiters in signing.items())
        )
        await self._append([waiting for waiting in in_order(first.values()) if waiting.event.id not in known])
        await self._publish(in_order(first.values()), highest)

    def _again(self, waiting: Waiting, logged: Logged) -> None:
        """Answer for an event that is logged already, unless it must be published once more."""
        event = waiting.event
        same = (logged.domain_id, logged.scope, logged.type) == (event.domain_id, event.scope, event.type)
        if not same or envelope.parse(logged.envelope).payload != payload_of(event):
            raise EventConflict
        stale = self._clock.now() - logged.issued_at > FRESH - MARGIN
        if logged.sequence is not None and (stale or event.id not in self._unanswered):
            waiting.settle(logged.sequence)
            return
        if stale:
            raise EventExpired
        waiting.logged = logged

    def _signer(self, event: Event, keys: Keys) -> SigningKey:
        """Return the key that signs an event: the current one, and for a rotation the one before the new key."""
        if event.type == ROTATED:
            named = keys.by_id(json.loads(event.payload)["previous_key_id"])
            if named is None or not named.verifies(self._clock.now()):
                # Nobody could verify it any more, now or ever.
                raise EventTypeReserved
            return named
        if keys.current is None:
            raise SigningKeyMissing
        return keys.current

    async def _sign(self, key: SigningKey | None, waiters: list[Waiting]) -> None:
        """Sign a Domain's events in one call and check each signature."""
        try:
            half = await self._halves.of(key) if key else None
        except PlexError as error:
            self._refuse(waiters, error)
            return
        if key is None or half is None:
            self._refuse(waiters, SigningUnavailable("the recorded public half is not the key's"))
            return
        now = self._clock.now()
        messages: list[tuple[Waiting, bytes]] = []
        for waiting in waiters:
            try:
                messages.append((waiting, to_sign(waiting.event, key.kid, now)))
            except PlexError as error:
                waiting.fail(error)
        if not messages:
            return
        try:
            signatures = await self._vault.sign(key.domain_id, key.version, [message for _, message in messages])
        except PlexError as error:
            self._refuse([waiting for waiting, _ in messages], error)
            return
        verifier = VerifyKey(half.public_key)
        for (waiting, message), signature in zip(messages, signatures, strict=True):
            try:
                verifier.verify(message, signature)
                wire = envelope.assemble(message, signature)
            except (BadSignatureError, ValueError, EnvelopeRefused):
                waiting.fail(SigningUnavailable("what was signed does not verify"))
                continue
            event = waiting.event
            waiting.logged = Logged(event.id, event.domain_id, event.scope, event.type, wire, now)

    async def _append(self, signed: list[Waiting]) -> None:
        """Log what was signed; nothing goes to the stream before it is durable here."""
        rows = [waiting.logged for waiting in signed if waiting.logged is not None]
        appended = await self._log.append(rows) if rows else set()
        for waiting in signed:
            if waiting.event.id not in appended:
                waiting.logged = None
                waiting.fail(EventBusUnavailable("the event is being published"))

    async def _publish(self, ready: list[Waiting], highest: int) -> None:
        rows = [(waiting, waiting.logged) for waiting in ready if waiting.logged is not None]
        if not rows:
            return
        clock = asyncio.get_running_loop().time
        until = clock() + PLACED_WITHIN_S
        places = await self._stream.publish([logged for _, logged in rows])
        if not comes_next(places[0], highest):
            # No gateway looks for anything new at a place that was passed before.
            self.doubtful.set()
            raise EventBusUnavailable("the places are not those that come next")
        ids = {logged.id for _, logged in rows}
        if len(self._unanswered) > MOST_UNANSWERED:
            self._unanswered.clear()
        self._unanswered |= ids
        if (left := until - clock()) <= 0:
            raise EventBusUnavailable("the broker acknowledged too late")
        try:
            await self._log.note([(place, logged.id) for place, (_, logged) in zip(places, rows, strict=True)], left)
        except EventBusUnavailable:
            # The stream gave a sequence twice: it lost its end. Nobody accepts what stands there.
            self.doubtful.set()
            raise
        if clock() > until:
            raise EventBusUnavailable("the places were noted too late")
        self._unanswered -= ids
        for place, (waiting, _) in zip(places, rows, strict=True):
            waiting.settle(place)


def in_order(waiters: Iterable[Waiting]) -> list[Waiting]:
    """Return those that may go on; whatever stands behind one that is refused waits for it."""
    ready = []
    for waiting in waiters:
        if waiting.before is not None and waiting.before.refused:
            waiting.fail(EventBusUnavailable("an event before it is not published"))
        if not waiting.refused:
            ready.append(waiting)
    return ready


def comes_next(place: int, highest: int) -> bool:
    """Whether a broker is believed that gives a place, when this is the highest one that was noted."""
    return highest < place <= highest + FARTHEST_AHEAD


def check_id(identifier: UUID, now: datetime.datetime) -> None:
    """Raise EventNotSignable or EventExpired unless an id is a UUIDv7 of about now."""
    if identifier.version != UUID7:
        raise EventNotSignable("the id must be a UUIDv7")
    made = datetime.datetime.fromtimestamp((identifier.int >> 80) / 1000, datetime.UTC)
    if made > now + FRESH:
        raise EventNotSignable("the id is from the future")
    if made < now - OLDEST_ID:
        raise EventExpired


def payload_of(event: Event) -> bytes:
    """Return an event's payload as it is signed; raises EventNotSignable unless it is a JSON object."""
    with contextlib.suppress(NotJson, UnicodeEncodeError):
        value = compact(event.payload.encode())
        if value.startswith(b"{"):
            return value
    raise EventNotSignable("the payload must be a JSON object")


def to_sign(event: Event, kid: str, now: datetime.datetime) -> bytes:
    """Return the canonical bytes of an event; raises EventNotSignable, and EventTooLarge over 60,000 bytes."""
    if not event.payload.lstrip().startswith("{"):
        raise EventNotSignable("the payload must be a JSON object")
    try:
        payload = event.payload.encode()
        message = envelope.build(str(event.id), event.type, event.scope, kid, rfc3339(now), payload)
    except UnicodeEncodeError:
        raise EventNotSignable("the payload must be a JSON object") from None
    except EnvelopeRefused as refused:
        raise EventNotSignable(f"the event cannot be signed: {refused.reason}") from None
    if (
        len(message) + len(base64.b64encode(bytes(envelope.SIGNATURE_BYTES))) + len(',"signature":""')
        > envelope.LARGEST
    ):
        raise EventTooLarge
    return message
