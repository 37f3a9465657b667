"""Transactional outbox: an event commits with the change that it announces, and is sent until mesh acknowledges it.

Every owner has a table `event_outbox` in its schema. One replica at a time relays it, in order per scope. A crash at
any point sends an event again under the same id, which mesh answers without publishing it twice.
"""

import asyncio
import datetime
import json
from collections.abc import Awaitable, Callable, Iterable
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
AT_ONCE = 32

# Some of every scope, so that one that cannot be published holds up nobody else.
WAITING = """
SELECT id, domain_id, type, scope, payload::text AS payload, created_at FROM (
    SELECT *, row_number() OVER (PARTITION BY domain_id, scope ORDER BY position) AS turn
    FROM {schema}.event_outbox WHERE refused_code = ''
) waiting WHERE turn <= 16 ORDER BY position LIMIT 512
"""

log = structlog.get_logger()


@dataclass(frozen=True)
class Outgoing:
    """An event on its way; `payload` is JSON text."""

    id: UUID
    domain_id: UUID
    type: str
    scope: str
    payload: str


Publish = Callable[[Outgoing], Awaitable[object]]


async def add_event(
    lent: asyncpg.Connection,
    schema: str,
    domain_id: UUID,
    kind: str,
    scope: str,
    payload: dict[str, Any],
    at: datetime.datetime,
) -> UUID:
    """Add an event in the transaction of its change, after the change itself: rows of one scope keep its order."""
    sql = f"""
    INSERT INTO {schema}.event_outbox (id, domain_id, type, scope, payload, created_at)
    VALUES ($1, $2, $3, $4, $5, $6)
    """  # noqa: S608 — the schema is a constant of its service
    identifier = uuid7()
    await lent.execute(sql, identifier, domain_id, kind, scope, json.dumps(payload), at)
    return identifier


class MeshPublisher:
    """Publishes through mesh, the only way to the bus."""

    def __init__(self, peer: Peer) -> None:
        self._stub = mesh_pb2_grpc.PublishServiceStub(peer)

    async def __call__(self, event: Outgoing) -> None:
        """Return once the event is published; raises what mesh refuses with."""
        await self._stub.Publish(
            mesh_pb2.PublishRequest(
                domain_id=str(event.domain_id),
                id=str(event.id),
                type=event.type,
                scope=event.scope,
                payload_json=event.payload,
            )
        )


class Relay:
    """Empties one owner's outbox."""

    def __init__(self, pool: asyncpg.Pool, schema: str, publish: Publish) -> None:
        self._pool = pool
        self._schema = schema
        self._publish = publish

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
            clean = await self.step(lent)
            await asyncio.sleep(LOOK_EVERY_S if clean else RETRY_S)

    async def step(self, lent: asyncpg.Connection) -> bool:
        """Publish what waits, scopes beside each other and each in order; False when something has to be retried."""
        rows = await lent.fetch(WAITING.format(schema=self._schema))
        now = datetime.datetime.now(datetime.UTC)
        OUTBOX.labels(self._schema).set((now - rows[0]["created_at"]).total_seconds() if rows else 0)
        scopes: dict[tuple[UUID, str], list[Outgoing]] = {}
        for row in rows:
            event = Outgoing(row["id"], row["domain_id"], row["type"], row["scope"], row["payload"])
            scopes.setdefault((event.domain_id, event.scope), []).append(event)
        gate, outcome = asyncio.Semaphore(AT_ONCE), Outcome([], [], [])
        async with asyncio.TaskGroup() as group:
            for events in scopes.values():
                group.create_task(self._relay(events, gate, outcome))
        await self._settle(lent, outcome)
        return len(outcome.published) == len(rows)

    async def _relay(self, events: Iterable[Outgoing], gate: asyncio.Semaphore, outcome: "Outcome") -> None:
        async with gate:
            for event in events:
                try:
                    await self._publish(event)
                except EventExpired:
                    # Signed under this id and never delivered: an id is signed once, so it gets another.
                    outcome.expired.append(event.id)
                    return
                except (InvalidRequest, AlreadyExists) as error:
                    # No retry mends it; it is kept for people, and holds nobody up.
                    log.error("outbox.refused", schema=self._schema, id=str(event.id), code=error.code)  # noqa: TRY400 — expected
                    outcome.refused.append((event.id, error.code))
                except PlexError as error:
                    log.warning("outbox.postponed", schema=self._schema, id=str(event.id), code=error.code)
                    return
                else:
                    outcome.published.append(event.id)

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
