"""The one guard of every gRPC server.

Peer name from the TLS certificate → caller list of the gRPC service (absent or empty admits nobody; there is no switch)
→ principal assertion → protovalidate → handler → error mapping. It wraps unary and server-stream methods; any other
shape is refused, except in the standard reflection service, which is one stream in both directions.
"""

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import grpc
import protovalidate
import structlog
from google.protobuf.message import Message
from grpc_status import rpc_status
from opentelemetry import trace

from libs.errors import Forbidden, Internal, InvalidRequest, PlexError, Unavailable, fault
from libs.ids import uuid7
from libs.principal import AssertionVerifier
from libs.rpc import context
from libs.rpc.status import to_status
from libs.telemetry import count_call, extract

PEER_PREFIX = "spiffe://plexsphere/"
LONGEST_UNARY_S = 30.0
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

log = structlog.get_logger()
tracer = trace.get_tracer("libs.rpc")


def peer_name(servicer_context: Context) -> str:
    """Return the name in the URI SAN of the peer's certificate, or nothing when it is not one of ours.

    Only URI entries count: a DNS or e-mail entry with the same text names nobody. An X.509-SVID has exactly one URI
    (SPIFFE X509-SVID, 2), so a second one, whosever it is, makes the certificate nobody's.
    """
    uris = [bytes(uri) for uri in servicer_context.auth_context().get("peer_uri", ())]
    if len(uris) != 1 or not uris[0].startswith(PEER_PREFIX.encode()):
        return ""
    name = uris[0].decode(errors="replace").removeprefix(PEER_PREFIX)
    return "" if "/" in name else name


@dataclass
class Outcome:
    """What came of a call, under which correlation id."""

    correlation_id: str
    code: str = "ok"
    failed: str = ""


class Guard(grpc.aio.ServerInterceptor):
    """Admits a call or refuses it before the handler runs."""

    def __init__(
        self, callers: Mapping[str, list[str]], principals: Mapping[str, bool], verifier: AssertionVerifier
    ) -> None:
        self._callers = callers
        self._principals = principals
        self._verifier = verifier
        # A method's handler is always the same one.
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method."""
        method = handler_call_details.method
        if (known := self._wrapped.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is not None:
            # Only methods that exist are kept, so a caller cannot make this grow.
            handler = self._wrapped[method] = self._wrap(method, handler)
        return handler

    def _wrap(self, method: str, handler: Any) -> Any:
        service = method.split("/")[1]
        if handler.unary_unary:
            wrapped = functools.partial(self._unary, handler.unary_unary, method)
            return grpc.unary_unary_rpc_method_handler(
                wrapped, handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream:
            stream = functools.partial(self._stream, handler.unary_stream, method)
            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        if service == REFLECTION and handler.stream_stream:
            both = functools.partial(self._reflect, handler.stream_stream, method)
            return grpc.stream_stream_rpc_method_handler(
                both, handler.request_deserializer, handler.response_serializer
            )
        raise TypeError(f"{method}: only unary and server-stream methods are served")

    async def _unary(self, handler: Any, method: str, request: Message, rpc: Context) -> Any:
        with self._observed(method, rpc) as outcome:
            try:
                call = self._admit(method, request, rpc, outcome)
                deadline = call.deadline or time.monotonic() + LONGEST_UNARY_S
                # Bound with its deadline, so that what the handler calls ends in time as well.
                with context.bind(replace(call, deadline=deadline)):
                    async with asyncio.timeout(deadline - time.monotonic()):
                        return await handler(request, rpc)
            except Exception as error:  # noqa: BLE001 — the border: everything becomes a status here and nowhere else
                await self._refuse(method, error, rpc, outcome)
        return None

    # Streams are written here rather than yielded: a generator runs its body in its reader's context, where no call is
    # bound, and is finished by another task when a client leaves.
    async def _stream(self, handler: Any, method: str, request: Message, rpc: Context) -> None:
        with self._observed(method, rpc, stream=True) as outcome:
            try:
                with context.bind(self._admit(method, request, rpc, outcome)):
                    await _write(handler(request, rpc), rpc)
            except Exception as error:  # noqa: BLE001 — as above
                await self._refuse(method, error, rpc, outcome)

    async def _reflect(self, handler: Any, method: str, requests: AsyncIterator[Message], rpc: Context) -> None:
        with self._observed(method, rpc, stream=True) as outcome:
            try:
                with context.bind(self._admit(method, None, rpc, outcome)):
                    await _write(handler(requests, rpc), rpc)
            except Exception as error:  # noqa: BLE001 — as above
                await self._refuse(method, error, rpc, outcome)

    def _admit(self, method: str, request: Message | None, rpc: Context, outcome: Outcome) -> context.Call:
        service = method.split("/")[1]
        peer = peer_name(rpc)
        if not peer or peer not in self._callers.get(service, ()):
            raise Forbidden("this caller is not admitted")
        metadata = {name: value for name, value in rpc.invocation_metadata() or () if isinstance(value, str)}
        # A service that nobody registered with us requires a principal that nobody can have.
        needed = self._principals.get(service, True)
        principal = self._verifier.verify(metadata.get(context.PRINCIPAL_KEY, ""), peer) if needed else None
        if request is not None:
            try:
                protovalidate.validate(request, fail_fast=True)
            except protovalidate.ValidationError as error:
                raise InvalidRequest(_violation(error)) from None
        # The stub says float; there is none for a call without a deadline.
        left = cast("float | None", rpc.time_remaining())
        return context.Call(
            peer=peer,
            correlation_id=outcome.correlation_id,
            client_ip=metadata.get(context.CLIENT_IP_KEY, ""),
            user_agent=metadata.get(context.USER_AGENT_KEY, ""),
            principal=principal,
            deadline=None if left is None else time.monotonic() + left,
        )

    async def _refuse(self, method: str, error: Exception, rpc: Context, outcome: Outcome) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, TimeoutError):
            refusal: PlexError = Unavailable()
        elif isinstance(error, PlexError):
            refusal = error
        else:
            refusal = Internal()
            log.error("rpc.bug", method=method, exc_info=error)
        outcome.code, outcome.failed = refusal.code, fault(error)
        log.info("rpc.refused", method=method, code=refusal.code, reason=str(error) if refusal is error else "")
        await rpc.abort_with_status(rpc_status.to_status(to_status(refusal)))

    @contextlib.contextmanager
    def _observed(self, method: str, rpc: Context, *, stream: bool = False) -> Iterator[Outcome]:
        started = time.monotonic()
        metadata = rpc.invocation_metadata() or ()
        sent = next((str(value) for name, value in metadata if name == context.CORRELATION_KEY), "")
        outcome = Outcome(sent or str(uuid7()))
        with (
            structlog.contextvars.bound_contextvars(correlation_id=outcome.correlation_id),
            tracer.start_as_current_span(
                method,
                context=extract(metadata),
                kind=trace.SpanKind.SERVER,
                record_exception=False,
                set_status_on_exception=False,
            ) as span,
        ):
            try:
                yield outcome
            except asyncio.CancelledError:
                outcome.code = "cancelled"
                raise
            finally:
                span.set_attribute("rpc.code", outcome.code)
                span.set_attribute("correlation_id", outcome.correlation_id)
                count_call(method, outcome.code, outcome.failed, None if stream else time.monotonic() - started)


async def _write(answers: Any, rpc: Context) -> None:
    """Write what a stream handler yields; one that is a coroutine writes by itself."""
    if inspect.isawaitable(answers):
        await answers
        return
    async with contextlib.aclosing(answers):
        async for answer in answers:
            await rpc.write(answer)


def _violation(error: protovalidate.ValidationError) -> str:
    """Name the field and the rule; never the value."""
    violation = error.violations[0].proto
    elements = violation.field.elements if violation.field else ()
    path = ".".join(element.field_name for element in elements)
    return f"{path or 'the request'} {violation.message or violation.rule_id}".strip()
