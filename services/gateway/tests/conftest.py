from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.tests.fakes import Client, FakePeer, start


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
async def edge(peer: FakePeer, tmp_path: Path) -> AsyncIterator[Client]:
    client = await start(peer, tmp_path)
    yield client
    await client.close()
