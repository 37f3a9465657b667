"""The HTTPS listener: TLS 1.3, the certificate followed when its files change, a graceful end."""

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from aiohttp import web

from libs.settings import Listen, SettingsError
from services.gateway.problems import Protocol
from services.gateway.settings import Certificate

LOOK_EVERY_S = 1.0
LEFT_EVERY_S = 0.05
HANDSHAKE_S = 10.0
KEEP_ALIVE_S = 75.0
LONGEST_LINE = 8190
MOST_HEADERS = 100

log = structlog.get_logger()


def tls_context(certificate: Certificate) -> ssl.SSLContext:
    """Return a server context that speaks TLS 1.3 and nothing older."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate.certificate_file, certificate.key_file)
    return context


def changed_at(certificate: Certificate) -> tuple[int, ...]:
    """Return when the files changed."""
    return tuple(path.stat().st_mtime_ns for path in (certificate.certificate_file, certificate.key_file))


async def follow_certificate(certificate: Certificate, context: ssl.SSLContext) -> None:
    """Load the certificate again when its files change; the old one stays while the new pair does not fit."""
    seen = changed_at(certificate)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            now = changed_at(certificate)
            if now == seen:
                continue
            context.load_cert_chain(certificate.certificate_file, certificate.key_file)
        except OSError as error:
            log.warning("certificate.not_loaded", cause=type(error).__name__)
        else:
            seen = now
            log.info("certificate.loaded")


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, listen: Listen, context: ssl.SSLContext, drain_s: float
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Serve the application for the block; then take no new requests and let those under way finish.

    From the call of what it yields on, each answer ends its connection: nobody sends one more request on one that is
    about to be closed, where it would be lost (RFC 9112, 9.6). The call returns once nobody is connected, or in time.
    """
    leaving = asyncio.Event()

    async def part(_: web.Request, response: web.StreamResponse) -> None:
        if leaving.is_set():
            response.force_close()
            # The framework has written it for a connection that stays.
            response.headers["Connection"] = "close"

    app.on_response_prepare.append(part)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=drain_s)
    await runner.setup()
    server = runner.server
    if server is None:
        raise SettingsError("the application could not be set up")

    async def leave() -> None:
        leaving.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while server.connections:  # noqa: ASYNC110 — bounded, and the framework sets no event
                    await asyncio.sleep(LEFT_EVERY_S)

    protocol = functools.partial(
        Protocol,
        server,
        loop=asyncio.get_running_loop(),
        access_log=logging.getLogger("edge.access"),
        # Bodies are inflated by us, with a cap.
        auto_decompress=False,
        keepalive_timeout=KEEP_ALIVE_S,
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
        max_headers=MOST_HEADERS,
        lingering_time=1.0,
    )
    try:
        listener = await asyncio.get_running_loop().create_server(
            protocol, listen.host, listen.port, ssl=context, ssl_handshake_timeout=HANDSHAKE_S, backlog=1024
        )
    except OSError as error:
        raise SettingsError(f"cannot listen on {listen.host}:{listen.port}: {error.strerror}") from None
    log.info("server.started", address=f"{listen.host}:{listen.port}")
    try:
        yield leave
    finally:
        log.info("server.draining", seconds=drain_s)
        listener.close()
        await runner.cleanup()
        log.info("server.stopped")
