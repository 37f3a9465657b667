"""Keeps the stream in step with the log, which is the truth: the stream is only how gateways hear of it.

A stream that is gone, or that has lost its end, is begun anew above every sequence ever given, so that no place means
two events; then what is still fresh is published once more, the same bytes in the same order, and the log notes where.
"""

import asyncio
import datetime
import hashlib
from collections import deque
from dataclasses import dataclass, field

import structlog

from libs import envelope
from libs.clock import Clock
from libs.errors import EventBusUnavailable, PlexError
from libs.telemetry import KEPT_AT
from services.mesh.model import FRESH, MARGIN, Keys, Logged, StreamState
from services.mesh.ports import KeyStore, Log, Stream
from services.mesh.publisher import FARTHEST_AHEAD, PLACED_WITHIN_S, comes_next

LOOK_EVERY_S = 1.0
ROLL_EVERY_S = 3600.0
AT_ONCE = 256
READ_AT_ONCE = 512
# Between refills, and each time twice as long: who damages the stream again and again makes no more work than that.
# Gateways that run have what they miss from the log.
SHORTEST_REST = datetime.timedelta(seconds=1)
LONGEST_REST = datetime.timedelta(seconds=60)
TOO_FAR = "delete the stream EVENTS on the broker; mesh makes it anew"

log = structlog.get_logger()


@dataclass
class Keeper:
    """Compares and mends; one replica at a time."""

    log: Log
    keys: KeyStore
    stream: Stream
    clock: Clock
    doubtful: asyncio.Event = field(default_factory=asyncio.Event)
    _created: bool = False
    _doubted: bool = False
    _rest: datetime.timedelta = SHORTEST_REST
    _rests_until: datetime.datetime | None = None
    # The highest sequence as it was at each of the last looks: what was noted at the first is not fresh any more.
    _marks: deque[tuple[datetime.datetime, int]] = field(default_factory=deque)

    async def run(self) -> None:
        """Look every second, and at once when somebody doubts, for as long as the process lives."""
        while True:
            try:
                async with self.log.leading() as leads:
                    while await leads():
                        await self.look()
                        await self._pause()
            except PlexError as error:
                log.warning("keeper.postponed", code=error.code, reason=str(error))
            except Exception:
                # Whatever the broker says must not end mesh.
                log.exception("keeper.bug")
            await asyncio.sleep(LOOK_EVERY_S)

    async def roll(self) -> None:
        """Make and drop partitions, for as long as the process lives."""
        while True:
            try:
                await self.log.roll()
            except PlexError as error:
                log.warning("keeper.roll_postponed", code=error.code)
            except Exception:
                # As above: the next turn may go well.
                log.exception("keeper.roll_bug")
            await asyncio.sleep(ROLL_EVERY_S)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await self.doubtful.wait()
        except TimeoutError:
            return

    async def look(self) -> None:
        """Mend what is wrong with the stream now."""
        self._doubted |= self.doubtful.is_set()
        self.doubtful.clear()
        # In this order: what is published in between stands in both, or in the stream alone.
        if not self._marks:
            then = self.clock.now() - FRESH
            self._marks.append((then, await self.log.highest(then)))
        highest = await self.log.highest()
        state = await self.stream.state()
        if state is not None and state.last > highest + FARTHEST_AHEAD:
            # The broker does not go back, and nothing that it gives from there on is believed.
            log.error("stream.too_far", last=state.last, noted=highest, action=TOO_FAR)
            return
        if state is None or not state.ours or not self._created:
            # Also for a stream that is there: its settings are made what they should be.
            await self.stream.create(highest + 1)
            self._created = True
        if state is not None and state.last < highest:
            await self.stream.restart(highest + 1)
        # What is lost now is a gap at a later look.
        if self._rests_until is None or self.clock.now() >= self._rests_until:
            await self._mend(state, highest)
        self._mark(highest)
        KEPT_AT.set_to_current_time()

    async def _mend(self, state: StreamState | None, highest: int) -> None:
        doubted, self._doubted = self._doubted, False
        if state is None:
            await self._refill("stream_missing", await self._fresh())
        elif state.last < highest:
            await self._refill("tail_lost", await self._fresh())
        elif (doubted or self._misses(state)) and (lost := await self._lost(state, doubted=doubted)):
            await self._refill("gap", lost)

    def _misses(self, state: StreamState) -> bool:
        """Whether something fresh may be missing; what is older has gone in its time."""
        low = self._marks[0][1]
        return state.first > low + 1 or any(sequence > low for sequence in state.deleted)

    def _mark(self, highest: int) -> None:
        now = self.clock.now()
        self._marks.append((now, highest))
        while len(self._marks) > 1 and self._marks[1][0] <= now - FRESH:
            self._marks.popleft()

    async def _fresh(self) -> list[Logged]:
        """Return what is worth sending again: what a revoked key signed would be refused, and taken for an attack."""
        now = self.clock.now()
        rows = await self.log.fresh(now - FRESH + MARGIN)
        keys = await self.keys.keys({row.domain_id for row in rows})
        signers = [keys.get(row.domain_id, Keys()).by_id(envelope.parse(row.envelope).key_id) for row in rows]
        return [row for row, key in zip(rows, signers, strict=True) if key and key.verifies(now)]

    async def _lost(self, state: StreamState, *, doubted: bool) -> list[Logged]:
        """Return fresh events that are not in the stream where the log says; read back only when there is a doubt."""
        rows = await self._fresh()
        deleted = set(state.deleted)
        lost = [row for row in rows if row.sequence and (row.sequence < state.first or row.sequence in deleted)]
        if doubted and rows:
            found = await self._read_back(rows)
            lost = [row for row in rows if found.get(row.sequence or 0) != hashlib.sha256(row.envelope).digest()]
        return lost

    async def _read_back(self, rows: list[Logged]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        reached = 0
        for place in sorted(row.sequence or 1 for row in rows):
            if place <= reached:
                continue
            messages = await self.stream.read(place, READ_AT_ONCE)
            found |= {sequence: hashlib.sha256(data).digest() for sequence, data in messages}
            reached = max((sequence for sequence, _ in messages), default=0)
            if reached < place:
                break
        return found

    async def _refill(self, cause: str, rows: list[Logged]) -> None:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            try:
                await self._send(some, first=not start)
            except PlexError:
                self.doubtful.set()
                raise
        log.warning("stream.refilled", cause=cause, count=len(rows), rest_s=self._rest.total_seconds())

    async def _send(self, rows: list[Logged], *, first: bool) -> None:
        highest = await self.log.highest()
        places = await self.stream.publish(rows)
        if first:
            self._tire()
        if not comes_next(places[0], highest):
            raise EventBusUnavailable("the places are not those that come next")
        await self.log.note([(place, row.id) for place, row in zip(places, rows, strict=True)], PLACED_WITHIN_S)

    def _tire(self) -> None:
        now = self.clock.now()
        calm = self._rests_until is None or now > self._rests_until + LONGEST_REST
        self._rest = SHORTEST_REST if calm else min(self._rest * 2, LONGEST_REST)
        self._rests_until = now + self._rest
