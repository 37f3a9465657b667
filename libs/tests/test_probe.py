"""A process asks itself how it is, over mTLS, as a container's probe does."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc_health.v1 import health, health_pb2

from libs.clock import SystemClock
from libs.rpc.server import LIVE, build, credentials
from libs.settings import Tls
from libs.tests.doors import runtime
from libs.tests.pki import Authority

pytestmark = pytest.mark.unit

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.asynccontextmanager
async def process(tls: Tls, folder: Path, status: health.aio.HealthServicer) -> AsyncIterator[Path]:
    """Serve health alone, and return the settings file that says where."""
    settings = runtime(tls)
    settings.callers.clear()
    settings.callers.update(
        {health.SERVICE_NAME: ["identity", "audit"], "grpc.reflection.v1alpha.ServerReflection": []}
    )
    server = build(settings, [], status, SystemClock())
    port = server.add_secure_port("127.0.0.1:0", credentials(tls))
    await server.start()
    config = folder / "identity.toml"
    files = "\n".join(f'{name} = "{getattr(tls, name)}"' for name in ("certificate_file", "key_file", "ca_file"))
    config.write_text(f'service = "identity"\n[listen]\nport = {port}\n[tls]\n{files}\n')
    try:
        yield config
    finally:
        await server.stop(0)


async def probe(config: Path, what: str) -> int:
    started = await asyncio.create_subprocess_exec(sys.executable, "-m", "libs.probe", "--config", config, what)
    return await started.wait()


async def test_it_is_ready_when_all_that_it_needs_is_there_and_alive_also_without(
    authority: Authority, tmp_path: Path
) -> None:
    status = health.aio.HealthServicer()
    async with process(authority.issue("identity"), tmp_path, status) as config:
        await status.set(LIVE, SERVING)
        await status.set("", SERVING)
        assert await probe(config, "ready") == 0
        await status.set("", NOT_SERVING)
        assert (await probe(config, "ready"), await probe(config, "live")) == (1, 0)
    assert await probe(config, "live") == 1


async def test_who_answers_in_its_place_is_not_believed(authority: Authority, tmp_path: Path) -> None:
    status = health.aio.HealthServicer()
    async with process(authority.issue("audit"), tmp_path, status) as config:
        await status.set("", SERVING)
        assert await probe(config, "ready") == 1
