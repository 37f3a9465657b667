"""The audit service's own doors to the real backends, twice: two replicas see the same state."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack.layout import State
from libs.bao import Bao, open_bao
from libs.pg import create_pool
from libs.settings import load
from services.audit.settings import AuditSettings


@pytest.fixture
def settings(backends: State) -> AuditSettings:
    return load(backends / "config/audit.toml", AuditSettings)


@pytest.fixture
async def pool(settings: AuditSettings) -> AsyncIterator[asyncpg.Pool]:
    async with create_pool(settings.postgres, settings.tls) as opened:
        yield opened


@pytest.fixture
async def bao(settings: AuditSettings) -> AsyncIterator[Bao]:
    async with open_bao(settings.openbao, settings.tls) as opened:
        yield opened
