"""The listener over real TLS, and the revocation feed: what happens when files or streams change under them."""

import asyncio
import contextlib
import datetime as dt
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from libs.errors import Unavailable
from libs.settings import Listen
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import sign_in_pb2
from services.gateway.credentials import AssertionCache, Key
from services.gateway.revocations import follow_revocations
from services.gateway.server import follow_certificate, listening, tls_context
from services.gateway.settings import Certificate
from services.gateway.tests.fakes import assertion

pytestmark = pytest.mark.unit


def issue(folder: Path, name: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    files = Certificate(certificate_file=folder / "edge.crt", key_file=folder / "edge.key")
    files.certificate_file.write_bytes(made.public_bytes(Encoding.PEM))
    files.key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


async def ask(port: int, raw: bytes) -> tuple[str, bytes]:
    """Send raw bytes; returns the name in the server's certificate and the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    return x509.load_der_x509_certificate(der).subject.rfc4514_string(), answer


GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def edge(
    files: Certificate, context: ssl.SSLContext, leaving: list[Callable[[], Awaitable[None]]] | None = None
) -> AsyncIterator[int]:
    async def hello(_: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    port = free_port()
    async with listening(app, Listen(host="127.0.0.1", port=port), context, 2.0) as leave:
        if leaving is not None:
            leaving.append(leave)
        yield port


async def test_a_new_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    files = issue(tmp_path, "first")
    context = tls_context(files)
    following = asyncio.create_task(follow_certificate(files, context))
    async with edge(files, context) as port:
        assert (await ask(port, GET))[0] == "CN=first"
        files.certificate_file.write_bytes(b"half written")
        await asyncio.sleep(1.2)
        assert (await ask(port, GET))[0] == "CN=first"
        issue(tmp_path, "second")
        os.utime(files.certificate_file, ns=(1, 1))
        await asyncio.sleep(1.2)
        assert (await ask(port, GET))[0] == "CN=second"
    following.cancel()


async def test_older_tls_is_refused(tmp_path: Path) -> None:
    files = issue(tmp_path, "x")
    old = client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with edge(files, tls_context(files)) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"nonsense\r\n\r\n", b" 400 ", b'"invalid_body"'),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", b" 431 ", b'"headers_too_large"'),
    ],
)
async def test_what_is_not_http_gets_a_problem_too(tmp_path: Path, raw: bytes, status: bytes, code: bytes) -> None:
    files = issue(tmp_path, "x")
    async with edge(files, tls_context(files)) as port:
        _, answer = await ask(port, raw)
    assert status in answer.split(b"\r\n")[0]
    assert code in answer
    assert b"application/problem+json" in answer


async def test_a_request_under_way_is_finished_before_the_end(tmp_path: Path) -> None:
    files = issue(tmp_path, "x")
    async with edge(files, tls_context(files)) as port:
        asking = asyncio.create_task(ask(port, GET))
        await asyncio.sleep(0.15)
    assert (await asking)[1].endswith(b"hello")


async def test_who_leaves_answers_and_says_that_the_connection_ends(tmp_path: Path) -> None:
    files, leaving = issue(tmp_path, "x"), list[Callable[[], Awaitable[None]]]()
    async with edge(files, tls_context(files), leaving) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client())
        heads, left = [], list[asyncio.Future[None]]()
        for leave in ([], leaving):
            left += [asyncio.ensure_future(one()) for one in leave]
            await asyncio.sleep(0.1)
            writer.write(GET.replace(b"Connection: close\r\n", b""))
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            assert await reader.readexactly(5) == b"hello"
        assert [b"Connection: close" in head for head in heads] == [False, True]
        # As it said; and whoever comes anew meanwhile is answered as well.
        assert await asyncio.wait_for(reader.read(), 1) == b""
        writer.close()
        assert (await ask(port, GET))[1].endswith(b"hello")
        # Nobody is connected any more.
        await asyncio.wait_for(left[0], 1)


class FakeFeed:
    """Sends what it is given, then fails or falls silent."""

    def __init__(self, *messages: pb.WatchRevocationsResponse) -> None:
        self.messages = messages
        self.sent = asyncio.Event()

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        async def call(_: Any) -> AsyncIterator[pb.WatchRevocationsResponse]:
            for message in self.messages:
                yield message
            self.sent.set()
            await asyncio.sleep(0.1)
            raise Unavailable

        return call

    def unary_unary(self, *_: Any, **__: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (pb.WatchRevocationsResponse(), True),
        (pb.WatchRevocationsResponse(relation=pb.RevokedRelation(subject="node:other")), True),
        (pb.WatchRevocationsResponse(relation=pb.RevokedRelation(subject="node:n")), False),
        (pb.WatchRevocationsResponse(credential_digest="d"), False),
        (pb.WatchRevocationsResponse(credential_digest="e"), True),
        (pb.WatchRevocationsResponse(node_id="n"), False),
        (pb.WatchRevocationsResponse(identity_id="u"), False),
        (pb.WatchRevocationsResponse(identity_id="v"), True),
        (pb.WatchRevocationsResponse(domain_id="w"), False),
        (pb.WatchRevocationsResponse(domain_id="x"), True),
    ],
)
async def test_the_feed_purges_and_its_end_forgets_all(message: pb.WatchRevocationsResponse, kept: bool) -> None:  # noqa: FBT001 — a column of the table
    cache, key = AssertionCache(), Key(sign_in_pb2.CREDENTIAL_KIND_OPERATOR_BEARER, "d", "audit")
    cache.heard()
    cache.put(key, assertion(sub="u", node_id="n", domain_id="w"), cache.generation)
    feed = FakeFeed(message)
    following = asyncio.create_task(follow_revocations(cast("Any", feed), cache, None))
    await feed.sent.wait()
    assert (cache.get(key) is not None) == kept
    await asyncio.sleep(0.2)
    assert not cache.open
    following.cancel()
