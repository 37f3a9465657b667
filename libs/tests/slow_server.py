"""A process that serves a slow call, to be signalled: `python -m libs.tests.slow_server FOLDER PORT SECONDS`."""

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.rpc.server import Registration, serve
from libs.settings import Tls
from libs.tests.doors import NAME, Relations, runtime
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs


@dataclass
class Waiting(Relations):
    """Answers once a task in the background has come by, as those do whose rows another task writes."""

    waiting: list[asyncio.Event] = field(default_factory=list)

    async def Check(self, request: pb.CheckRequest, rpc: Any) -> pb.CheckResponse:  # noqa: N802 — gRPC's own
        answer = await super().Check(request, rpc)
        self.waiting.append(written := asyncio.Event())
        await written.wait()
        return answer

    async def write(self) -> None:
        """Come by for ever."""
        while True:
            await asyncio.sleep(0.05)
            while self.waiting:
                self.waiting.pop().set()


async def up() -> None:
    """Pass, as a dependency that is there."""


def main(folder: Path, port: int, takes_s: float) -> None:
    own = Tls(certificate_file=folder / "identity.crt", key_file=folder / "identity.key", ca_file=folder / "ca.crt")
    servicer = Waiting(takes_s=takes_s)
    registered = Registration(NAME, servicer, stubs.add_RelationsServiceServicer_to_server, False)
    settings = runtime(own, port=port)
    asyncio.run(serve(settings, [registered], readiness={"postgres": up}, background=[servicer.write()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
