"""Transactional outbox: an event commits with the change that it announces, and is sent until mesh acknowledges it.

Every owner has a table `event_outbox` in its schema. One replica at a time relays it, in order per scope. A crash at
any point sends an event again under the same id, which mesh answers without publishing it twice.
"""

import asyncio
import datetime
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from libs.errors import AlreadyExists, EventExpired, InvalidRequest, PlexError
from libs.ids import uuid7
from libs.pg import held
from libs.rpc.channel import Peer
from libs.telemetry import OUTBOX
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc

LOOK_EVERY_S = 0.1
RETRY_S = 0.5
LONGEST_REST_S = 4.0
AT_ONCE = 32
SCOPES_AT_ONCE = 512
EVENTS_AT_ONCE = 512
# Of one scope in one step, published in one call, so that none keeps the others waiting for long.
MOST_OF_A_SCOPE = 16

# The next scopes that have something to send, each found by one look into the index, with its oldest event's time:
# neither how many events wait nor of how many scopes makes this slower.
WAITING = """
WITH RECURSIVE waiting AS (
    (SELECT domain_id, scope, created_at FROM {schema}.event_outbox
     WHERE refused_code = '' AND (domain_id, scope) > ($1, $2) ORDER BY domain_id, scope, position LIMIT 1)
    UNION ALL
    SELECT n.* FROM waiting w CROSS JOIN LATERAL (
        SELECT domain_id, scope, created_at FROM {schema}.event_outbox
        WHERE refused_code = '' AND (domain_id, scope) > (w.domain_id, w.scope)
        ORDER BY domain_id, scope, position LIMIT 1
    ) n
)
SELECT * FROM waiting LIMIT $3
"""
FIRST = """
SELECT o.* FROM unnest($1::uuid[], $2::text[]) s (domain_id, scope) CROSS JOIN LATERAL (
    SELECT id, domain_id, type, scope, payload::text AS payload, position FROM {schema}.event_outbox
    WHERE refused_code = '' AND domain_id = s.domain_id AND scope = s.scope ORDER BY position LIMIT $3
) o ORDER BY o.position
"""

Scope = tuple[UUID, str]
BEFORE_ALL: Scope = (UUID(int=0), "")

log = structlog.get_logger()


@dataclass(frozen=True)
class Outgoing:
    """An event on its way; `payload` is JSON text."""

    id: UUID
    domain_id: UUID
    type: str
    scope: str
    payload: str


# Returns how many of the first were published, at least one; raises what the very first is refused with.
Publish = Callable[[Sequence[Outgoing]], Awaitable[int]]


@dataclass(frozen=True)
class Event:
    """What is to be announced."""

    domain_id: UUID
    type: str
    scope: str
    payload: dict[str, Any]


async def add_events(
    lent: asyncpg.Connection, schema: str, events: Sequence[Event], at: datetime.datetime
) -> list[UUID]:
    """Add events in the transaction of their change, after the change itself: rows of one scope keep its order."""
    sql = f"""
    INSERT INTO {schema}.event_outbox (id, domain_id, type, scope, payload, created_at)
    SELECT id, domain_id, type, scope, payload, $6
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::jsonb[])
        WITH ORDINALITY AS one (id, domain_id, type, scope, payload, turn) ORDER BY turn
    """  # noqa: S608 — the schema is a constant of its service
    identifiers = [uuid7() for _ in events]
    rows = [(event.domain_id, event.type, event.scope, json.dumps(event.payload)) for event in events]
    await lent.execute(sql, identifiers, *zip(*rows, strict=True), at)
    return identifiers


async def add_event(
    lent: asyncpg.Connection,
    schema: str,
    domain_id: UUID,
    kind: str,
    scope: str,
    payload: dict[str, Any],
    at: datetime.datetime,
) -> UUID:
    """Add one event, as `add_events` does."""
    (identifier,) = await add_events(lent, schema, [Event(domain_id, kind, scope, payload)], at)
    return identifier


class MeshPublisher:
    """Publishes through mesh, the only way to the bus."""

    def __init__(self, peer: Peer) -> None:
        self._stub = mesh_pb2_grpc.PublishServiceStub(peer)

    async def __call__(self, events: Sequence[Outgoing]) -> int:
        """Return how many of the first events are published; raises what mesh refuses the very first with."""
        packed = [
            mesh_pb2.PublishRequest(
                domain_id=str(event.domain_id),
                id=str(event.id),
                type=event.type,
                scope=event.scope,
                payload_json=event.payload,
            )
            for event in events
        ]
        answer = await self._stub.PublishInOrder(mesh_pb2.PublishInOrderRequest(events=packed))
        return len(answer.sequences)


@dataclass(frozen=True)
class Rest:
    """A scope of which nothing could be published so many times in a row, and until when it is left alone."""

    failures: int
    until: float


class Relay:
    """Empties one owner's outbox."""

    def __init__(
        self, pool: asyncpg.Pool, schema: str, publish: Publish, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._schema = schema
        self._publish = publish
        self._clock = clock
        # Scopes are looked at in turn, a round after the other.
        self._after = BEFORE_ALL
        self._oldest: list[datetime.datetime] = []
        self._resting: dict[Scope, Rest] = {}

    async def run(self) -> None:
        """Relay for as long as the process lives, whenever no other replica does."""
        while True:
            try:
                async with held(self._pool) as lent:
                    # A lock of the session: it is free again when this replica dies.
                    if await lent.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", f"{self._schema}.event_outbox"):
                        await self._lead(lent)
            except PlexError as error:
                log.warning("outbox.lost", schema=self._schema, code=error.code)
            await asyncio.sleep(RETRY_S)

    async def _lead(self, lent: asyncpg.Connection) -> None:
        while True:
            more = await self.step(lent)
            await asyncio.sleep(0 if more else LOOK_EVERY_S)

    async def step(self, lent: asyncpg.Connection) -> bool:
        """Publish some of what waits, scopes beside each other and each in order; True when all of it went well."""
        scopes: dict[Scope, list[Outgoing]] = {scope: [] for scope in await self._due(lent)}
        most = max(1, min(MOST_OF_A_SCOPE, EVENTS_AT_ONCE // max(1, len(scopes))))
        first = FIRST.format(schema=self._schema)
        rows = await lent.fetch(first, [one for one, _ in scopes], [one for _, one in scopes], most) if scopes else []
        for row in rows:
            event = Outgoing(row["id"], row["domain_id"], row["type"], row["scope"], row["payload"])
            scopes[event.domain_id, event.scope].append(event)
        gate, outcome = asyncio.Semaphore(AT_ONCE), Outcome([], [], [])
        async with asyncio.TaskGroup() as group:
            for events in scopes.values():
                group.create_task(self._relay(events, gate, outcome))
        await self._settle(lent, outcome)
        self._pace(scopes, outcome)
        return 0 < len(rows) == len(outcome.published)

    async def _due(self, lent: asyncpg.Connection) -> list[Scope]:
        """Return the scopes whose turn it is; of those that failed a few, and last, so that nobody waits for many."""
        found = await lent.fetch(WAITING.format(schema=self._schema), *self._after, SCOPES_AT_ONCE)
        scopes = [(row["domain_id"], row["scope"]) for row in found]
        self._oldest += [row["created_at"] for row in found]
        self._after = scopes[-1] if len(scopes) == SCOPES_AT_ONCE else BEFORE_ALL
        if self._after == BEFORE_ALL:
            now = datetime.datetime.now(datetime.UTC)
            OUTBOX.labels(self._schema).set((now - min(self._oldest, default=now)).total_seconds())
            self._oldest.clear()
        rested = {one: rest.until for one in scopes if (rest := self._resting.get(one)) and rest.until <= self._clock()}
        return [one for one in scopes if one not in self._resting] + sorted(rested, key=rested.__getitem__)[:AT_ONCE]

    def _pace(self, scopes: dict[Scope, list[Outgoing]], outcome: "Outcome") -> None:
        """Let scopes rest of which nothing went anywhere, each time for longer."""
        settled = {*outcome.published, *outcome.expired, *(identifier for identifier, _ in outcome.refused)}
        for scope, events in scopes.items():
            before = self._resting.pop(scope, Rest(0, 0))
            if events and settled.isdisjoint(event.id for event in events):
                pause = min(RETRY_S * 2**before.failures, LONGEST_REST_S)
                self._resting[scope] = Rest(min(before.failures + 1, 16), self._clock() + pause)

    async def _relay(self, events: Sequence[Outgoing], gate: asyncio.Semaphore, outcome: "Outcome") -> None:
        at_once = len(events)
        async with gate:
            while events:
                first = events[0].id
                try:
                    done = await self._publish(events[:at_once])
                except EventExpired:
                    # Signed under this id and never delivered: an id is signed once, so it gets another.
                    outcome.expired.append(first)
                    return
                except (InvalidRequest, AlreadyExists) as error:
                    if at_once > 1:
                        # One that cannot even be read is refused with all that it is asked with.
                        at_once = 1
                        continue
                    # No retry mends it; it is kept for people, and holds nobody up.
                    log.error("outbox.refused", schema=self._schema, id=str(first), code=error.code)  # noqa: TRY400 — expected
                    outcome.refused.append((first, error.code))
                    done = 1
                except PlexError as error:
                    log.warning("outbox.postponed", schema=self._schema, id=str(first), code=error.code)
                    return
                else:
                    outcome.published.extend(event.id for event in events[:done])
                if not done:
                    log.warning("outbox.postponed", schema=self._schema, id=str(first), code="nothing_published")
                    return
                events = events[done:]

    async def _settle(self, lent: asyncpg.Connection, outcome: "Outcome") -> None:
        table = f"{self._schema}.event_outbox"
        if outcome.published:
            await lent.execute(f"DELETE FROM {table} WHERE id = ANY ($1)", outcome.published)  # noqa: S608 — as above
        for identifier in outcome.expired:
            await lent.execute(f"UPDATE {table} SET id = $2 WHERE id = $1", identifier, uuid7())  # noqa: S608 — as above
        for identifier, code in outcome.refused:
            await lent.execute(f"UPDATE {table} SET refused_code = $2 WHERE id = $1", identifier, code)  # noqa: S608 — as above


@dataclass(frozen=True)
class Outcome:
    """What became of the events of one step."""

    published: list[UUID]
    expired: list[UUID]
    refused: list[tuple[UUID, str]]
