"""Identity's feed of revocations: whatever it says, who holds sessions is looked at anew."""

import asyncio

import structlog

from libs.errors import PlexError
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs
from services.access.model import Doubt

RETRY_S = 0.5
SILENT_S = 3.0

log = structlog.get_logger()


async def follow(identity: Peer, doubt: Doubt) -> None:
    """Follow the feed for ever; a revocation that was missed meanwhile is found by the next look all the same."""
    stub = stubs.RelationsServiceStub(identity)
    while True:
        try:
            feed = aiter(stub.WatchRevocations(pb.WatchRevocationsRequest()))
            while True:
                async with asyncio.timeout(SILENT_S):
                    message = await anext(feed)
                if message.WhichOneof("revoked") or not doubt.following:
                    doubt.rouse()
                doubt.following = True
        except (PlexError, TimeoutError, StopAsyncIteration) as error:
            if doubt.following:
                log.warning("revocations.lost", cause=type(error).__name__)
            doubt.following = False
        await asyncio.sleep(RETRY_S)
