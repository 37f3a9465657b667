"""Access's own doors to the real backends, twice: two replicas see the same state."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack import services
from devstack.layout import State
from libs.bao import open_bao
from libs.pg import create_pool
from libs.settings import load
from services.access.settings import AccessSettings
from services.access.vault import BaoVault


@pytest.fixture
def settings(backends: State) -> AccessSettings:
    services.render(backends, "access")
    return load(backends / "config/access.toml", AccessSettings)


@pytest.fixture
async def pools(settings: AccessSettings) -> AsyncIterator[tuple[asyncpg.Pool, asyncpg.Pool]]:
    async with (
        create_pool(settings.postgres, settings.tls) as one,
        create_pool(settings.postgres, settings.tls) as other,
    ):
        yield one, other


@pytest.fixture
async def vault(settings: AccessSettings) -> AsyncIterator[BaoVault]:
    async with open_bao(settings.openbao, settings.tls) as bao:
        yield BaoVault(bao)
