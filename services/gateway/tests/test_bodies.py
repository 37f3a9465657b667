import gzip
import traceback
import zlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from libs.errors import BodyTooLarge, InvalidRequest
from services.gateway.bodies import limit_of, parse, read

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{} {}",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":NaN}',
        b"[Infinity]",
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        '{"a":"x"}'.encode("utf-16"),
        b'{"a":"\\u0000"}',
        b'{"\\u0000":1}',
        b'{"a":"\\ud800"}',
        b"[" * 100_000,
        b"1" * 5000,
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(raw)


@pytest.mark.parametrize(
    ("raw", "value"),
    [(b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}), (b"300.0", 300), (b"1.5", 1.5), (b"1e400", float("inf"))],
)
def test_json_is_read(raw: bytes, value: Any) -> None:
    assert parse(raw) == value


@pytest.mark.parametrize(
    ("operation", "path", "limit"),
    [
        ("CreateDomain", "/v1/domains", 8192),
        ("PostAdminIdP", "/v1/admin/idp", 8192),
        ("CreateResource", "/v1/projects/{project_id}/resources", 8192),
        ("PutNodeEndpoint", "/v1/nodes/{id}/endpoint", 4096),
        ("PostKeysRotate", "/v1/keys/rotate", 4096),
        ("PutProjectSecret", "/v1/projects/{project_id}/secrets/{name}", 1024 * 1024 - 28),
        ("PostRegister", "/v1/register", 65536),
    ],
)
def test_limits(operation: str, path: str, limit: int) -> None:
    assert limit_of(operation, path) == limit


def test_a_bomb_is_a_bomb() -> None:
    """What the edge test sends: 10 MiB of spaces in 10 KiB."""
    assert len(gzip.compress(b" " * 10_485_760)) < 16_384
    assert zlib.MAX_WBITS == 15


@pytest.mark.parametrize("ends", [b"y", ConnectionResetError()], ids=["too long", "its client is gone"])
async def test_of_what_is_not_taken_nothing_is_kept(ends: bytes | Exception) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"planted"
        if isinstance(ends, Exception):
            raise ends
        yield ends

    request: Any = SimpleNamespace(content_length=None, headers={}, content=SimpleNamespace(iter_any=chunks))
    with pytest.raises((BodyTooLarge, ConnectionResetError)) as refused:
        await read(request, "PutProjectSecret", 7)
    (body,) = (frame.f_locals["body"] for frame, _ in traceback.walk_tb(refused.tb) if frame.f_code is read.__code__)
    assert body == bytes(len(body))
    assert len(body) >= 7
