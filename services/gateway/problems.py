"""Every refusal of the edge as an RFC 9457 problem: ours, the services' and the web framework's own."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from libs import errors
from libs.errors import PlexError
from libs.ids import uuid7

CONTENT_TYPE = "application/problem+json"
TYPE = "urn:plexsphere:problem:"
# These tell a node nothing about relations; every other 403 says why in the contract's words.
WITHOUT_REASON = frozenset({"PostRegister", "GetNodeEvents", "GetNodeState", "GetNodeReachability"})
REASONS = frozenset({"out_of_scope", "insufficient_relation", "caveat_violation"})
MEMBERS = ("dimension", "child_counts", "project_child_counts", "cloud_child_counts")
NOT_QUOTABLE = re.compile(r"[^\x20-\x7e]|[\"\\]")
RETRY_AFTER_S = 1
HEADERS_WITHIN_S = 10.0
UNAUTHORIZED, FORBIDDEN, TOO_MANY, UNAVAILABLE = 401, 403, 429, 503
FIRST_SERVER_ERROR = 500

HEADERS = {
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def dress(headers: Any, correlation_id: str) -> None:
    """Add the headers that every answer has, where the handler did not set its own."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    # The framework has put its own name and version here already.
    headers["Server"] = "plexsphere"
    headers["X-Correlation-Id"] = correlation_id


def describe(error: PlexError, instance: str, correlation_id: str, operation: str = "") -> dict[str, Any]:
    """Return the members of the problem."""
    problem: dict[str, Any] = {
        "type": TYPE + error.code,
        "title": error.title,
        "status": error.http,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "correlation_id": correlation_id,
    }
    if error.http == FORBIDDEN and operation not in WITHOUT_REASON:
        reason = error.extra.get("reason")
        problem["reason"] = reason if reason in REASONS else _reason(error)
        problem["relation_path"] = list(error.extra.get("relation_path", ()))
    for name in MEMBERS:
        if name in error.extra:
            problem[name] = error.extra[name]
    return problem


def _reason(error: PlexError) -> str:
    csrf = (errors.CsrfTokenMismatch, errors.CsrfOriginMismatch, errors.CsrfOriginNotConfigured)
    return "caveat_violation" if isinstance(error, csrf) else "out_of_scope"


def answer(error: PlexError, instance: str, correlation_id: str, operation: str = "") -> web.Response:
    """Return the response of a refusal, with the headers that its status asks for."""
    response = web.Response(
        status=error.http,
        body=json.dumps(describe(error, instance, correlation_id, operation)).encode(),
        headers=challenge(error),
        content_type=CONTENT_TYPE,
    )
    dress(response.headers, correlation_id)
    return response


def challenge(error: PlexError) -> dict[str, str]:
    """Return `WWW-Authenticate` (RFC 6750, RFC 9470), `Retry-After` and `Upgrade` where the status has them."""
    if isinstance(error, errors.StepUpRequired):
        return {"WWW-Authenticate": _step_up(error.extra)}
    if error.http == UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer realm="plexsphere"'}
    if error.http == TOO_MANY and "retry_after_s" in error.extra:
        return {"Retry-After": str(error.extra["retry_after_s"])}
    if error.http == UNAVAILABLE:
        return {"Retry-After": str(error.extra.get("retry_after_s", RETRY_AFTER_S))}
    if isinstance(error, errors.UpgradeRequired):
        return {"Upgrade": "websocket"}
    return {}


def _step_up(extra: Mapping[str, Any]) -> str:
    parts = ['Bearer error="insufficient_user_authentication"']
    if values := [NOT_QUOTABLE.sub("", str(value)) for value in extra.get("acr_values") or ()]:
        parts.append(f'acr_values="{" ".join(values)}"')
    if extra.get("max_age_s") is not None:
        parts.append(f'max_age="{int(extra["max_age_s"])}"')
    return ", ".join(parts)


def from_http(raised: web.HTTPException) -> PlexError:
    """Return what the web framework raised as one of our errors."""
    known: dict[int, type[PlexError]] = {
        404: errors.NotFound,
        405: errors.MethodNotAllowed,
        413: errors.BodyTooLarge,
    }
    if raised.status in known:
        return known[raised.status]()
    if raised.status >= FIRST_SERVER_ERROR:
        return errors.Internal()
    return errors.InvalidRequest("the request is not valid")


class Protocol(web.RequestHandler):
    """HTTP/1.1 of the edge; what is not even HTTP gets a problem as well, and nothing of it is logged."""

    __slots__ = ("_patience", "when_lost")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give a new connection a few seconds for the headers of its first request; later ones have keep-alive's."""
        super().connection_made(transport)
        self.when_lost: Callable[[str], None] | None = None
        self._patience = asyncio.get_running_loop().call_later(HEADERS_WITHIN_S, self._close_if_silent)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop waiting, and tell a stream that nobody is there any more."""
        self._patience.cancel()
        if self.when_lost is not None:
            self.when_lost("gone")
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self._request_count == 0 and self.transport is not None:
            self.transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 — the signature is the framework's
    ) -> web.StreamResponse:
        """Return the problem and close the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        error: PlexError = errors.InvalidRequest("this is not HTTP")
        if isinstance(exc, LineTooLong):
            error = errors.HeadersTooLarge()
        elif status >= FIRST_SERVER_ERROR:
            error = errors.Internal()
        response = answer(error, "/", str(uuid7()))
        response.force_close()
        return response
