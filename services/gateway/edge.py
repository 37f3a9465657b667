"""The way of a request through the edge, the same for every operation: who, may the browser, what, then its handler."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web
from opentelemetry import context as otel_context
from opentelemetry import trace

from libs import errors
from libs.errors import PlexError
from libs.ids import uuid7
from libs.rpc import context
from libs.telemetry import count_call
from services.gateway import bodies, problems
from services.gateway.approval import approval
from services.gateway.credentials import CSRF_COOKIE, Authenticator, Credential, claims_of, present, presented
from services.gateway.csrf import require_same_site
from services.gateway.denials import BAD_BEARERS, Denials
from services.gateway.document import FORM, OCTETS, SIGN_OUT, Operation
from services.gateway.limits import AddressLimit, AddressLimited, Network, client_address
from services.gateway.validation import Rules, body_error

CORRELATION = web.RequestKey("correlation", str)
OPERATION = web.RequestKey("operation", str)
# A handler that streams lifts the deadline of its request, and says that its answer has begun.
DEADLINE = web.RequestKey("deadline", asyncio.Timeout)
STREAMED = web.RequestKey("streamed", web.StreamResponse)
LONGEST_USER_AGENT = 512
LONGEST_CORRELATION = 64
FORWARDED = "X-Forwarded-For"
# Opening a stream needs to know where the node stands; identity says so with the assertion.
STREAMS = frozenset({"GetNodeEvents"})
REGISTER = "PostRegister"

log = structlog.get_logger()
tracer = trace.get_tracer("services.gateway")


@dataclass(frozen=True)
class Asked:
    """A request as its handler sees it: checked, and with the assertion of its caller as call metadata.

    `generation` is that of the revocations before the caller was authenticated.
    """

    http: web.Request
    path: Mapping[str, Any]
    query: Mapping[str, Any]
    body: Any
    credential: Credential | None
    metadata: tuple[tuple[str, str], ...]
    generation: int


Handler = Callable[[Asked], Awaitable[web.StreamResponse]]
Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """A handler, the service that its assertion is for, and whether this deployment provides it."""

    handler: Handler
    audience: str = "identity"
    provisioned: bool = True


async def not_provisioned(_: Asked) -> web.StreamResponse:
    """Refuse an operation that this deployment does not provide."""
    raise errors.NotProvisioned


@dataclass(frozen=True)
class Edge:
    """Takes requests to handlers."""

    authenticator: Authenticator
    denials: Denials
    limits: Mapping[str, AddressLimit]
    allowed_origins: frozenset[str]
    timeout_s: float
    trusted_proxies: Collection[Network] = ()

    def endpoint(self, rules: Rules, route: Route | None) -> Endpoint:
        """Return the aiohttp handler of one operation."""
        operation = rules.operation

        async def handle(request: web.Request) -> web.StreamResponse:
            request[OPERATION] = operation.id
            address = context.current_call().client_ip
            try:
                if limit := self.limits.get(operation.id):
                    limit.take(address)
                if operation.id != REGISTER:
                    return await self._handle(rules, route, request, address)
                # A bootstrap token is a credential that can be guessed like the others.
                async with self.authenticator.bad_bearers.guess(address):
                    return await self._handle(rules, route, request, address)
            except errors.TokenUnknown as error:
                await self.denials.count("credential", error)
                raise
            except AddressLimited as error:
                await self.denials.count("limit", error)
                raise

        return handle

    async def _handle(
        self, rules: Rules, route: Route | None, request: web.Request, address: str
    ) -> web.StreamResponse:
        generation = self.authenticator.generation
        credential, metadata = await self._authenticate(rules.operation, request, route, address)
        if route is None:
            # Before anything else is looked at: what is not here has no opinion about bodies.
            return await not_provisioned(Asked(request, {}, {}, None, credential, metadata, generation))
        path = rules.path(request.match_info)
        query = rules.query(request.query.items())
        body = await self._body(rules, request)
        try:
            if self.authenticator.generation != generation:
                # A client may take its time over the body: what was revoked meanwhile counts.
                generation = self.authenticator.generation
                credential, metadata = await self._authenticate(rules.operation, request, route, address)
            return await route.handler(Asked(request, path, query, body, credential, metadata, generation))
        finally:
            if isinstance(body, bytearray):
                # The value of a secret, which nobody needs any more.
                body[:] = bytes(len(body))

    async def _authenticate(
        self, operation: Operation, request: web.Request, route: Route | None, address: str
    ) -> tuple[Credential | None, tuple[tuple[str, str], ...]]:
        if not operation.security:
            return None, ()
        audience, credential = route.audience if route else "identity", None
        try:
            credential = present(operation, request)
            standing = operation.id in STREAMS
            assertion = await self.authenticator.assertion(credential, audience, address, standing=standing)
        except PlexError as error:
            if operation.id == SIGN_OUT:
                # Whoever it was and whatever is down: the browser is told to forget.
                return None, ()
            if not isinstance(error, errors.Unauthenticated):
                raise
            if credential is None and presented(operation, request):
                self.authenticator.bad_bearers.take(address)
            if credential is None or not credential.node:
                if presented(operation, request):
                    await self.denials.count("credential", error)
            elif isinstance(error, BAD_BEARERS):
                domain_id, path_id = error.extra.get("domain_id", ""), request.match_info.get("id", "")
                await self.denials.record(operation.id, error, credential.node.node_id, domain_id, path_id)
            raise
        if credential.by_cookie and operation.id != SIGN_OUT:
            require_same_site(
                operation.method,
                header=request.headers.get("X-Plexsphere-CSRF", ""),
                cookie=request.cookies.get(CSRF_COOKIE, ""),
                origin=request.headers.get("Origin", ""),
                fetch_site=request.headers.get("Sec-Fetch-Site", ""),
                allowed_origins=self.allowed_origins,
            )
        if credential.node and "id" in request.match_info and request.match_info["id"] != str(credential.node.node_id):
            of_session = operation.id == "PostNodeSessionCallback"
            mismatch = errors.NskNodeMismatch() if of_session else errors.NodeIdMismatch()
            domain_id = claims_of(assertion).get("domain_id", "")
            node_id, path_id = credential.node.node_id, request.match_info["id"]
            await self.denials.record(operation.id, mismatch, node_id, domain_id, path_id)
            raise mismatch
        return credential, ((context.PRINCIPAL_KEY, assertion),)

    async def _body(self, rules: Rules, request: web.Request) -> Any:
        operation = rules.operation
        if operation.body is None:
            return None
        if not request.body_exists and not operation.body_required:
            return {}
        if request.content_type != operation.media or "Content-Type" not in request.headers:
            raise body_error(operation.id)(f"Content-Type must be {operation.media}")
        raw = await bodies.read(request, operation.id, bodies.limit_of(operation.id, operation.path))
        if operation.media == OCTETS:
            return raw
        try:
            value = bodies.parse_form(raw) if operation.media == FORM else bodies.parse(raw)
        except errors.InvalidRequest as error:
            raise body_error(operation.id)(error.detail) from None
        rules.check_body(value)
        return value


def middleware(timeout_s: float, proxies: Collection[Network]) -> Any:
    """Return the outermost middleware: correlation id, root span, deadline, and problems for whatever is raised."""

    @web.middleware
    async def outermost(request: web.Request, handler: Endpoint) -> web.StreamResponse:
        correlation_id = str(uuid7())
        request[CORRELATION] = correlation_id
        started = time.monotonic()
        call = context.Call(
            correlation_id=correlation_id,
            client_ip=client_address(request.remote or "", ",".join(request.headers.getall(FORWARDED, ())), proxies),
            user_agent=plain(request.headers.get("User-Agent", ""), LONGEST_USER_AGENT),
            deadline=started + timeout_s,
        )
        code, failed = "ok", ""
        # A client's traceparent is not believed: the edge's span is the root.
        with (
            context.bind(call),
            structlog.contextvars.bound_contextvars(correlation_id=correlation_id),
            tracer.start_as_current_span(
                "edge", context=otel_context.Context(), kind=trace.SpanKind.SERVER, record_exception=False
            ) as span,
        ):
            try:
                async with asyncio.timeout(timeout_s) as deadline:
                    request[DEADLINE] = deadline
                    response = await handler(request)
            except Exception as raised:  # noqa: BLE001 — the edge answers with a problem whatever happens
                begun: web.StreamResponse | None = request.get(STREAMED)
                if begun is not None:
                    # The answer has begun; all that can be told is that it ends.
                    refusal_of(raised)
                    if request.transport is not None:
                        request.transport.abort()
                    return begun
                error = refusal_of(raised)
                failed = errors.fault(raised if isinstance(raised, PlexError) else error)
                operation = request.get(OPERATION, "")
                if operation in STREAMS and isinstance(error, errors.Unavailable):
                    # Whichever dependency it was: to a node its stream is what it cannot have.
                    error = errors.EventStreamUnavailable()
                code = error.code
                response = problems.answer(error, request.rel_url.raw_path, correlation_id, operation)
                if isinstance(raised, web.HTTPMethodNotAllowed):
                    response.headers["Allow"] = raised.headers["Allow"]
            operation = request.get(OPERATION, "none")
            span.update_name(operation)
            span.set_attribute("http.response.status_code", response.status)
            seconds = time.monotonic() - started
            count_call(operation, code, failed, None if operation in STREAMS else seconds)
            log.info(
                "edge.answered",
                operation=operation,
                status=response.status,
                code=code,
                client_correlation=plain(request.headers.get("X-Correlation-Id", ""), LONGEST_CORRELATION),
                seconds=round(seconds, 4),
            )
        return response

    return outermost


def refusal_of(raised: Exception) -> PlexError:
    """Return what was raised as an error of the table; a bug is logged and told nothing of."""
    if isinstance(raised, PlexError):
        return raised
    if isinstance(raised, web.HTTPException):
        return problems.from_http(raised)
    if isinstance(raised, TimeoutError):
        return errors.Unavailable()
    log.error("edge.bug", exc_info=raised)
    return errors.Internal()


def plain(text: str, longest: int) -> str:
    """Return printable ASCII, which is all that call metadata and log lines take."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:longest])


async def dress(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the headers that all have."""
    problems.dress(response.headers, request.get(CORRELATION, ""))


async def expect(request: web.Request) -> None:
    """Tell a client that waits for it to send its body; any other expectation is ignored (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def build(edge: Edge, rules: list[Rules], routes: Mapping[str, Route]) -> web.Application:
    """Return the application: one route for each operation of the document."""
    unknown = set(routes) - {one.operation.id for one in rules}
    if unknown:
        raise LookupError(f"handlers of operations that the document does not have: {sorted(unknown)}")
    app = web.Application(middlewares=[middleware(edge.timeout_s, edge.trusted_proxies)])
    for one in rules:
        operation = one.operation
        endpoint = edge.endpoint(one, routes.get(operation.id))
        app.router.add_route(operation.method, operation.path, endpoint, expect_handler=expect)
    for path in ("/", "/device"):
        app.router.add_get(path, approval, allow_head=False)
    app.on_response_prepare.append(dress)
    return app
