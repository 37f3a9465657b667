"""A bare grpc.aio server over mTLS that answers with what it was sent: no guard, no rules, no database."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import grpc

from plexsphere.audit.v1 import audit_pb2

SERVICE, METHOD = "bench.Echo", "Echo"


async def echo(request: Any, _: Any) -> Any:
    """Answer."""
    return request


async def serve(port: int, folder: Path) -> None:
    """Serve until the process is killed, with audit's certificate."""
    key, certificate, authority = (folder.joinpath(name).read_bytes() for name in ("audit.key", "audit.crt", "ca.crt"))
    server = grpc.aio.server()
    message = audit_pb2.AppendRequest
    handler = grpc.unary_unary_rpc_method_handler(echo, message.FromString, message.SerializeToString)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})])
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Read where to serve, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pki", type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.pki))


if __name__ == "__main__":
    main()
