"""Every refusal of the edge as an RFC 9457 problem: ours, the services' and the web framework's own."""

import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

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

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002 — the signature is the framework's
        message: str | None = None,  # noqa: ARG002 — as above
    ) -> web.StreamResponse:
        """Return the problem and close the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        error = errors.Internal() if status >= FIRST_SERVER_ERROR else errors.InvalidRequest("this is not HTTP")
        response = answer(error, "/", str(uuid7()))
        response.force_close()
        return response
