"""The guard, over real mTLS: who is refused, when, and what a refusal says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from libs.errors import (
    DatastoreUnavailable,
    Forbidden,
    Internal,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from libs.rpc import context
from libs.rpc.channel import connect
from libs.rpc.context import CORRELATION_KEY, PRINCIPAL_KEY
from libs.settings import Tls
from libs.tests.doors import ASKED, NAME, Relations, door, raw_channel
from libs.tests.forge import ATTACKS, SUBJECT, Forge
from libs.tests.pki import Authority
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs

pytestmark = pytest.mark.unit

PLANTED = "planted-7f1c9e"
OURS = "spiffe://plexsphere/"

OUTSIDERS: dict[str, Callable[[Authority], Tls]] = {
    "an unlisted caller": lambda ca: ca.issue("mesh"),
    "another service that calls itself gateway": lambda ca: ca.issue("gateway", uris=(OURS + "mesh",)),
    "a name of another trust domain": lambda ca: ca.issue("gateway", uris=("spiffe://other/gateway",)),
    "a name below the caller's": lambda ca: ca.issue("gateway", uris=(OURS + "gateway/assertion",)),
    "a name around the caller's": lambda ca: ca.issue("gateway", uris=(OURS + "x/gateway",)),
    "two names": lambda ca: ca.issue("gateway", uris=(OURS + "gateway", OURS + "mesh")),
    "no name of ours": lambda ca: ca.issue("gateway", uris=("https://gateway",)),
    "a foreign name beside the caller's": lambda ca: ca.issue("gateway", uris=(OURS + "gateway", "https://gateway")),
    "the caller's name as a DNS entry": lambda ca: ca.issue("x", uris=(), others=(x509.DNSName(OURS + "gateway"),)),
    "the caller's name as an e-mail entry": lambda ca: ca.issue(
        "x", uris=(), others=(x509.RFC822Name(OURS + "gateway"),)
    ),
    "an empty name": lambda ca: ca.issue("gateway", uris=(OURS,)),
}


@pytest.mark.parametrize("outsider", OUTSIDERS)
async def test_a_caller_is_refused_before_the_handler(outsider: str, authority: Authority) -> None:
    servicer = Relations()
    async with door(authority, servicer) as peer, connect(peer, OUTSIDERS[outsider](authority)) as channel:
        with pytest.raises(Forbidden, match="not admitted"):
            await stubs.RelationsServiceStub(channel).Check(ASKED)
        with pytest.raises(Forbidden, match="not admitted"):
            await anext(aiter(stubs.RelationsServiceStub(channel).WatchRevocations(pb.WatchRevocationsRequest())))
    assert servicer.seen == []


@pytest.mark.parametrize("rows", [[], ["Gateway"], ["gate"]])
async def test_a_row_that_does_not_name_the_caller_admits_nobody(rows: list[str], authority: Authority) -> None:
    servicer = Relations()
    caller = authority.issue("gateway")
    async with door(authority, servicer, callers={NAME: rows}) as peer, connect(peer, caller) as channel:
        with pytest.raises(Forbidden):
            await stubs.RelationsServiceStub(channel).Check(ASKED)
    assert servicer.seen == []


async def test_no_certificate_and_another_cas_are_refused_in_the_handshake(authority: Authority) -> None:
    foreign = Forge(authority).stranger().issue("gateway").model_copy(update={"ca_file": authority.ca_file})
    expired = authority.issue("gateway", valid_for=-1)
    async with door(authority, Relations()) as peer:
        for caller in (foreign, expired):
            async with connect(peer, caller) as channel:
                with pytest.raises(Unavailable):
                    await stubs.RelationsServiceStub(channel).Check(ASKED, timeout=1)
        bare = grpc.ssl_channel_credentials(authority.ca_file.read_bytes())
        named = [("grpc.ssl_target_name_override", "identity")]
        anonymous: Any = grpc.aio.secure_channel(peer.address, bare, options=named)
        async with anonymous as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(f"/{NAME}/Check")(b"", timeout=1)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_is_somebody_else_is_not_spoken_to(authority: Authority) -> None:
    servicer = Relations()
    async with door(authority, servicer) as peer:
        other = peer.model_copy(update={"name": "audit"})
        async with connect(other, authority.issue("gateway")) as channel:
            with pytest.raises(Unavailable):
                await stubs.RelationsServiceStub(channel).Check(ASKED, timeout=1)
    assert servicer.seen == []


# gRPC itself refuses metadata as long as the one that is too long.
@pytest.mark.parametrize("attack", sorted(ATTACKS.keys() - {"too long"}))
async def test_an_assertion_is_refused_before_the_handler(attack: str, authority: Authority) -> None:
    servicer, sent = Relations(), [(PRINCIPAL_KEY, ATTACKS[attack](Forge(authority)))]
    async with door(authority, servicer, principal=True) as peer, connect(peer, authority.issue("gateway")) as channel:
        stub = stubs.RelationsServiceStub(channel)
        with pytest.raises(Unauthenticated):
            await stub.Check(ASKED, metadata=sent)
        with pytest.raises(Unauthenticated):
            await anext(aiter(stub.WatchRevocations(pb.WatchRevocationsRequest(), metadata=sent)))
    assert servicer.seen == []


async def test_a_right_assertion_reaches_unary_and_stream_handlers(authority: Authority) -> None:
    servicer, sent = Relations(), [(PRINCIPAL_KEY, Forge(authority).sign()), (CORRELATION_KEY, "c-1")]
    async with door(authority, servicer, principal=True) as peer, connect(peer, authority.issue("gateway")) as channel:
        stub = stubs.RelationsServiceStub(channel)
        await stub.Check(ASKED, metadata=sent)
        request = pb.WatchRevocationsRequest()
        answers = [answer.node_id async for answer in stub.WatchRevocations(request, metadata=sent)]
    assert answers == ["c-1"] * 3
    assert len(servicer.seen) == 2
    for call in servicer.seen:
        assert (call.peer, call.correlation_id) == ("gateway", "c-1")
        assert call.principal is not None
        assert call.principal.subject == SUBJECT


async def test_where_none_is_required_nobody_is_asserted(authority: Authority) -> None:
    servicer, sent = Relations(), [(PRINCIPAL_KEY, Forge(authority).sign())]
    async with door(authority, servicer) as peer, connect(peer, authority.issue("gateway")) as channel:
        await stubs.RelationsServiceStub(channel).Check(ASKED, metadata=sent)
    assert servicer.seen[0].principal is None
    with pytest.raises(Unauthenticated):
        context.current_principal()


async def test_a_message_that_breaks_its_rules_is_refused_by_name_and_not_by_value(authority: Authority) -> None:
    servicer, wrong = Relations(), pb.CheckRequest(subject=PLANTED, permission="read", resource="platform:main")
    async with door(authority, servicer) as peer, connect(peer, authority.issue("gateway")) as channel:
        with pytest.raises(InvalidRequest, match=r"^subject ") as refused:
            await stubs.RelationsServiceStub(channel).Check(wrong)
    assert PLANTED not in str(refused.value)
    assert servicer.seen == []


@pytest.mark.parametrize("bug", [ValueError(PLANTED), KeyError(PLANTED), ExceptionGroup(PLANTED, [OSError(PLANTED)])])
async def test_a_bug_is_a_bare_internal(
    bug: Exception, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    caller = authority.issue("gateway")
    async with door(authority, Relations(raises=bug)) as peer, raw_channel(peer, caller) as channel:
        ask = channel.unary_unary(f"/{NAME}/Check")
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await ask(ASKED.SerializeToString(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as stream:
            async for _ in channel.unary_stream(f"/{NAME}/WatchRevocations")(b"", timeout=5):
                pass
    for failed in (unary.value, stream.value):
        assert failed.code() is grpc.StatusCode.INTERNAL
        assert failed.details() == "Internal error"
        assert PLANTED not in f"{failed!r} {failed.trailing_metadata()!r}"


async def test_what_is_unavailable_tells_no_cause(authority: Authority) -> None:
    servicer = Relations(raises=DatastoreUnavailable(PLANTED))
    async with door(authority, servicer) as peer, connect(peer, authority.issue("gateway")) as channel:
        with pytest.raises(DatastoreUnavailable) as refused:
            await stubs.RelationsServiceStub(channel).Check(ASKED)
    assert refused.value.detail == DatastoreUnavailable.title


async def test_a_timeout_within_is_unavailable_and_not_a_bug(authority: Authority) -> None:
    async with (
        door(authority, Relations(raises=TimeoutError())) as peer,
        connect(peer, authority.issue("gateway")) as channel,
    ):
        with pytest.raises(Unavailable):
            await stubs.RelationsServiceStub(channel).Check(ASKED)


async def test_a_stream_can_end_with_a_typed_error(authority: Authority) -> None:
    async with (
        door(authority, Relations(raises=NotFound())) as peer,
        connect(peer, authority.issue("gateway")) as channel,
    ):
        answers: AsyncIterator[pb.WatchRevocationsResponse]
        answers = aiter(stubs.RelationsServiceStub(channel).WatchRevocations(pb.WatchRevocationsRequest()))
        with pytest.raises(NotFound):
            assert len([answer async for answer in answers]) == 3


async def test_a_client_that_leaves_ends_the_handler(authority: Authority) -> None:
    servicer = Relations(takes_s=60)
    async with door(authority, servicer) as peer, raw_channel(peer, authority.issue("gateway")) as channel:
        stream = channel.unary_stream(f"/{NAME}/WatchRevocations")(b"")
        await stream.read()
        stream.cancel()
        await asyncio.wait_for(servicer.ended.wait(), 5)


async def test_an_unknown_method_is_version_skew_and_an_unknown_service_too(authority: Authority) -> None:
    async with door(authority, Relations()) as peer, connect(peer, authority.issue("gateway")) as channel:
        for method in (f"/{NAME}/Forget", "/plexsphere.identity.v2.Relations/Check"):
            with pytest.raises(Unavailable):
                await channel.unary_unary(method, lambda _: b"", lambda raw: raw)(None)


async def test_health_and_reflection_have_their_own_rows(authority: Authority) -> None:
    async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with door(authority, Relations(), principal=True) as peer:
        async with raw_channel(peer, authority.issue("operator")) as operator:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(operator)
            listed = await stub.ServerReflectionInfo(questions()).read()
            found = {row.name for row in listed.list_services_response.service}
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await operator.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
        assert found == {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        async with connect(peer, authority.issue("gateway")) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            serving = health_pb2.HealthCheckResponse.SERVING
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == serving
            async for answer in health.Watch(health_pb2.HealthCheckRequest()):
                assert answer.status == serving
                break


async def test_a_message_over_its_limit_is_refused(authority: Authority) -> None:
    caller = authority.issue("gateway")
    async with door(authority, Relations()) as peer, raw_channel(peer, caller) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{NAME}/Check")(bytes(4 * 1024 * 1024 + 1), timeout=5)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_maps_what_is_no_error_of_ours(authority: Authority) -> None:
    async with door(authority, Relations()) as peer, connect(peer, authority.issue("gateway")) as channel:
        with pytest.raises(Internal):
            # Not a message of this contract: gRPC answers INTERNAL or UNKNOWN by itself.
            await channel.unary_unary(f"/{NAME}/Check", lambda _: b"\xff\xff", lambda raw: raw)(None)
