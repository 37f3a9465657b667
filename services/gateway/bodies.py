"""Reading request bodies: capped before and after inflating, strict UTF-8, strict JSON.

The server hands bodies over as they came; inflating here is what makes a gzip bomb cost its limit and not its size.
"""

import json
import zlib
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from libs.errors import BodyTooLarge, EndpointBodyTooLarge, InvalidRequest, KeysRotateBodyTooLarge

KIB = 1024
SECRET_LIMIT = 1024 * KIB - 28
DEFAULT_LIMIT = 64 * KIB
SMALL_LIMIT = 8 * KIB
TINY_LIMIT = 4 * KIB
SMALL = ("/v1/domains", "/v1/projects", "/v1/resources", "/v1/authz", "/v1/admin")
GZIP_WINDOW = zlib.MAX_WBITS | 16
LARGEST_EXACT = 2**53
MOST_FIELDS = 32
TOO_LARGE: dict[str, type[BodyTooLarge]] = {
    "PutNodeEndpoint": EndpointBodyTooLarge,
    "PostKeysRotate": KeysRotateBodyTooLarge,
}


def limit_of(operation: str, path: str) -> int:
    """Return how many bytes the body of an operation may have, inflated."""
    if operation in TOO_LARGE:
        return TINY_LIMIT
    if operation == "PutProjectSecret":
        return SECRET_LIMIT
    return SMALL_LIMIT if path.startswith(SMALL) else DEFAULT_LIMIT


async def read(request: web.Request, operation: str, limit: int) -> bytearray:
    """Read a body, inflating gzip; raises BodyTooLarge as soon as it is longer than `limit`."""
    too_large = TOO_LARGE.get(operation, BodyTooLarge)(f"at most {limit} bytes")
    if (request.content_length or 0) > limit:
        raise too_large
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in {"gzip", "identity"}:
        raise InvalidRequest("Content-Encoding must be gzip or absent")
    body = bytearray()
    try:
        await _fill(body, request, limit, too_large, zlib.decompressobj(GZIP_WINDOW) if encoding == "gzip" else None)
    except BaseException:
        # It may be the value of a secret, also when it is too long or its client has gone.
        body[:] = bytes(len(body))
        raise
    return body


async def _fill(body: bytearray, request: web.Request, limit: int, too_large: BodyTooLarge, inflater: Any) -> None:
    raw_size = 0
    async for chunk in request.content.iter_any():
        raw_size += len(chunk)
        body += _inflate(inflater, chunk, limit + 1 - len(body)) if inflater else chunk
        if len(body) > limit or raw_size > limit:
            raise too_large
    if inflater is not None and (not inflater.eof or inflater.unused_data):
        raise InvalidRequest("the body is not one whole gzip stream")


def _inflate(inflater: Any, chunk: bytes, most: int) -> bytes:
    try:
        inflated: bytes = inflater.decompress(chunk, most)
    except zlib.error:
        raise InvalidRequest("the body is not gzip") from None
    return inflated


def parse(raw: bytes | bytearray) -> Any:
    """Read JSON (RFC 8259); raises InvalidRequest for what is not, for a member twice, NUL and lone surrogates."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_members, parse_constant=_constant, parse_float=_number
        )
        _refuse_unstorable(value)
    except InvalidRequest:
        raise
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is not readable JSON") from None
    return value


def parse_form(raw: bytes | bytearray) -> dict[str, str]:
    """Read a form; raises InvalidRequest for what is not one, for a member twice, NUL and lone surrogates."""
    try:
        pairs = parse_qsl(raw.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise InvalidRequest("the body is not a readable form") from None
    members = _members(pairs)
    _refuse_unstorable(members)
    return members


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidRequest("a member occurs twice")
    return members


def _constant(_: str) -> Any:
    raise InvalidRequest("NaN and Infinity are not JSON")


def _number(text: str) -> int | float:
    # 300.0 is an integer in JSON Schema; the fields behind take nothing but int.
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < LARGEST_EXACT else number


def _refuse_unstorable(value: Any) -> None:
    """Refuse what neither protobuf nor PostgreSQL takes as text."""
    if isinstance(value, str):
        require_storable(value)
    elif isinstance(value, dict):
        for name, member in value.items():
            require_storable(name)
            _refuse_unstorable(member)
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)


def require_storable(text: str) -> None:
    """Raise InvalidRequest for a NUL or a lone surrogate."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest("a text holds NUL or half a surrogate pair")
