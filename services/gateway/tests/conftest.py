import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from devstack.process import until
from plexsphere.identity.v1 import sign_in_pb2
from plexsphere.mesh.v1 import mesh_pb2
from services.gateway.credentials import AssertionCache
from services.gateway.ports import Place
from services.gateway.tests.desk import NODE, OTHER, PROJECT, Desk
from services.gateway.tests.fakes import Client, FakePeer, assertion, start
from services.gateway.tests.five import KID, Bench


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
async def edge(peer: FakePeer, tmp_path: Path) -> AsyncIterator[Client]:
    client = await start(peer, tmp_path)
    yield client
    await client.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    bench, peer = Bench(), FakePeer()
    for node in (NODE, OTHER):
        bench.fleet.places[node] = Place(bench.mesh.domain, PROJECT)

    def authenticated(_: Any) -> Message:
        found = assertion(sub=str(NODE), node_id=str(NODE), domain_id=str(bench.mesh.domain), nsk_kid=KID)
        return sign_in_pb2.AuthenticateResponse(assertion=found)

    peer.answers["Authenticate"] = authenticated
    peer.answers["RequestReconcile"] = lambda _: mesh_pb2.RequestReconcileResponse(announced=True)
    cache = AssertionCache()
    client = await start(peer, tmp_path, ports=bench.ports, hub=bench.hub, cache=cache)
    running = [asyncio.ensure_future(task) for task in (bench.hub.run(), bench.hub.pulse(), bench.hub.probe())]
    await until(lambda: bench.hub.ready, 2)
    opened = Desk(bench, client, peer, cache)
    yield opened
    for task in [*running, *opened.tasks]:
        task.cancel()
    await asyncio.gather(*running, *opened.tasks, return_exceptions=True)
    await client.close()
