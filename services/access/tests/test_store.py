"""The schema of access on the real database: empty, and open to its own role."""

import pytest

from devstack import services
from devstack.layout import State
from libs.columns import guard_columns
from libs.pg import create_pool
from libs.settings import load
from services.access.columns import COLUMNS
from services.access.settings import AccessSettings

pytestmark = pytest.mark.integration


async def test_the_columns_are_the_declared_ones(backends: State) -> None:
    services.render(backends, "access")
    settings = load(backends / "config/access.toml", AccessSettings)
    async with create_pool(settings.postgres, settings.tls) as pool:
        await guard_columns(pool, "access", COLUMNS)
