"""The gRPC server of every service: mTLS, the guard, health, reflection, drain."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from libs.clock import Clock, SystemClock
from libs.principal import AssertionVerifier
from libs.rpc.channel import LARGEST_MESSAGE
from libs.rpc.guard import REFLECTION, Guard
from libs.settings import Runtime, SettingsError, Tls
from libs.telemetry import READY

HEALTH = health.SERVICE_NAME
LIVE = "live"
READINESS_EVERY_S = 1.0
READINESS_WITHIN_S = 2.0
# How soon a replica that was added gets its share: behind one address a connection stays where it is until it ends.
CONNECTION_AGE_S = 600.0
EXIT_SIGNALLED = 128
Check = Callable[[], Awaitable[object]]

log = structlog.get_logger()


@dataclass(frozen=True)
class Registration:
    """One gRPC service: its full name, how it is added to a server, and whether it requires a principal."""

    name: str
    servicer: Any
    add: Callable[[Any, grpc.aio.Server], None]
    principal: bool


def check_callers(callers: Mapping[str, list[str]], served: set[str]) -> None:
    """Refuse to start when a served gRPC service has no row in `[callers]`, or a row names none that is served."""
    wrong = sorted(served ^ set(callers))
    if wrong:
        raise SettingsError("[callers] must name exactly the gRPC services that exist; wrong: " + ", ".join(wrong))


def check_shapes(names: set[str]) -> None:
    """Refuse to start with a gRPC service that is not described, or that takes a stream of requests."""
    pool = descriptor_pool.Default()
    for name in sorted(names):
        try:
            service = pool.FindServiceByName(name)
        except KeyError:
            raise SettingsError(f"{name} is not a gRPC service of any contract") from None
        for method in service.methods:
            if method.client_streaming and name != REFLECTION:
                raise SettingsError(f"{name}/{method.name}: only unary and server-stream methods are served")


def credentials(tls: Tls) -> grpc.ServerCredentials:
    """Return mTLS credentials that follow the certificate files when they change."""
    files = (tls.key_file, tls.certificate_file, tls.ca_file)
    seen: tuple[int, ...] = ()

    def configuration() -> grpc.ServerCertificateConfiguration:
        key, certificate, authority = (path.read_bytes() for path in files)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def changed() -> Any:  # the stub forgets that nothing means unchanged
        nonlocal seen
        now = tuple(path.stat().st_mtime_ns for path in files)
        if now == seen:
            return None
        seen = now
        return configuration()

    first = configuration()
    seen = tuple(path.stat().st_mtime_ns for path in files)
    return grpc.dynamic_ssl_server_credentials(first, changed, require_client_authentication=True)


async def serve(
    settings: Runtime,
    registrations: Sequence[Registration],
    *,
    readiness: Mapping[str, Check],
    background: Sequence[Awaitable[None]] = (),
) -> None:
    """Serve until SIGTERM, then drain; a background task that ends takes the process down with it."""
    status = health.aio.HealthServicer()
    server = build(settings, registrations, status, SystemClock())
    address = f"{settings.listen.host}:{settings.listen.port}"
    if server.add_secure_port(address, credentials(settings.tls)) == 0:
        raise SettingsError(f"cannot listen on {address}")
    # What nobody looked at yet is not there, while the library begins with the opposite.
    await status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await server.start()
    log.info("server.started", address=address)

    async def drain() -> None:
        # Health first, so that nobody is sent here any more while the last calls end.
        await status.enter_graceful_shutdown()
        log.info("server.draining", seconds=settings.drain_s)
        await server.stop(settings.drain_s)
        log.info("server.stopped")

    await until_told([*background, watch_readiness(readiness, status)], drain)


def build(
    settings: Runtime,
    registrations: Sequence[Registration],
    status: health.aio.HealthServicer,
    clock: Clock,
    age_s: float = CONNECTION_AGE_S,
) -> grpc.aio.Server:
    """Return the guarded server with health and reflection, not yet listening."""
    served = {registration.name for registration in registrations} | {HEALTH, REFLECTION}
    check_callers(settings.callers, served)
    check_shapes(served)
    principals = {registration.name: registration.principal for registration in registrations}
    verifier = AssertionVerifier(settings.tls.ca_file, settings.service, clock)
    guard = Guard(settings.callers, principals | {HEALTH: False, REFLECTION: False}, verifier)
    server = grpc.aio.server(
        interceptors=[guard],
        options=[
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
            ("grpc.max_send_message_length", LARGEST_MESSAGE),
            ("grpc.so_reuseport", 0),
            # Calls under way end first, however long they take: no grace is set for them, so that none is cut.
            ("grpc.max_connection_age_ms", round(age_s * 1000)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ],
    )
    for registration in registrations:
        registration.add(registration.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection([*served], server)
    return server


async def until_told(background: Sequence[Awaitable[None]], drain: Callable[[], Awaitable[None]]) -> None:
    """Run background tasks until SIGTERM or SIGINT, then drain; raises what a task raised. A second signal ends it."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tasks = [asyncio.ensure_future(task) for task in background]
    waiting = asyncio.ensure_future(stopped.wait())
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        # What follows is the drain: whoever signals again does not want to wait for it. Not the default action, which
        # the kernel withholds from the first process of a container.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, os._exit, EXIT_SIGNALLED + number)
        try:
            # Calls under way still need what runs in the background: the writer of their rows, the feed of revocations.
            await drain()
        finally:
            for task in [waiting, *tasks]:
                task.cancel()
            await asyncio.gather(waiting, *tasks, return_exceptions=True)


async def watch_readiness(checks: Mapping[str, Check], status: health.aio.HealthServicer) -> None:
    """Keep health true: "" tells the dependencies together, each by its name, "live" only the loop."""
    serving = health_pb2.HealthCheckResponse.SERVING
    failing = health_pb2.HealthCheckResponse.NOT_SERVING
    await status.set(LIVE, serving)
    before: dict[str, bool] = {}
    while True:
        answers = await asyncio.gather(*(passes(check) for check in checks.values()))
        now = dict(zip(checks, answers, strict=True))
        for name, ok in now.items():
            READY.labels(name).set(ok)
            await status.set(name, serving if ok else failing)
            if before.get(name) is not ok:
                log.info("dependency.up" if ok else "dependency.down", dependency=name)
        await status.set("", serving if all(answers) else failing)
        before = now
        await asyncio.sleep(READINESS_EVERY_S)


async def passes(check: Check) -> bool:
    """Say whether a check passes in time."""
    try:
        async with asyncio.timeout(READINESS_WITHIN_S):
            await check()
    except Exception:  # noqa: BLE001 — whatever a dependency does, it is down
        return False
    return True
