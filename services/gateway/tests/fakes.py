"""A stand-in for the five services: answers by method name, and what was asked."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from google.protobuf.message import Message

from libs.rpc import context
from libs.rpc.channel import Peer
from libs.settings import Listen, Nats, Telemetry, Tls
from libs.settings import Peer as PeerSettings
from plexsphere.audit.v1 import audit_pb2
from plexsphere.identity.v1 import sign_in_pb2
from services.gateway.__main__ import application
from services.gateway.credentials import AssertionCache
from services.gateway.health import Health
from services.gateway.hub import Hub
from services.gateway.ports import Ports
from services.gateway.settings import Build, Certificate, GatewaySettings, Limits, Peers, Rate

ORIGIN = "https://edge.test"
NODE_ID = "01900000-0000-7000-8000-000000000001"
NODE_BEARER = "nsk_dev_" + base64.urlsafe_b64encode(bytes.fromhex(NODE_ID.replace("-", "")) + b"k" * 32).decode()

OTHER = "01900000-0000-7000-8000-000000000002"
OPERATOR = {"Authorization": "Bearer pat_dev_x"}
NODE = {"Authorization": f"Bearer {NODE_BEARER}"}
COOKIES = {"Cookie": "plexsphere_session=s; plexsphere_csrf=t"}
BROWSER = COOKIES | {"X-Plexsphere-CSRF": "t", "Origin": ORIGIN}
DOMAIN = {"name": "Acme", "slug": "acme", "mesh_cidr": "10.0.0.0/16"}
BEAT = {"client_now": "2026-01-01T00:00:00Z", "binary_checksum": "00" * 32, "binary_version": "1", "nat_summary": {}}
ENROL = {
    "project_id": OTHER,
    "resource_handle": "h",
    "bootstrap_token": "t",
    "nonce": "n",
    "public_key": "A" * 43 + "=",
}
HEARTBEAT = f"/v1/nodes/{NODE_ID}/heartbeat"
Client = TestClient[Any, Any]

Answer = Callable[[Any], Message]


@dataclass
class FakePeer:
    """All services at once; a method without an answer raises KeyError, which is a bug and 500."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)

    def unary_unary(self, method: str, **_: Any) -> Any:
        name = method.rsplit("/", 1)[-1]

        def answer(name: str, request: Any, metadata: Any) -> Any:
            self.asked.append((name, request, dict(metadata) | {"correlation": context.current_call().correlation_id}))
            return self.answers[name](request)

        async def call(request: Any, *, metadata: Any = (), **_: Any) -> Message:
            if name == "AppendAll":
                # A row is a row, however many go together.
                seqs = [answer("Append", row, metadata).seq for row in request.decisions]
                return audit_pb2.AppendAllResponse(seqs=seqs)
            return cast("Message", answer(name, request, metadata))

        return call

    def unary_stream(self, method: str, **_: Any) -> Any:
        name = method.rsplit("/", 1)[-1]

        async def call(request: Any, *, metadata: Any = (), **_: Any) -> AsyncIterator[Message]:
            self.asked.append((name, request, dict(metadata)))
            # An answer of more than one message.
            for part in cast("Iterable[Message]", self.answers[name](request)):
                yield part

        return call

    def last(self, name: str) -> tuple[Any, dict[str, str]]:
        """The newest call of a method."""
        return next((request, metadata) for found, request, metadata in reversed(self.asked) if found == name)


def assertion(**claims: str) -> str:
    """A JWT in form only."""
    return "h." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".s"


def authenticated(request: Any) -> Message:
    return sign_in_pb2.AuthenticateResponse(assertion=assertion(sub="someone", aud=request.audience))


def settings(tmp: Any, *, origins: list[str], rate: Rate) -> GatewaySettings:
    at = PeerSettings(address="127.0.0.1:1", name="x")
    return GatewaySettings(
        service="gateway",
        environment="dev",
        listen=Listen(host="127.0.0.1", port=1),
        tls=Tls(certificate_file=tmp, key_file=tmp, ca_file=tmp),
        telemetry=Telemetry(metrics_host="127.0.0.1", metrics_port=1),
        ports=[],
        nats=Nats(address="tls://127.0.0.1:1"),
        public_url=ORIGIN,
        allowed_origins=origins,
        request_timeout_s=2.0,
        certificate=Certificate(certificate_file=tmp, key_file=tmp),
        peers=Peers(identity=at, access=at, secrets=at, mesh=at, audit=at),
        limits=Limits(registration=rate, sign_in=rate, device_code=rate, service_token=rate, bad_bearer=rate),
        build=Build(commit="abc", date="2026-01-01T00:00:00Z"),
    )


async def start(
    peer: FakePeer,
    tmp: Any,
    *,
    origins: list[str] | None = None,
    rate: Rate | None = None,
    ports: Ports | None = None,
    hub: Hub | None = None,
    cache: AssertionCache | None = None,
    without: Collection[str] = (),
) -> Client:
    """Serve the whole edge over HTTP in front of the fake services."""
    real = cast("Peer", peer)
    peers = dict.fromkeys({"identity", "access", "secrets", "mesh", "audit"}.difference(without), real)
    peer.answers.setdefault("Authenticate", authenticated)
    peer.answers.setdefault("Append", lambda _: audit_pb2.AppendResponse(seq=1))
    limit = rate or Rate(per_minute=1000, burst=1000)
    wanted = settings(tmp, origins=[ORIGIN] if origins is None else origins, rate=limit)
    app = application(wanted, peers, cache or AssertionCache(), Health({}), ports or Ports(), hub)
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    return TestClient(server)


async def problem(answer: ClientResponse) -> tuple[int, str]:
    body = await answer.json(content_type=None)
    assert answer.content_type == "application/problem+json"
    assert {"type", "title", "status", "detail", "instance", "code", "correlation_id"} <= set(body)
    assert body["correlation_id"] == answer.headers["X-Correlation-Id"]
    assert body["status"] == answer.status
    assert answer.headers["Server"] == "plexsphere"
    return answer.status, body["code"]
