"""Object stores that hang, refuse or are not whom they should be: unavailable, soon, and never an empty archive."""

import asyncio
import base64
import hashlib
import os
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from libs.archive import name_of
from libs.errors import ArchiveUnavailable
from services.audit.archive_store import ObjectArchive
from services.audit.tests.s3 import answering

pytestmark = pytest.mark.integration

CHAIN = str(uuid.uuid4())
NAME = name_of(CHAIN, 1)
PATIENCE_S = 10.0


async def listed(objects: ObjectArchive) -> list[int]:
    return [first async for first in objects.firsts(CHAIN, 0)]


CALLS: dict[str, Callable[[ObjectArchive], Coroutine[Any, Any, object]]] = {
    "create": lambda objects: objects.create(NAME, b"content"),
    "read": lambda objects: objects.read(NAME),
    "chains": lambda objects: objects.chains(),
    "firsts": listed,
}


async def refused(objects: ObjectArchive, call: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ArchiveUnavailable):
            await CALLS[call](objects)


def http(status: str, body: bytes = b"", missing: int = 0) -> bytes:
    """Return an answer that announces more than it has, by so many bytes."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) + missing}\r\n\r\n".encode() + body


ANSWERS = {
    "nothing": b"",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": http("200 OK", b"<ListBucketResult>", 100),
    "500": http("500 Internal Server Error"),
    "503": http("503 Slow Down"),
    "403": http("403 Forbidden"),
    "a redirect": http("307 Temporary Redirect"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_server_that_hangs_or_refuses_is_unavailable_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, call: str
) -> None:
    async with answering(tmp_path, ANSWERS[answer]) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        await refused(ObjectArchive("s3://archive/one", within_s=1.5), call)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "SSL_CERT_FILE"])
async def test_a_server_that_does_not_know_us_or_that_we_do_not_know_is_unavailable(
    bucket: str, monkeypatch: pytest.MonkeyPatch, wrong: str, call: str
) -> None:
    assert await ObjectArchive(bucket).create(NAME, b"content")
    monkeypatch.setenv(wrong, "/dev/null")
    await refused(ObjectArchive(bucket), call)


STORED = b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: 0\r\n\r\n'


async def test_an_upload_is_one_that_object_lock_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(tmp_path, STORED, seen=(seen := list[bytes]())) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        await ObjectArchive("s3://archive/one").create(NAME, b"content")
    digest = base64.b64encode(hashlib.sha256(b"content").digest())
    (sent,) = seen
    assert b"x-amz-checksum-sha256: " + digest in sent
    assert b"if-none-match: *" in sent


async def test_nothing_is_sent_without_tls_even_where_the_environment_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tls in (True, False):
        async with answering(tmp_path, STORED, tls=tls) as env:
            for name, value in (env | {"AWS_ALLOW_HTTP": "true"}).items():
                monkeypatch.setenv(name, value)
            objects = ObjectArchive("s3://archive/one")
            if tls:
                assert await objects.create(NAME, b"content") == '"a"'
            else:
                await refused(objects, "create")


@pytest.mark.parametrize("call", ["chains", "firsts"])
async def test_a_bucket_that_is_gone_is_not_an_empty_archive(bucket: str, call: str) -> None:
    await refused(ObjectArchive(bucket.replace("archive", "another")), call)


async def test_a_file_that_never_answers_is_unavailable_soon(tmp_path: Path) -> None:
    objects, path = ObjectArchive(f"file://{tmp_path}", within_s=0.2), tmp_path / NAME
    path.parent.mkdir()
    os.mkfifo(path)
    try:
        await refused(objects, "read")
    finally:
        # Whoever still waits for it in the library goes on.
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
