"""Processes of the bearer benchmark: an empty guarded gRPC service, and an edge of the gateway's parts before it.

The edge has two operations. One takes a node's bearer, as every node operation does; the other is open and sends an
assertion along that was made before. Both then make the same empty call, so their difference is the authentication.
"""

import argparse
import asyncio
from pathlib import Path

from aiohttp import web
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from devstack.process import nothing
from libs import telemetry
from libs.audit import AuditClient
from libs.clock import SystemClock
from libs.custody import harden
from libs.rpc import context
from libs.rpc.channel import Peer, connect
from libs.rpc.server import Registration, serve, until_told
from libs.settings import Listen, Runtime, load
from libs.settings import Peer as Place
from plexsphere.identity.v1 import sign_in_pb2 as pb
from plexsphere.identity.v1 import sign_in_pb2_grpc as stubs
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from services.gateway.credentials import AssertionCache, Authenticator
from services.gateway.denials import Denials
from services.gateway.document import load as load_document
from services.gateway.document import operations
from services.gateway.edge import Asked, Edge, Route, build
from services.gateway.limits import AddressLimit
from services.gateway.revocations import follow_revocations
from services.gateway.server import listening, tls_context
from services.gateway.settings import GatewaySettings
from services.gateway.validation import compile_rules
from services.mesh.settings import MeshSettings

AUDIENCE = "mesh"
SERVICE = "plexsphere.mesh.v1.SigningKeysService"
REQUEST = mesh_pb2.EnsureSigningKeyRequest(domain_id="01890000-0000-7000-8000-000000000000")
# An assertion lasts a minute.
RENEW_S = 20.0


class Empty(mesh_pb2_grpc.SigningKeysServiceServicer):
    """Answers with nothing."""

    async def EnsureSigningKey(  # noqa: N802 — gRPC's own form
        self,
        request: mesh_pb2.EnsureSigningKeyRequest,  # noqa: ARG002 — nothing is asked
        context: object,  # noqa: ARG002 — as above
    ) -> mesh_pb2.EnsureSigningKeyResponse:
        """Answer."""
        return mesh_pb2.EnsureSigningKeyResponse()


class Calls:
    """Handlers that make the empty call, each with an assertion from elsewhere."""

    def __init__(self, empty: Peer, identity: Peer, bearer: str) -> None:
        self._empty = mesh_pb2_grpc.SigningKeysServiceStub(empty)
        self._authentication = stubs.AuthenticationServiceStub(identity)
        self._bearer = bearer
        self._metadata: tuple[tuple[str, str], ...] = ()

    async def keep(self) -> None:
        """Renew the assertion of the open operation for ever."""
        request = pb.AuthenticateRequest(
            kind=pb.CREDENTIAL_KIND_NODE_BEARER, credential=self._bearer, audience=AUDIENCE
        )
        while True:
            answer = await self._authentication.Authenticate(request)
            self._metadata = ((context.PRINCIPAL_KEY, answer.assertion),)
            await asyncio.sleep(RENEW_S)

    async def authenticated(self, asked: Asked) -> web.Response:
        """Call for the caller."""
        await self._empty.EnsureSigningKey(REQUEST, metadata=asked.metadata)
        return web.Response()

    async def open(self, _: Asked) -> web.Response:
        """Call with the assertion that is there."""
        await self._empty.EnsureSigningKey(REQUEST, metadata=self._metadata)
        return web.Response()


async def serve_empty(state: Path, port: int) -> None:
    """Serve the empty service with mesh's certificate."""
    settings = load(state / "config/mesh.toml", MeshSettings)
    callers = {name: who for name, who in settings.callers.items() if name.startswith("grpc.")} | {SERVICE: ["gateway"]}
    here = Runtime(
        service=AUDIENCE,
        environment="dev",
        listen=Listen(host="127.0.0.1", port=port),
        tls=settings.tls,
        telemetry=settings.telemetry,
        callers=callers,
    )
    _quiet(here)
    await serve(
        here,
        [Registration(SERVICE, Empty(), mesh_pb2_grpc.add_SigningKeysServiceServicer_to_server, True)],
        readiness={},
    )


async def serve_edge(state: Path, port: int, empty_port: int, bearer: str, *, cached: bool) -> None:
    """Serve the two operations; without `cached` the revocation feed is not followed, so that nothing is kept."""
    settings = load(state / "config/gateway.toml", GatewaySettings)
    _quiet(settings)
    place = Place(address=f"127.0.0.1:{empty_port}", name=AUDIENCE)
    async with (
        connect(settings.peers.identity, settings.tls) as identity,
        connect(settings.peers.audit, settings.tls) as audit,
        connect(place, settings.tls) as empty,
    ):
        cache, calls = AssertionCache(), Calls(empty, identity, bearer)
        routes = {
            "GetNodeState": Route(calls.authenticated, AUDIENCE),
            "GetVersion": Route(calls.open),
        }
        document = load_document(settings.public_url, routes.keys(), "bench")
        rules = compile_rules(document, (one for one in operations(document) if one.id in routes))
        unlimited = AddressLimit(1_000_000, 1_000_000)
        edge = Edge(
            Authenticator(identity, cache, unlimited),
            Denials(AuditClient(audit), SystemClock()),
            {},
            frozenset(),
            settings.request_timeout_s,
        )
        background = [calls.keep()] + ([follow_revocations(identity, cache, None)] if cached else [])
        listen = Listen(host="127.0.0.1", port=port)
        async with listening(build(edge, rules, routes), listen, tls_context(settings.certificate), 1.0):
            await until_told(background, nothing)


def _quiet(settings: Runtime) -> None:
    # As deployments without a collector have it; the metrics port is that of the process whose settings these are.
    telemetry.set_up_logs(settings.service, "info")
    trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))


def main() -> None:
    """Read which of the two to be, and be it."""
    harden()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["empty", "cached", "uncached"])
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--empty-port", type=int, default=0)
    parser.add_argument("--bearer-file", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "empty":
        asyncio.run(serve_empty(arguments.state, arguments.port))
    else:
        bearer = arguments.bearer_file.read_text()
        cached = arguments.what == "cached"
        asyncio.run(serve_edge(arguments.state, arguments.port, arguments.empty_port, bearer, cached=cached))


if __name__ == "__main__":
    main()
