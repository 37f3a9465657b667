"""The audit service's own doors to the real backends, twice: two replicas see the same state."""

import uuid
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from devstack.layout import State
from devstack.openbao import client
from libs.bao import Bao, open_bao
from libs.pg import create_pool
from libs.settings import load
from services.audit.settings import AuditSettings
from services.audit.tests.s3 import Env, serving
from services.audit.vault import BaoAnchors


@pytest.fixture
def settings(backends: State) -> AuditSettings:
    return settings_of(backends)


@pytest.fixture
async def pool(settings: AuditSettings) -> AsyncIterator[asyncpg.Pool]:
    async with create_pool(settings.postgres, settings.tls) as opened:
        yield opened


@pytest.fixture
async def bao(settings: AuditSettings, backends: State) -> AsyncIterator[Bao]:
    async with open_bao(settings.openbao, settings.tls) as opened:
        yield opened
        await forget_anchors(opened, backends)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Env]:
    with serving(tmp_path_factory.mktemp("s3")) as env:
        yield env


@pytest.fixture
def bucket(seaweed: Env, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place of one's own in a real object store."""
    for name, value in seaweed.items():
        monkeypatch.setenv(name, value)
    return f"s3://archive/{uuid.uuid4()}"


async def forget_anchors(bao: Bao, backends: State) -> None:
    """Delete the anchors of logs that are not the stack's own: its audit service would refuse their chains."""
    anchors, operator = BaoAnchors(bao), client(backends, "operator")
    for chain in await anchors.chains():
        anchor = await anchors.read(chain)
        if anchor is not None and not anchor.note.startswith(f"{settings_of(backends).checkpoints.log}/"):
            await operator.request("DELETE", f"kv/metadata/audit/{chain}/anchor")
    await operator.close()


def settings_of(backends: State) -> AuditSettings:
    return load(backends / "config/audit.toml", AuditSettings)
