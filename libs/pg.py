"""PostgreSQL: a pool over TLS with the service's own certificate, and failures as DatastoreUnavailable."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import asyncpg
from opentelemetry import trace

from libs import tls
from libs.errors import DatastoreUnavailable, InvalidRequest
from libs.settings import Postgres, StartRefused, Tls
from libs.telemetry import SKEW, hop
from libs.vitals import watch_pool

DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

tracer = trace.get_tracer("libs.pg")


class NotDurable(StartRefused):
    """PostgreSQL could lose what it has acknowledged."""


async def keep(_: Any) -> None:
    """Leave a connection as it is: no statement of ours changes its session, so undoing that is a trip for nothing."""


@contextlib.asynccontextmanager
async def create_pool(settings: Postgres, identity: Tls) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool for the block; new connections use the certificate files as they are then."""

    async def connect(*_: Any, **options: Any) -> asyncpg.Connection:
        opened: asyncpg.Connection = await asyncpg.connect(**options, ssl=tls.client(identity))
        return opened

    pool = await asyncpg.create_pool(
        host=settings.host,
        port=settings.port,
        database=settings.database,
        user=settings.user,
        min_size=settings.min_size,
        max_size=settings.max_size,
        command_timeout=settings.timeout_s,
        timeout=settings.timeout_s,
        connect=connect,
        reset=keep,
        server_settings={
            "application_name": settings.user,
            "timezone": "UTC",
            # Said by the client it outranks what is set for the role, the database or the server.
            "synchronous_commit": "on",
            # The same bound on the server's side: a client that is gone cannot cancel, and its statement holds locks.
            "statement_timeout": str(round(settings.timeout_s * 1000)),
        },
    )
    watch_pool(pool)
    try:
        yield pool
    finally:
        # A connection that hangs must not keep the process from ending.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pool.close(), settings.timeout_s)
        pool.terminate()


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """Turn a lost, refused or slow connection into DatastoreUnavailable; other errors of SQL stay what they are."""
    try:
        yield
    # InternalClientError: what asyncpg raises when a server dies in the middle of an answer.
    except (
        OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.InternalClientError,
        # A role that may not log in now, or whose password is being changed.
        asyncpg.InvalidAuthorizationSpecificationError,
    ) as error:  # fmt: skip
        raise DatastoreUnavailable(type(error).__name__) from error
    except (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError):
        # NUL, which JSON and protobuf can carry and PostgreSQL's text cannot.
        raise InvalidRequest("a text holds a character that cannot be stored") from None
    except (
        asyncpg.OperatorInterventionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.PostgresSystemError,
        asyncpg.TransactionRollbackError,
    ) as error:
        raise DatastoreUnavailable(type(error).__name__) from error


@contextlib.asynccontextmanager
async def connection(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection for the block, outside of a transaction; `name` is the span's."""
    with unavailable(), hop(tracer, f"pg.{name}"):
        async with pool.acquire() as lent:
            # The pool lends a proxy that does all that a connection does.
            yield cast("asyncpg.Connection", lent)


@contextlib.asynccontextmanager
async def held(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection for as long as the block lasts, which may be for good: it belongs to no trace."""
    with unavailable():
        async with pool.acquire() as lent:
            try:
                yield cast("asyncpg.Connection", lent)
            finally:
                # The one kind of block that takes locks of the session.
                if not lent.is_closed():
                    await lent.execute("SELECT pg_advisory_unlock_all()")


@contextlib.asynccontextmanager
async def transaction(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection within one transaction for the block; `name` is the span's."""
    async with connection(pool, name) as lent, lent.transaction():
        yield lent


async def check_durable(pool: asyncpg.Pool) -> None:
    """Raise NotDurable when an acknowledged commit could be lost."""
    async with connection(pool, "check_durable") as lent:
        rows = await lent.fetch("SELECT name, current_setting(name) AS value FROM unnest($1::text[]) AS name", DURABLE)
        await _compare_clocks(lent)
    for row in rows:
        if row["value"] != "on":
            raise NotDurable(f"PostgreSQL runs with {row['name']} = {row['value']}; it must be on")


async def ping(pool: asyncpg.Pool) -> None:
    """Raise DatastoreUnavailable when PostgreSQL does not answer."""
    async with connection(pool, "ping") as lent:
        await _compare_clocks(lent)


async def _compare_clocks(lent: asyncpg.Connection) -> None:
    asked_at = time.time()
    theirs = await lent.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    # Their clock was read somewhere in between.
    SKEW.labels("postgres").set(theirs - (asked_at + time.time()) / 2)
