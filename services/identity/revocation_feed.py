"""Revocations from replica to replica, by PostgreSQL's LISTEN and NOTIFY."""

import asyncio
import json

import asyncpg
import structlog

from libs.errors import DatastoreUnavailable
from libs.pg import connection
from services.identity.model import Tuple
from services.identity.relation_store import CHANNEL
from services.identity.relations import Feed, Revocation

# A gateway that hears nothing for 0.8 s believes nothing that it remembers (services/gateway/credentials.py). So beats
# come three times as often, and a connection that does not answer closes the feed before that.
PROBE_EVERY_S = 0.25
PROBE_WITHIN_S = 0.5
RETRY_S = 1.0

log = structlog.get_logger()


async def follow(pool: asyncpg.Pool, feed: Feed) -> None:
    """Hand what any replica revokes to the feed, for ever; the feed is closed while the connection is away."""

    def heard(_: object, __: object, ___: object, payload: object) -> None:
        content = json.loads(str(payload))
        relation = Tuple(*content["relation"]) if content["relation"] else None
        feed.publish(Revocation(content["kind"], content["value"], relation))

    while True:
        try:
            async with connection(pool, "follow") as lent:
                await lent.add_listener(CHANNEL, heard)
                try:
                    feed.open()
                    # A connection that hangs looks like one on which nothing happens, so it is asked: what was notified
                    # before the question arrives before its answer, and only the answer makes a beat.
                    while True:
                        await lent.fetchval("SELECT 'beat'", timeout=PROBE_WITHIN_S)
                        feed.beat()
                        await asyncio.sleep(PROBE_EVERY_S)
                finally:
                    feed.close()
                    await lent.remove_listener(CHANNEL, heard)
        except DatastoreUnavailable as error:
            log.warning("revocations.lost", reason=str(error))
        await asyncio.sleep(RETRY_S)
