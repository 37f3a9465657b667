"""Every RPC of every service, found by reflection, refuses whoever should not call it, before its handler runs."""

import asyncio
import base64
import datetime
import json
import tomllib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from devstack.layout import State
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

SERVICES = ("identity", "access", "secrets", "mesh", "audit")
STANDARD = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")
SIGNER = "spiffe://plexsphere/identity/assertion"
NOW = datetime.datetime.now(datetime.UTC)


def channel(world: World, service: str, caller: str) -> grpc.aio.Channel:
    """Open a channel to a service with the certificate of a process."""
    pki = world.state / "pki"
    credentials = grpc.ssl_channel_credentials(
        (pki / "ca.crt").read_bytes(), (pki / f"{caller}.key").read_bytes(), (pki / f"{caller}.crt").read_bytes()
    )
    options = [("grpc.ssl_target_name_override", service)]
    return grpc.aio.secure_channel(f"127.0.0.1:{State(world.state).port(service)}", credentials, options=options)


async def methods(world: World, service: str) -> list[tuple[str, bool]]:
    """Return every registered method with whether it streams, as the running server tells it."""

    async def ask(stub: Any, **question: Any) -> Any:
        async def requests() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(**question)

        async for answer in stub.ServerReflectionInfo(requests()):
            return answer
        raise AssertionError("no answer")

    async with channel(world, service, "operator") as opened:
        stub = reflection_pb2_grpc.ServerReflectionStub(opened)  # type: ignore[arg-type]  # the stub forgets asyncio
        listed = await ask(stub, list_services="")
        found = []
        for row in listed.list_services_response.service:
            answer = await ask(stub, file_containing_symbol=row.name)
            for raw in answer.file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(raw)
                for described in file.service:
                    if f"{file.package}.{described.name}" == row.name:
                        found += [(f"/{row.name}/{one.name}", one.server_streaming) for one in described.method]
    return found


async def call(opened: grpc.aio.Channel, method: str, *, streams: bool, assertion: str = "") -> grpc.StatusCode:
    """Call a method with an empty message and return the status."""
    metadata = [("x-plexsphere-principal", assertion)] if assertion else []
    identity: Callable[[bytes], bytes] = lambda raw: raw  # noqa: E731 — bytes in, bytes out
    try:
        if "ServerReflection" in method:
            both: Any = opened.stream_stream(method, identity, identity)
            await both(timeout=5, metadata=metadata).read()
        elif streams:
            stream: Any = opened.unary_stream(method, identity, identity)
            await stream(b"", timeout=5, metadata=metadata).read()
        else:
            unary: Any = opened.unary_unary(method, identity, identity)
            await unary(b"", timeout=5, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def callers(world: World, service: str) -> dict[str, list[str]]:
    with (world.state / f"config/{service}.toml").open("rb") as file:
        rows: dict[str, list[str]] = tomllib.load(file)["callers"]
    return rows


@pytest.mark.parametrize("service", SERVICES)
async def test_a_valid_certificate_of_a_process_that_is_not_listed_is_refused(world: World, service: str) -> None:
    found = await methods(world, service)
    assert {method.split("/")[1] for method, _ in found} == set(callers(world, service))
    everybody = {*SERVICES, "gateway", "migrator", "nats", "probe", "assertion-is-no-client"}
    for outsider in sorted(everybody - {"assertion-is-no-client"}):
        async with channel(world, service, outsider) as opened:
            for method, streams in found:
                if outsider not in callers(world, service)[method.split("/")[1]]:
                    status = await call(opened, method, streams=streams)
                    assert status is grpc.StatusCode.PERMISSION_DENIED, f"{outsider} called {method}: {status}"


@pytest.mark.parametrize("service", SERVICES)
async def test_no_certificate_is_refused_in_the_handshake(world: World, service: str) -> None:
    credentials = grpc.ssl_channel_credentials((world.state / "pki/ca.crt").read_bytes())
    target = f"127.0.0.1:{State(world.state).port(service)}"
    options = [("grpc.ssl_target_name_override", service)]
    async with grpc.aio.secure_channel(target, credentials, options=options) as opened:
        status = await call(opened, "/grpc.health.v1.Health/Check", streams=False)
    assert status is grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class Forge:
    """Makes assertions as identity would, with one thing wrong."""

    pki: Path

    def sign(self, key: Ed25519PrivateKey, leaf: x509.Certificate, **changed: Any) -> str:
        header = {"alg": "Ed25519", "typ": "plexsphere-principal+jwt"}
        header |= {"x5c": [base64.b64encode(leaf.public_bytes(Encoding.DER)).decode()]}  # type: ignore[dict-item]
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        claims = {
            "iss": "plexsphere-identity", "aud": "audit", "azp": "gateway", "jti": "x", "iat": now, "exp": now + 60,
            "sub": "01990000-0000-7000-8000-000000000000", "kind": "user", "cred": "session", "domain_id": "",
            "acr": "", "amr": [], "node_id": "", "project_id": "", "nsk_kid": "", "nsk_digest": "", "sid": "",
        }  # fmt: skip
        parts = [_b64(json.dumps(part).encode()) for part in (header, claims | changed)]
        return ".".join([*parts, _b64(key.sign(".".join(parts).encode()))])

    def genuine(self) -> tuple[Ed25519PrivateKey, x509.Certificate]:
        key = load_pem_private_key((self.pki / "assertion.key").read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        return key, x509.load_pem_x509_certificate((self.pki / "assertion.crt").read_bytes())

    def minted(self, uri: str, *, ours: bool = True, ended: bool = False) -> tuple[Ed25519PrivateKey, x509.Certificate]:
        """Return a signer of our CA, or its own, for a SAN, possibly expired."""
        key = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "assertion")])
        authority = x509.load_pem_x509_certificate((self.pki / "ca.crt").read_bytes())
        authority_key: Any = load_pem_private_key((self.pki / "ca.key").read_bytes(), None)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority.subject if ours else name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=2))
            .not_valid_after(NOW + datetime.timedelta(days=-1 if ended else 1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        )
        return key, builder.sign(authority_key if ours else key, hashes.SHA256() if ours else None)


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def wrong_assertions(service: str, pki: Path) -> dict[str, str]:
    """Each wrong in one thing; the last is right."""
    forge = Forge(pki)
    genuine = forge.genuine()
    now = int(datetime.datetime.now(datetime.UTC).timestamp())
    right = forge.sign(*genuine, aud=service)
    head, body, signature = right.split(".")
    return {
        "missing": "",
        "garbage": "x.y.z",
        "expired": forge.sign(*genuine, aud=service, iat=now - 120, exp=now - 60),
        "living too long": forge.sign(*genuine, aud=service, exp=now + 3600),
        "for another audience": forge.sign(*genuine, aud="gateway"),
        "made for another presenter": forge.sign(*genuine, aud=service, azp="mesh"),
        "of another issuer": forge.sign(*genuine, aud=service, iss="somebody"),
        "signed by a certificate with another SAN": forge.sign(
            *forge.minted("spiffe://plexsphere/gateway"), aud=service
        ),
        "signed by a certificate of another CA": forge.sign(*forge.minted(SIGNER, ours=False), aud=service),
        "signed by an expired certificate": forge.sign(*forge.minted(SIGNER, ended=True), aud=service),
        "signed by another key than the certificate's": forge.sign(
            Ed25519PrivateKey.generate(), genuine[1], aud=service
        ),
        "altered": ".".join([head, _b64(base64.urlsafe_b64decode(body + "==") + b" "), signature]),
        "unsigned": ".".join([_b64(b'{"alg":"none","typ":"plexsphere-principal+jwt"}'), body, ""]),
        "right": right,
    }


@pytest.mark.parametrize("service", SERVICES)
async def test_a_wrong_assertion_is_refused_for_every_rpc_that_requires_one(world: World, service: str) -> None:
    """The message is empty and so not valid: an RPC that got as far as validation would answer INVALID_ARGUMENT."""
    found = [
        (method, streams) for method, streams in await methods(world, service) if method.split("/")[1] not in STANDARD
    ]
    async with channel(world, service, "gateway") as opened:
        mine = [
            (method, streams) for method, streams in found if "gateway" in callers(world, service)[method.split("/")[1]]
        ]
        bare = await asyncio.gather(*(call(opened, method, streams=streams) for method, streams in mine))
        guarded = [row for row, status in zip(mine, bare, strict=True) if status is grpc.StatusCode.UNAUTHENTICATED]
        for name, assertion in wrong_assertions(service, world.state / "pki").items():
            for method, streams in guarded:
                status = await call(opened, method, streams=streams, assertion=assertion)
                refused = status is grpc.StatusCode.UNAUTHENTICATED
                assert refused is (name != "right"), f"{method} with an assertion that is {name}: {status}"
    required = {
        "identity": {
            "AccessPolicyService",
            "ApiTokenService",
            "AuthorizationService",
            "DirectoryService",
            "NodeAdminService",
            "NodeService",
            "PeopleService",
            "SessionService",
        },
        "access": {"AccessService", "AccessNodeService", "SessionKeysAdminService"},
        "secrets": {"SecretsService", "SecretsAdminService"},
        "mesh": {"MeshAdminService"},
        "audit": {"AuditReadService"},
    }[service]
    assert {method.split("/")[1].rsplit(".", 1)[1] for method, _ in guarded} == required
