"""The revocation feed of identity: it purges kept assertions, and its silence closes the cache."""

import asyncio
from uuid import UUID

import structlog

from libs.errors import PlexError
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs
from services.gateway.credentials import AssertionCache
from services.gateway.hub import Hub

RETRY_S = 0.5
SILENT_S = 3.0

log = structlog.get_logger()


async def follow_revocations(identity: Peer, cache: AssertionCache, hub: Hub | None) -> None:
    """Follow the feed for ever; each time that it ends or falls silent, everything kept is forgotten.

    Streams outlive a short silence: once the feed is back, everybody who is connected is asked about anew.
    """
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
                apply(message, cache, hub)
                if hub is not None:
                    await hub.feed_back()
        except (PlexError, TimeoutError, StopAsyncIteration) as error:
            if following:
                log.warning("revocations.lost", cause=type(error).__name__)
            following = False
        cache.close()
        if hub is not None:
            hub.feed_lost()
        await asyncio.sleep(RETRY_S)


def apply(message: pb.WatchRevocationsResponse, cache: AssertionCache, hub: Hub | None) -> None:
    """Forget the assertions and end the streams that a message makes unbelievable; a beat changes nothing."""
    kind = message.WhichOneof("revoked")
    if kind == "credential_digest":
        cache.forget(lambda kept: kept.digest == message.credential_digest)
        if hub is not None:
            hub.end_credential(message.credential_digest)
    elif kind == "node_id":
        cache.forget(lambda kept: message.node_id in kept.subjects)
        if hub is not None:
            hub.end_node(UUID(message.node_id), "revoked")
    elif kind == "identity_id":
        cache.forget(lambda kept: message.identity_id in kept.subjects)
    elif kind == "domain_id":
        # A node's assertion says how often it may read secrets.
        cache.forget(lambda kept: kept.domain_id == message.domain_id)
    elif kind == "relation":
        # Relations are asked anew for each decision, except that a node's standing is kept with its assertion.
        subject, _, identifier = message.relation.subject.partition(":")
        cache.forget(lambda kept: identifier in kept.subjects)
        if hub is not None and subject == "node" and message.relation.resource == message.relation.subject:
            hub.end_node(UUID(identifier), "revoked")
