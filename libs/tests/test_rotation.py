"""Certificates and secrets that are replaced are used without a restart, and nothing that is under way is lost."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from libs import tls
from libs.bao import open_bao
from libs.custody import SecretFile
from libs.nats import Bus
from libs.rpc.server import credentials
from libs.settings import Nats, OpenBao, Runtime, Tls
from libs.telemetry import CollectorExporter, serve_metrics
from libs.tests.doors import runtime
from libs.tests.pki import Authority, make_authority

pytestmark = pytest.mark.unit

WITHIN_S = 10
INFO = b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576,"tls_required":true}\r\n'
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def serial_of(identity: Tls) -> int:
    return serial(identity.certificate_file.read_bytes())


def shown(writer: asyncio.StreamWriter) -> int:
    """Return the serial number of the certificate that the other side showed."""
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


def server_context(authority: Authority, name: str) -> ssl.SSLContext:
    own = authority.issue(name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=own.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(own.certificate_file, own.key_file)
    return context


async def until(seen: Callable[[], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await seen() != wanted:  # noqa: ASYNC110 — nobody tells when it is so
            await asyncio.sleep(0.05)


def with_port(settings: Runtime, **telemetry: Any) -> Runtime:
    changed: Runtime = settings.model_copy(update={"telemetry": settings.telemetry.model_copy(update=telemetry)})
    return changed


async def test_the_metrics_port_follows_its_certificate_and_its_ca(authority: Authority, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = authority.issue("identity")
    serve_metrics(with_port(runtime(own), metrics_port=port))
    scraper = authority.issue("probe")

    async def served(ca_file: Path = own.ca_file) -> int:
        context = tls.client(scraper.model_copy(update={"ca_file": ca_file}))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="identity")
        writer.close()
        return shown(writer)

    assert await served() == serial_of(own)
    authority.issue("identity")
    await until(served, serial_of(own))
    next_one = make_authority(tmp_path / "next", "next CA")
    own.ca_file.write_bytes(own.ca_file.read_bytes() + next_one.ca_file.read_bytes())
    scraper = next_one.issue("probe")

    async def scraped() -> int:
        context = tls.client(scraper.model_copy(update={"ca_file": own.ca_file}))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="identity")
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        with contextlib.suppress(OSError):
            return int((await reader.readline()).split()[1])
        return 0

    await until(scraped, 200)


async def test_the_exporter_of_spans_follows_its_certificate(authority: Authority) -> None:
    callers: list[int] = []

    class Collector(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            async def export(_: bytes, rpc: Any) -> bytes:
                callers.append(serial(rpc.auth_context()["x509_pem_cert"][0]))
                return b""

            assert handler_call_details.method == EXPORT
            return grpc.unary_unary_rpc_method_handler(export)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Collector(),))
    port = server.add_secure_port("127.0.0.1:0", credentials(authority.issue("collector")))
    await server.start()
    own = authority.issue("identity")
    exporter = CollectorExporter(with_port(runtime(own), otlp_endpoint=f"https://127.0.0.1:{port}"))
    with TracerProvider().get_tracer("test").start_as_current_span("x") as span:
        assert isinstance(span, ReadableSpan)
    wanted = []
    for _ in range(2):
        wanted.append(serial_of(own))
        assert await asyncio.to_thread(exporter.export, [span]) is SpanExportResult.SUCCESS
        authority.issue("identity")
    exporter.shutdown()
    await server.stop(0)
    assert callers == wanted


async def test_the_connection_to_nats_follows_its_certificate_and_its_ca(authority: Authority, tmp_path: Path) -> None:
    callers: list[int] = []
    writers: list[asyncio.StreamWriter] = []
    contexts = [server_context(authority, "nats")]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(INFO)
            await writer.start_tls(contexts[-1])
            callers.append(shown(writer))
            writers.append(writer)
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        writer.close()

    async def last() -> int:
        """Drop the connection, and return who came back."""
        while writers:
            writers.pop().close()
        return callers[-1] if callers else 0

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    own = authority.issue("mesh")
    bus = Bus(Nats(address=f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"), own, "mesh", refused_retry_s=0.05)
    running = asyncio.ensure_future(bus.run())
    await until(last, serial_of(own))
    authority.issue("mesh")
    await until(last, serial_of(own))
    # The broker has a certificate of the next CA, which stands beside the first one already.
    next_one = make_authority(tmp_path / "next", "next CA")
    own.ca_file.write_bytes(own.ca_file.read_bytes() + next_one.ca_file.read_bytes())
    broker = next_one.issue("nats")
    contexts.append(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=own.ca_file))
    contexts[-1].verify_mode = ssl.CERT_REQUIRED
    contexts[-1].load_cert_chain(broker.certificate_file, broker.key_file)
    callers.clear()
    await until(last, serial_of(own))
    running.cancel()
    server.close()


@pytest.fixture
async def openbao(authority: Authority) -> AsyncIterator[tuple[list[int], str]]:
    """An OpenBao that answers each path in its time; who asked is in the list, and a path of `slow` takes a while."""
    callers: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(row[15:]) for row in head.lower().splitlines() if row[:15] == b"content-length:"), 0)
                await reader.readexactly(length)
                callers.append(shown(writer))
                await asyncio.sleep(2.5 * (b"slow" in head))
                body = b'{"auth": {"client_token": "t", "lease_duration": 900}}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(authority, "openbao"))
    yield callers, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


async def test_openbao_is_asked_with_the_new_certificate_and_nothing_under_way_is_cut(
    authority: Authority, openbao: tuple[list[int], str]
) -> None:
    (callers, address), own = openbao, authority.issue("secrets")
    async with open_bao(OpenBao(address=address, role="secrets", timeout_s=8), own) as bao:

        async def last() -> int:
            await bao.request("GET", "kv/data/x")
            return callers[-1]

        await last()
        slow = asyncio.ensure_future(bao.request("POST", "kv/data/slow", {}))
        await asyncio.sleep(0.1)
        authority.issue("secrets")
        await until(last, serial_of(own))
        assert not slow.done()
        await slow


async def test_a_pair_that_does_not_fit_yet_costs_no_request(
    authority: Authority, openbao: tuple[list[int], str]
) -> None:
    (callers, address), own = openbao, authority.issue("secrets")
    first = serial_of(own)
    async with open_bao(OpenBao(address=address, role="secrets"), own) as bao:
        await bao.request("GET", "kv/data/x")
        certificate = own.certificate_file.read_bytes()
        authority.issue("secrets")
        fits, _ = own.certificate_file.read_bytes(), own.certificate_file.write_bytes(certificate)
        for _ in range(12):
            await bao.request("GET", "kv/data/x")
            await asyncio.sleep(0.1)
        assert callers[-1] == first
        own.certificate_file.write_bytes(fits)
        await asyncio.sleep(1.1)
        await bao.request("GET", "kv/data/x")
        assert callers[-1] == serial(fits)


def replace(path: Path, content: bytes) -> None:
    """Replace a file in one step, as the kubelet does."""
    beside = path.with_suffix(".next")
    beside.touch(0o600)
    beside.write_bytes(content)
    beside.rename(path)


def test_a_secret_in_a_file_is_the_one_that_is_there_now(tmp_path: Path) -> None:
    path = tmp_path / "key"
    replace(path, b"first")
    secret = SecretFile(path)
    assert secret.reveal() == b"first"
    replace(path, b"other")
    assert secret.matches(b"other")
    assert secret.reveal() == b"other"


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: replace(path, b""), lambda path: path.chmod(0o644)])
def test_what_cannot_be_a_secret_is_never_taken_for_one(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "key"
    replace(path, b"first")
    secret = SecretFile(path)
    spoil(path)
    os.utime(path) if path.exists() else None
    assert secret.reveal() == b"first"
    with pytest.raises((OSError, ValueError), match="key"):
        SecretFile(path)
