"""Whether the five services answer: asked every second in the background, so that asking the edge is free."""

import asyncio
import functools
from collections.abc import Mapping
from typing import Any

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.errors import Unavailable
from libs.rpc.channel import Peer
from libs.rpc.server import passes
from libs.telemetry import READY

EVERY_S = 1.0

log = structlog.get_logger()


class Health:
    """What is known of the services; nothing yet counts as down."""

    def __init__(self, peers: Mapping[str, Peer]) -> None:
        self._stubs: dict[str, Any] = {name: health_pb2_grpc.HealthStub(peer) for name, peer in peers.items()}
        self.up: dict[str, bool] = dict.fromkeys(peers, False)
        self.draining = False

    async def watch(self) -> None:
        """Ask for ever."""
        while True:
            answers = await asyncio.gather(*(passes(functools.partial(self._ask, name)) for name in self._stubs))
            for name, ok in zip(self._stubs, answers, strict=True):
                READY.labels(name).set(ok)
                if self.up[name] is not ok:
                    log.info("dependency.up" if ok else "dependency.down", dependency=name)
                self.up[name] = ok
            await asyncio.sleep(EVERY_S)

    async def _ask(self, name: str) -> None:
        answer = await self._stubs[name].Check(health_pb2.HealthCheckRequest(), timeout=1.5)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable

    @property
    def status(self) -> str:
        """Return `ok`, `degraded` when some service is down, or `down` when nothing can be answered."""
        if self.draining or not self.up.get("identity"):
            return "down"
        return "ok" if all(self.up.values()) else "degraded"
