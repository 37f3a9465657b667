"""The server and its channels: start, readiness, deadlines, traces, certificates that change, and the end."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from libs import tls
from libs.clock import SystemClock
from libs.errors import Unavailable
from libs.rpc import context
from libs.rpc.channel import LOOK_EVERY_S, connect
from libs.rpc.guard import LONGEST_UNARY_S
from libs.rpc.server import Registration, build, check_callers, check_shapes, credentials, watch_readiness
from libs.settings import Peer, SettingsError, Tls
from libs.tests.doors import ASKED, NAME, Relations, door, raw_channel, runtime
from libs.tests.pki import Authority
from plexsphere.identity.v1 import relations_pb2_grpc as stubs

pytestmark = pytest.mark.unit

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
TRACE = "0af7651916cd43dd8448eb211c80319c"


# Start ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("callers", "named"), [({}, NAME), ({NAME: ["gateway"], "x.Gone": []}, "x.Gone")])
def test_caller_rows_name_exactly_what_is_served(callers: dict[str, list[str]], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        check_callers(callers, {NAME})


def test_a_server_without_a_row_does_not_start(authority: Authority) -> None:
    settings = runtime(authority.issue("identity"))
    settings.callers.pop(NAME)
    registered = Registration(NAME, Relations(), stubs.add_RelationsServiceServicer_to_server, principal=True)
    with pytest.raises(SettingsError, match=NAME):
        build(settings, [registered], health.aio.HealthServicer(), SystemClock())


def test_a_server_of_no_contract_does_not_start(authority: Authority) -> None:
    settings = runtime(authority.issue("identity"), {"test.Nowhere": ["gateway"]})
    settings.callers.pop(NAME)
    registered = Registration("test.Nowhere", Relations(), stubs.add_RelationsServiceServicer_to_server, principal=True)
    with pytest.raises(SettingsError, match=r"test\.Nowhere is not"):
        build(settings, [registered], health.aio.HealthServicer(), SystemClock())


def test_what_takes_a_stream_of_requests_is_refused_at_registration() -> None:
    check_shapes({NAME})
    described = descriptor_pb2.FileDescriptorProto(name="upload.proto", package="test")
    described.message_type.add(name="Chunk")
    method = described.service.add(name="Uploads").method.add(name="Upload", client_streaming=True)
    method.input_type = method.output_type = ".test.Chunk"
    descriptor_pool.Default().Add(described)
    with pytest.raises(SettingsError, match=r"test\.Uploads/Upload"):
        check_shapes({NAME, "test.Uploads"})
    with pytest.raises(SettingsError, match=r"test\.Unknown"):
        check_shapes({"test.Unknown"})


async def test_health_tells_each_dependency_and_all_together() -> None:
    status: Any = health.aio.HealthServicer()
    down = asyncio.Event()

    async def audit() -> None:
        if down.is_set():
            raise Unavailable

    async def postgres() -> None:
        return

    async def told() -> dict[str, Any]:
        return {name: (await status.Check(health_pb2.HealthCheckRequest(service=name), None)).status
                for name in ("", "live", "audit", "postgres")}  # fmt: skip

    async def until(wanted: dict[str, Any]) -> None:
        async with asyncio.timeout(5):
            while await told() != wanted:  # noqa: ASYNC110 — the servicer has no event for it
                await asyncio.sleep(0.02)

    for name in ("", "live", "audit", "postgres"):
        await status.set(name, NOT_SERVING)
    watching = asyncio.create_task(watch_readiness({"audit": audit, "postgres": postgres}, status))
    await until({"": SERVING, "live": SERVING, "audit": SERVING, "postgres": SERVING})
    down.set()
    await until({"": NOT_SERVING, "live": SERVING, "audit": NOT_SERVING, "postgres": SERVING})
    down.clear()
    await until({"": SERVING, "live": SERVING, "audit": SERVING, "postgres": SERVING})
    watching.cancel()


# Deadlines and traces -------------------------------------------------------------------------------------------------


async def test_a_handler_has_what_is_left_of_the_callers_time(authority: Authority) -> None:
    servicer = Relations()
    async with door(authority, servicer) as peer, connect(peer, authority.issue("gateway")) as channel:
        await stubs.RelationsServiceStub(channel).Check(ASKED, timeout=2)
    assert 1 < servicer.left_s <= 2


async def test_a_call_without_a_deadline_gets_one(authority: Authority) -> None:
    servicer = Relations()
    async with door(authority, servicer) as peer, raw_channel(peer, authority.issue("gateway")) as channel:
        await channel.unary_unary(f"/{NAME}/Check")(ASKED.SerializeToString())
    assert LONGEST_UNARY_S - 5 < servicer.left_s <= LONGEST_UNARY_S


async def test_a_call_takes_no_longer_than_the_one_that_it_serves(authority: Authority) -> None:
    async with door(authority, Relations(takes_s=60)) as peer, connect(peer, authority.issue("gateway")) as channel:
        started = time.monotonic()
        with context.bind(context.Call(deadline=started + 0.3)), pytest.raises(Unavailable):
            await stubs.RelationsServiceStub(channel).Check(ASKED, timeout=30)
    assert time.monotonic() - started < 5


async def test_trace_correlation_and_client_go_on_to_the_next_hop(authority: Authority) -> None:
    servicer = Relations()
    kept = [(context.CORRELATION_KEY, "c-1"), (context.CLIENT_IP_KEY, "192.0.2.1"), (context.USER_AGENT_KEY, "a/1")]
    traced = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
    sent = [*kept, traced, (context.PRINCIPAL_KEY, "not for the next")]
    async with door(authority, servicer) as peer, raw_channel(peer, authority.issue("gateway")) as channel:
        await channel.unary_unary(f"/{NAME}/Check")(ASKED.SerializeToString(), metadata=sent)
    went = dict(servicer.sent_on)
    assert went.pop("traceparent").split("-")[1] == TRACE
    assert went == dict(kept)


async def test_a_call_without_a_correlation_id_gets_one_that_goes_on(authority: Authority) -> None:
    servicer = Relations()
    async with door(authority, servicer) as peer, raw_channel(peer, authority.issue("gateway")) as channel:
        await channel.unary_unary(f"/{NAME}/Check")(ASKED.SerializeToString())
    minted = servicer.seen[0].correlation_id
    assert len(minted) == 36
    assert dict(servicer.sent_on)[context.CORRELATION_KEY] == minted


# Certificates ---------------------------------------------------------------------------------------------------------


def touched(identity: Tls) -> None:
    """Tell the new files from the old ones even where the clock of the file system is coarse."""
    later = time.time() + 10
    for path in (identity.certificate_file, identity.key_file):
        os.utime(path, (later, later))


async def shown(peer: Peer, caller: Tls) -> Any:
    """The serial number of the certificate that a server shows to a new connection."""
    agreed = tls.client(caller)
    agreed.set_alpn_protocols(["h2"])
    port = int(peer.address.rsplit(":", 1)[1])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=agreed, server_hostname="identity")
    serial = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return serial


async def test_a_server_follows_its_certificate_files(authority: Authority) -> None:
    caller = authority.issue("gateway")
    async with door(authority, Relations()) as peer:
        before = await shown(peer, caller)
        assert await shown(peer, caller) == before
        touched(authority.issue("identity"))
        assert await shown(peer, caller) != before


async def test_a_server_keeps_its_certificate_while_the_files_are_gone(authority: Authority) -> None:
    caller = authority.issue("gateway")
    async with door(authority, Relations()) as peer:
        before = await shown(peer, caller)
        (authority.folder / "identity.key").unlink()
        assert await shown(peer, caller) == before


async def test_a_channel_follows_its_certificate_files(authority: Authority) -> None:
    servicer, caller = Relations(), authority.issue("gateway")
    async with door(authority, servicer, callers={NAME: ["gateway", "mesh"]}) as peer, connect(peer, caller) as channel:
        stub = stubs.RelationsServiceStub(channel)
        await stub.Check(ASKED)
        other = authority.issue("mesh")
        caller.certificate_file.unlink()
        await asyncio.sleep(LOOK_EVERY_S)
        await stub.Check(ASKED)
        caller.certificate_file.write_bytes(other.certificate_file.read_bytes())
        caller.key_file.write_bytes(other.key_file.read_bytes())
        touched(caller)
        await asyncio.sleep(LOOK_EVERY_S)
        await stub.Check(ASKED)
    assert [call.peer for call in servicer.seen] == ["gateway", "gateway", "mesh"]


# A process of its own -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def process(authority: Authority, takes_s: float) -> AsyncIterator[tuple[Peer, Process]]:
    """Run the slow server, and end it with the block."""
    authority.issue("identity")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("-m", "libs.tests.slow_server", str(authority.folder), str(port), str(takes_s))
    running = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
    try:
        assert running.stdout is not None
        async with asyncio.timeout(20):
            while b"server.started" not in await running.stdout.readline():
                pass
        yield Peer(address=f"127.0.0.1:{port}", name="identity"), running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def test_sigterm_ends_health_first_then_lets_calls_end_and_what_they_need(authority: Authority) -> None:
    async with process(authority, 1) as (peer, running), connect(peer, authority.issue("gateway")) as channel:
        watcher: Any = health_pb2_grpc.HealthStub(channel)
        told = aiter(watcher.Watch(health_pb2.HealthCheckRequest()))
        while (await anext(told)).status != SERVING:
            pass
        last = asyncio.ensure_future(stubs.RelationsServiceStub(channel).Check(ASKED))
        await asyncio.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        assert (await anext(told)).status == NOT_SERVING
        assert not last.done()
        await told.aclose()
        assert (await last).verdict == 1
        # Neither the call nor the reader that left is waited for any more.
        assert await asyncio.wait_for(running.wait(), 4) == 0


async def test_a_second_signal_does_not_wait(authority: Authority) -> None:
    async with process(authority, 60) as (peer, running), connect(peer, authority.issue("gateway")) as channel:
        last = asyncio.ensure_future(stubs.RelationsServiceStub(channel).Check(ASKED, timeout=60))
        await asyncio.sleep(0.3)
        running.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert running.returncode is None
        running.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.wait(), 1) == 128 + signal.SIGTERM
        with pytest.raises(Unavailable):
            await last


async def test_below_tls_1_3_nothing_is_agreed(authority: Authority) -> None:
    caller = authority.issue("gateway")
    older = tls.client(caller)
    older.minimum_version, older.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    older.set_alpn_protocols(["h2"])
    async with process(authority, 0) as (peer, _):
        port = int(peer.address.rsplit(":", 1)[1])
        with pytest.raises(OSError, match=r".*"):
            await asyncio.open_connection("127.0.0.1", port, ssl=older, server_hostname="identity")
        assert await shown(peer, caller)


async def test_a_restarted_peer_is_found_at_once(authority: Authority) -> None:
    caller = authority.issue("gateway")
    async with contextlib.AsyncExitStack() as stack:
        peer, running = await stack.enter_async_context(process(authority, 0))
        channel = await stack.enter_async_context(connect(peer, caller))
        stub = stubs.RelationsServiceStub(channel)
        await stub.Check(ASKED)
        running.kill()
        await running.wait()
        with pytest.raises(Unavailable):
            await stub.Check(ASKED, timeout=1)
        again = build(runtime(authority.issue("identity")), [
            Registration(NAME, Relations(), stubs.add_RelationsServiceServicer_to_server, principal=False)
        ], health.aio.HealthServicer(), SystemClock())  # fmt: skip
        assert again.add_secure_port(peer.address, credentials(authority.issue("identity")))
        await again.start()
        assert (await stub.Check(ASKED, timeout=5)).verdict == 1
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        await again.stop(0)
