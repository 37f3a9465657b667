"""A process that serves a slow call, to be signalled: `python -m libs.tests.slow_server FOLDER PORT SECONDS`."""

import asyncio
import sys
from pathlib import Path

from libs.rpc.server import Registration, serve
from libs.settings import Tls
from libs.tests.doors import NAME, Relations, runtime
from plexsphere.identity.v1 import relations_pb2_grpc as stubs


async def up() -> None:
    """Pass, as a dependency that is there."""


def main(folder: Path, port: int, takes_s: float) -> None:
    own = Tls(certificate_file=folder / "identity.crt", key_file=folder / "identity.key", ca_file=folder / "ca.crt")
    registered = Registration(NAME, Relations(takes_s=takes_s), stubs.add_RelationsServiceServicer_to_server, False)
    asyncio.run(serve(runtime(own, port=port), [registered], readiness={"postgres": up}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
