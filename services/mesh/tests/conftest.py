"""The mesh service's own doors to the real backends, twice: two replicas see the same state."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack import services
from devstack.layout import State
from devstack.process import until
from libs.bao import Bao, open_bao
from libs.nats import Bus, open_bus
from libs.pg import create_pool
from libs.settings import load
from services.mesh.pipeline import open_pipeline
from services.mesh.settings import MeshSettings
from services.mesh.vault import BaoVault


@pytest.fixture
def settings(backends: State) -> MeshSettings:
    services.render(backends, "mesh")
    return load(backends / "config/mesh.toml", MeshSettings)


@pytest.fixture
async def pools(settings: MeshSettings) -> AsyncIterator[tuple[asyncpg.Pool, asyncpg.Pool]]:
    async with (
        create_pool(settings.postgres, settings.tls) as one,
        create_pool(settings.postgres, settings.tls) as other,
    ):
        yield one, other


@pytest.fixture
async def bao(settings: MeshSettings) -> AsyncIterator[Bao]:
    async with open_bao(settings.openbao, settings.tls) as opened:
        yield opened


@pytest.fixture
async def bao_vault(bao: Bao) -> AsyncIterator[BaoVault]:
    async with open_pipeline(bao) as pipeline:
        yield BaoVault(bao, pipeline)


@pytest.fixture
async def bus(settings: MeshSettings) -> AsyncIterator[Bus]:
    async with open_bus(settings.nats, settings.tls, settings.service) as opened:
        await until(lambda: opened.generation, 5)
        yield opened
