"""Requests that go out together, to a server that does with them what it likes; the real one is in test_ports.py."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.bao import Bao, BaoRefused
from libs.errors import OpenbaoUnavailable
from libs.settings import OpenBao
from libs.tests.pki import make_authority
from services.mesh.pipeline import LINES, Pipeline, open_pipeline

pytestmark = pytest.mark.unit


@dataclass
class Server:
    """Answers each request with its own body; `turn` may do something else with one."""

    context: ssl.SSLContext
    turn: Callable[["Server", asyncio.StreamWriter, bytes], Awaitable[bool]] | None = None
    asked: list[bytes] = field(default_factory=list)
    logins: int = 0
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), b"")
                body = await reader.readexactly(int(length.partition(b":")[2] or 0))
                if b"/auth/cert/login" in head:
                    self.logins += 1
                    login = {"auth": {"client_token": f"t{self.logins}", "lease_duration": 900}}
                    writer.write(answer(json.dumps(login).encode()))
                    continue
                self.asked.append(body)
                if self.turn is None or not await self.turn(self, writer, head):
                    writer.write(answer(body))
        writer.close()


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@dataclass
class Desk:
    server: Server
    pipeline: Pipeline

    async def ask(self, number: int) -> Any:
        return (await self.pipeline.post("transit/sign/k", {"number": number}))["number"]

    async def all(self, count: int) -> list[Any]:
        return await asyncio.gather(*(self.ask(number) for number in range(count)), return_exceptions=True)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    authority = make_authority(tmp_path / "pki")
    own = authority.issue("openbao")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate_file, own.key_file)
    server = Server(context)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    address = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    bao = Bao(OpenBao(address=address, role="mesh", timeout_s=1.0), authority.issue("mesh"))
    try:
        async with open_pipeline(bao) as pipeline:
            yield Desk(server, pipeline)
    finally:
        await bao.close()
        listening.close()


async def test_each_gets_its_own_answer_over_few_connections(desk: Desk) -> None:
    assert await desk.all(200) == list(range(200))
    # One to log in.
    assert desk.server.connections == 1 + LINES
    assert desk.server.logins == 1


async def chunked(_: Server, writer: asyncio.StreamWriter, __: bytes) -> bool:
    for piece in (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b'7\r\n{"numbe\r\n',
        b'5\r\nr":7}\r\n',
        b"0\r\n\r\n",
    ):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    return True


async def test_an_answer_in_pieces_is_one_answer(desk: Desk) -> None:
    desk.server.turn = chunked
    assert await desk.all(3) == [7, 7, 7]


async def close_after_ten(server: Server, writer: asyncio.StreamWriter, _: bytes) -> bool:
    if len(server.asked) % 10 == 0:
        writer.transport.abort()
        return True
    return False


async def test_who_was_cut_off_is_asked_for_once_more_and_nobody_gets_anothers_answer(desk: Desk) -> None:
    desk.server.turn = close_after_ten
    outcomes = await desk.all(30)
    for number, outcome in enumerate(outcomes):
        assert outcome == number or isinstance(outcome, OpenbaoUnavailable)
    assert outcomes.count(29) <= 1
    desk.server.turn = None
    assert await desk.all(30) == list(range(30))


async def garbage(_: Server, writer: asyncio.StreamWriter, __: bytes) -> bool:
    writer.write(b"220 smtp.example ESMTP\r\n")
    return True


async def silence(_: Server, __: asyncio.StreamWriter, ___: bytes) -> bool:
    return True


async def twice(_: Server, writer: asyncio.StreamWriter, __: bytes) -> bool:
    writer.write(answer(b'{"number":1}') * 2)
    return True


WRONG = {"something else than HTTP": garbage, "nothing": silence}


@pytest.mark.parametrize("wrong", WRONG)
async def test_no_answer_is_unavailable_and_the_next_request_is_not_harmed(desk: Desk, wrong: str) -> None:
    desk.server.turn = WRONG[wrong]
    assert all(isinstance(outcome, OpenbaoUnavailable) for outcome in await desk.all(4))
    desk.server.turn = None
    assert await desk.all(20) == list(range(20))


async def test_an_answer_that_nobody_asked_for_is_nobodys(desk: Desk) -> None:
    desk.server.turn = twice
    assert await desk.ask(1) == 1
    await asyncio.sleep(0.05)
    desk.server.turn = None
    assert await desk.all(2 * LINES) == list(range(2 * LINES))


async def test_a_token_that_died_is_replaced_once(desk: Desk) -> None:
    async def old_token(_: Server, writer: asyncio.StreamWriter, head: bytes) -> bool:
        if b"X-Vault-Token: t1\r\n" in head:
            writer.write(answer(b"{}", b"403 Forbidden"))
            return True
        return False

    desk.server.turn = old_token
    assert await desk.ask(5) == 5
    assert desk.server.logins == 2


async def test_a_refusal_says_its_status(desk: Desk) -> None:
    async def refuse(_: Server, writer: asyncio.StreamWriter, __: bytes) -> bool:
        writer.write(answer(b"{}", b"400 Bad Request"))
        return True

    desk.server.turn = refuse
    with pytest.raises(BaoRefused) as refused:
        await desk.ask(1)
    assert refused.value.status == 400


async def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    identity = make_authority(tmp_path / "pki").issue("mesh")
    bao = Bao(OpenBao(address="https://127.0.0.1:1", role="mesh", timeout_s=1.0), identity)
    async with open_pipeline(bao) as pipeline:
        with pytest.raises(OpenbaoUnavailable):
            await pipeline.post("transit/sign/k", {})
    await bao.close()
