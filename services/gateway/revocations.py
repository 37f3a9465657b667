"""The revocation feed of identity: it purges kept assertions, and its silence closes the cache."""

import asyncio

import structlog

from libs.errors import PlexError
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs
from services.gateway.credentials import AssertionCache

RETRY_S = 0.5
SILENT_S = 3.0

log = structlog.get_logger()


async def follow_revocations(identity: Peer, cache: AssertionCache) -> None:
    """Follow the feed for ever; each time that it ends or falls silent, everything kept is forgotten."""
    stub = stubs.RelationsServiceStub(identity)
    following = True
    while True:
        try:
            feed = aiter(stub.WatchRevocations(pb.WatchRevocationsRequest()))
            while True:
                async with asyncio.timeout(SILENT_S):
                    message = await anext(feed)
                cache.heard()
                following = True
                apply(message, cache)
        except (PlexError, TimeoutError, StopAsyncIteration) as error:
            if following:
                log.warning("revocations.lost", cause=type(error).__name__)
            following = False
        cache.close()
        await asyncio.sleep(RETRY_S)


def apply(message: pb.WatchRevocationsResponse, cache: AssertionCache) -> None:
    """Forget the assertions that a message makes unbelievable; a beat changes nothing."""
    kind = message.WhichOneof("revoked")
    if kind == "credential_digest":
        cache.forget(lambda kept: kept.digest == message.credential_digest)
    elif kind == "node_id":
        cache.forget(lambda kept: message.node_id in kept.subjects)
    elif kind == "identity_id":
        cache.forget(lambda kept: message.identity_id in kept.subjects)
    elif kind == "relation":
        # Relations are asked anew for each decision; only what is being fetched now must not be kept.
        cache.forget(lambda _: False)
