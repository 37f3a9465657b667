"""The secrets service's own doors to the real backends, twice: two replicas see the same state."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack import services
from devstack.layout import State
from libs.bao import open_bao
from libs.pg import create_pool
from libs.settings import load
from services.secrets.settings import SecretsSettings
from services.secrets.vault import BaoVault


@pytest.fixture
def settings(backends: State) -> SecretsSettings:
    services.render(backends, "secrets")
    return load(backends / "config/secrets.toml", SecretsSettings)


@pytest.fixture
async def pools(settings: SecretsSettings) -> AsyncIterator[tuple[asyncpg.Pool, asyncpg.Pool]]:
    async with (
        create_pool(settings.postgres, settings.tls) as one,
        create_pool(settings.postgres, settings.tls) as other,
    ):
        yield one, other


@pytest.fixture
async def vault(settings: SecretsSettings) -> AsyncIterator[BaoVault]:
    async with open_bao(settings.openbao, settings.tls) as bao:
        yield BaoVault(bao)
