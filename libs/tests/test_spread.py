"""Connections behind one address end in turn, so that a replica that is added gets its share, and no call is cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health

from bench.replica import free_port
from bench.virtual import Virtual
from libs.clock import SystemClock
from libs.rpc.channel import connect
from libs.rpc.server import Registration, build, credentials
from libs.settings import Peer
from libs.tests.doors import ASKED, NAME, Relations, runtime
from libs.tests.pki import Authority
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs

pytestmark = pytest.mark.unit

AGE_S, FOR_S = 0.4, 4.0


@contextlib.asynccontextmanager
async def replica(authority: Authority, servicer: Relations) -> AsyncIterator[int]:
    """Serve for the block with connections that soon end; returns the port."""
    settings = runtime(authority.issue("identity"))
    registered = Registration(NAME, servicer, stubs.add_RelationsServiceServicer_to_server, principal=False)
    server = build(settings, [registered], health.aio.HealthServicer(), SystemClock(), AGE_S)
    port = server.add_secure_port("127.0.0.1:0", credentials(settings.tls))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def test_a_replica_that_is_added_gets_calls_and_none_is_cut(authority: Authority) -> None:
    first, second = Relations(takes_s=0.02), Relations(takes_s=0.02)
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(replica(authority, one)) for one in (first, second)]
        address = await stack.enter_async_context(Virtual(free_port(), ports[:1]))
        peer = Peer(address=f"127.0.0.1:{address.port}", name="identity")
        stub = stubs.RelationsServiceStub(await stack.enter_async_context(connect(peer, authority.issue("gateway"))))
        await stub.Check(ASKED)
        address.behind.append(ports[1])
        ended = asyncio.get_running_loop().time() + FOR_S

        async def call() -> None:
            while asyncio.get_running_loop().time() < ended:
                await stub.Check(ASKED)

        await asyncio.gather(*(call() for _ in range(5)))
    # One connection after the other went to either; eight in a row to the same would be one run in a hundred.
    assert second.seen
    assert first.seen


async def test_a_stream_that_is_older_than_a_connection_ends_by_itself(authority: Authority) -> None:
    async with replica(authority, Relations(takes_s=3 * AGE_S)) as port:
        peer = Peer(address=f"127.0.0.1:{port}", name="identity")
        async with connect(peer, authority.issue("gateway")) as channel:
            stub = stubs.RelationsServiceStub(channel)
            heard = [one async for one in stub.WatchRevocations(pb.WatchRevocationsRequest())]
    assert len(heard) == 3
