"""Packing answers: JSON, times, and members that are left out when there is nothing in them."""

import datetime as dt
import json
from typing import Any

from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from libs.clock import parse_rfc3339, rfc3339

JSON = dict[str, Any]
CREATED, NO_CONTENT = 201, 204


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON answer."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


def created(value: Any, location: str) -> web.Response:
    """Return the answer for something new, which is at `location`."""
    return reply(value, CREATED, {"Location": location})


def nothing() -> web.Response:
    """Return an answer without a body."""
    return web.Response(status=NO_CONTENT)


def page(items: list[JSON], next_cursor: str, empty_reason: str = "") -> web.Response:
    """Return a page of a list."""
    return reply({"items": items, **given(next_cursor=next_cursor, empty_reason=empty_reason)})


def given(**members: Any) -> JSON:
    """Return the members that have a value."""
    return {name: value for name, value in members.items() if value}


def when(at: Timestamp) -> str:
    """Write a time."""
    return rfc3339(at.ToDatetime(dt.UTC))


def maybe(message: Any, name: str) -> str:
    """Write an optional time of a message; empty when it is not set."""
    return when(getattr(message, name)) if message.HasField(name) else ""


def timestamp(text: str) -> Timestamp:
    """Read a time that the document has checked."""
    value = Timestamp()
    value.FromDatetime(parse_rfc3339(text.upper()))
    return value
