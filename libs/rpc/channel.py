"""Channels to other processes: mTLS, a deadline on every call, the caller's trace and correlation id, typed errors.

A `Peer` is a grpc.aio channel that generated stubs accept. It opens its channel again when the certificate files
change, so that rotation needs no restart.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn, Self

import grpc
from opentelemetry import trace

from libs import settings
from libs.errors import of_peer
from libs.rpc import context
from libs.rpc.status import from_rpc
from libs.telemetry import hop, inject

DEADLINE_S = 5.0
# How long a call waits for a peer whose connection was lost: longer than one back-off, short enough to fail fast.
RECONNECT_WITHIN_S = 0.5
# How soon a new certificate is used.
LOOK_EVERY_S = 1.0
LARGEST_MESSAGE = 4 * 1024 * 1024
OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    # A restarted peer is found at once, not after the default back-off of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Not a back-off, whatever its name says: how long one attempt may take, TLS included.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
]

tracer = trace.get_tracer("libs.rpc")
Metadata = Sequence[tuple[str, str]]


class Peer(grpc.aio.Channel):
    """Another process of ours."""

    def __init__(self, peer: settings.Peer, tls: settings.Tls) -> None:
        self._peer = peer
        self._tls = tls
        self._seen: tuple[int, ...] = ()
        self._look_at = 0.0
        self._channel: grpc.aio.Channel | None = None
        self._retired: list[grpc.aio.Channel] = []

    @property
    def name(self) -> str:
        """Name of the peer."""
        return self._peer.name

    def current(self) -> grpc.aio.Channel:
        """Return the channel for the certificate files as they are now."""
        if self._channel is not None and time.monotonic() < self._look_at:
            return self._channel
        self._look_at = time.monotonic() + LOOK_EVERY_S
        files = (self._tls.certificate_file, self._tls.key_file, self._tls.ca_file)
        try:
            seen = tuple(path.stat().st_mtime_ns for path in files)
            if self._channel is not None and seen == self._seen:
                return self._channel
            certificate, key, authority = (path.read_bytes() for path in files)
        except OSError:
            # Files that are just being replaced must not fail a call that the open channel can carry.
            if self._channel is None:
                raise
        else:
            credentials = grpc.ssl_channel_credentials(authority, key, certificate)
            options = [*OPTIONS, ("grpc.ssl_target_name_override", self._peer.name)]
            if self._channel is not None:
                self._retired.append(self._channel)
            self._channel = grpc.aio.secure_channel(self._peer.address, credentials, options=options)
            self._seen = seen
        return self._channel

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """Return a callable for one method."""
        return _Unary(self, method, request_serializer, response_deserializer)

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        """Return a callable for one method that answers with a stream; the caller bounds it."""

        async def call(request: Any, *, metadata: Metadata = (), timeout: float | None = None) -> AsyncIterator[Any]:  # noqa: ASYNC109 — gRPC's own
            open_stream = self.current().unary_stream(method, request_serializer, response_deserializer)
            stream = open_stream(request, metadata=outgoing(metadata), timeout=timeout)
            try:
                async for answer in stream:
                    yield answer
            except grpc.aio.AioRpcError as error:
                raise of_peer(from_rpc(error)) from None
            finally:
                # A reader that leaves must not hold the peer's drain up until a collector finds the call.
                stream.cancel()

        return call

    async def close(self, grace: float | None = None) -> None:
        """Close the channel, and those that it replaced."""
        for channel in [*self._retired, *([self._channel] if self._channel else [])]:
            await channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 — gRPC's own
        """Return the state of the current channel."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the state of the current channel is another one."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the current channel is ready."""
        await self.current().channel_ready()

    def stream_unary(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: no contract of ours has this shape."""
        raise TypeError("client streams are not used")

    stream_stream = stream_unary


class _Unary:
    """Calls one method with a deadline and turns what fails into a typed error."""

    def __init__(self, peer: Peer, method: str, serialize: Callable[..., bytes], parse: Callable[[bytes], Any]) -> None:
        self._peer = peer
        self._method = method
        self._formats = (serialize, parse)
        self._made: tuple[grpc.aio.Channel, Any] | None = None

    async def __call__(self, request: Any, *, timeout: float = DEADLINE_S, metadata: Metadata = ()) -> Any:  # noqa: ASYNC109 — gRPC's own
        channel = self._peer.current()
        if self._made is None or self._made[0] is not channel:
            self._made = (channel, channel.unary_unary(self._method, *self._formats))
        with hop(tracer, self._method, trace.SpanKind.CLIENT):
            # A channel between two attempts to connect would refuse a call that the next attempt could carry.
            lost = channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            allowed = context.remaining_s(min(timeout, RECONNECT_WITHIN_S) if lost else timeout)
            try:
                return await self._made[1](request, timeout=allowed, metadata=outgoing(metadata), wait_for_ready=lost)
            except grpc.aio.AioRpcError as error:
                raise of_peer(from_rpc(error)) from None


def outgoing(extra: Metadata) -> list[tuple[str, str]]:
    """Return the metadata of an outgoing call: trace, correlation id, what the edge saw of the client, and `extra`."""
    call = context.current_call()
    sent = {
        context.CORRELATION_KEY: call.correlation_id,
        context.CLIENT_IP_KEY: call.client_ip,
        context.USER_AGENT_KEY: call.user_agent,
        **dict(extra),
    }
    metadata = [(name, value) for name, value in sent.items() if value]
    inject(metadata)
    return metadata


@contextlib.asynccontextmanager
async def connect(peer: settings.Peer, tls: settings.Tls) -> AsyncIterator[Peer]:
    """Open a channel for the block; it connects when it is first used."""
    async with Peer(peer, tls) as channel:
        yield channel
