"""The client of OpenBao: what it repeats, what it does not wait for, and what a service's own certificate opens."""

import asyncio
import contextlib
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import hvac
import pytest

from devstack.layout import State
from devstack.openbao import client
from devstack.supervisor import ask
from libs.bao import MOST_CONNECTIONS, Bao, BaoRefused, open_bao
from libs.breaker import MOST_FAILURES, REST_S
from libs.errors import OpenbaoUnavailable
from libs.ids import uuid7
from libs.rpc.context import Call, bind
from libs.settings import OpenBao
from libs.tests.pki import Authority
from tests.e2e.freeze import frozen
from tests.e2e.world import World

pytestmark = pytest.mark.integration

LOGIN = json.dumps({"auth": {"client_token": "t", "lease_duration": 900}}).encode()


@dataclass
class Moody:
    """A server that answers, hangs or closes the connection; everybody may log in, unless it hangs at the door."""

    mood: str = "answers"
    asked: Counter[str] = field(default_factory=Counter)
    open: int = 0
    most: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        self.open -= 1
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((line for line in head.split("\r\n") if line.lower().startswith("content-length:")), ":0")
        await reader.readexactly(int(length.partition(":")[2]))
        method, path, _ = head.split(" ", 2)
        body = LOGIN
        if self.mood == "hangs at the door":
            self.asked["login"] += 1
            await reader.read()
        if not path.endswith("auth/cert/login"):
            self.asked[method] += 1
            body = b"{}"
            if self.mood == "hangs":
                await reader.read()
            if self.mood != "answers":
                return False
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return True


@dataclass
class Pair:
    """The server and a client of it."""

    server: Moody
    bao: Bao

    async def refusal(self) -> str:
        """Ask, and return why there was no answer."""
        with pytest.raises(OpenbaoUnavailable) as refused:
            await self.bao.request("GET", "kv/data/x")
        return str(refused.value)


@pytest.fixture
async def pair(authority: Authority) -> AsyncIterator[Pair]:
    own, moody = authority.issue("openbao"), Moody()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate_file, own.key_file)
    server = await asyncio.start_server(moody.serve, "127.0.0.1", 0, ssl=context)
    settings = OpenBao(address=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", role="secrets", timeout_s=0.4)
    async with open_bao(settings, authority.issue("secrets")) as bao:
        await bao.request("GET", "kv/data/x")
        moody.asked.clear()
        yield Pair(moody, bao)
    server.close()


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("POST", 1), ("PUT", 1), ("DELETE", 1)])
async def test_only_a_read_is_sent_again_when_there_was_no_answer(pair: Pair, method: str, times: int) -> None:
    pair.server.mood = "closes"
    with pytest.raises(OpenbaoUnavailable):
        await pair.bao.request(method, "kv/data/x", None if method in {"GET", "DELETE"} else {"data": {}})
    assert pair.server.asked == {method: times}


async def test_connections_are_bounded(pair: Pair) -> None:
    pair.server.mood = "hangs"
    # Long enough for a busy machine to open them.
    pair.bao.settings = pair.bao.settings.model_copy(update={"timeout_s": 4.0})
    await asyncio.gather(*(pair.refusal() for _ in range(MOST_CONNECTIONS + 40)))
    assert pair.server.most == MOST_CONNECTIONS


async def test_what_hangs_is_soon_not_waited_for_and_comes_back_with_its_first_answer(pair: Pair) -> None:
    pair.server.mood = "hangs"
    for _ in range(MOST_FAILURES):
        assert await pair.refusal() == "TimeoutError"
    started = time.monotonic()
    assert {await pair.refusal() for _ in range(50)} == {"it has not answered several times in a row"}
    assert time.monotonic() - started < 5
    await asyncio.sleep(REST_S)
    asked = pair.server.asked["GET"]
    probes = await asyncio.gather(*(pair.refusal() for _ in range(20)))
    assert (probes.count("TimeoutError"), pair.server.asked["GET"] - asked) == (1, 1)
    pair.server.mood = "answers"
    await asyncio.sleep(REST_S)
    for _ in range(2):
        assert await pair.bao.request("GET", "kv/data/x") == {}


async def test_nobody_queues_for_a_login_that_hangs(pair: Pair) -> None:
    pair.server.mood = "hangs at the door"
    pair.bao.forget_token()
    await asyncio.gather(*(pair.refusal() for _ in range(30)))
    assert pair.server.asked["login"] <= 3


async def test_who_asks_with_no_time_left_says_nothing_about_openbao(pair: Pair) -> None:
    pair.server.mood = "hangs"
    for _ in range(2 * MOST_FAILURES):
        with bind(Call(deadline=time.monotonic() + 0.02)):
            assert await pair.refusal() == "TimeoutError"


@pytest.fixture
async def bao(backends: State) -> AsyncIterator[Bao]:
    opened = client(backends, "secrets")
    yield opened
    await opened.close()


async def test_a_token_that_is_worth_nothing_any_more_is_replaced(bao: Bao) -> None:
    await bao.ping()
    token = await bao.token()
    token.reveal()[:] = b"x" * len(token)
    await bao.ping()


async def test_a_sealed_one_says_so_until_it_is_there_again(backends: State, bao: Bao) -> None:
    path = f"secrets/{uuid7()}/{uuid7()}"
    await bao.write_kv(path, {"value": "eA=="}, cas=0)
    operator = client(backends, "operator")
    await operator.request("PUT", "sys/seal")
    await operator.close()
    try:
        for ask_it in (bao.ping, lambda: bao.read_kv(path)):
            with pytest.raises(OpenbaoUnavailable) as refused:
                await ask_it()
            assert str(refused.value) == "sealed"
    finally:
        await ask(backends, do="kill", name="openbao")
        await ask(backends, do="start", name="openbao")
    assert await bao.read_kv(path) == ({"value": "eA=="}, 1)


async def test_a_frozen_one_holds_nobody_up_for_long_and_comes_back(backends: State) -> None:
    settings = client(backends, "secrets").settings.model_copy(update={"timeout_s": 1.0})
    async with open_bao(settings, client(backends, "secrets").identity) as bao:
        await bao.ping()
        async with frozen(World(backends.folder, {}), "openbao"):
            await asyncio.gather(*(bao.ping() for _ in range(30)), return_exceptions=True)
            started = time.monotonic()
            for _ in range(30):
                with pytest.raises(OpenbaoUnavailable):
                    await bao.ping()
            assert time.monotonic() - started < 15
        await asyncio.sleep(REST_S)
        await bao.ping()


# Asked through a client that is not ours: what it cannot do, no bug of ours can.
FORBIDDEN = [
    ("read", "kv/data/idp/platform/oidc-a"),
    ("read", "kv/data/secrets/../idp/platform/oidc-a"),
    ("list", "kv/metadata/secrets"),
    ("list", "kv/metadata"),
    ("delete", "kv/data/secrets/a/b"),
    ("write", "kv/metadata/secrets/a/b"),
    ("write", "kv/undelete/secrets/a/b"),
    ("write", "kv/config"),
    ("read", "transit-identity/keys/nsk"),
    ("write", "transit-identity/decrypt/nsk"),
    ("write", "transit-mesh/sign/x"),
    ("write", "transit-audit/sign/acp"),
    ("list", "sys/mounts"),
    ("read", "sys/mounts"),
    ("read", "sys/policies/acl/secrets"),
    ("write", "sys/policies/acl/secrets"),
    ("write", "sys/seal"),
    ("list", "auth/cert/certs"),
    ("write", "auth/token/create"),
]


@pytest.fixture(scope="module")
def stranger(backends: State) -> Any:
    ours = client(backends, "secrets")
    files = (str(ours.identity.certificate_file), str(ours.identity.key_file))
    opened: Any = hvac.Client(  # type: ignore[no-untyped-call]  # the library has no types
        url=ours.settings.address, cert=files, verify=str(ours.identity.ca_file)
    )
    opened.auth.cert.login("secrets")
    return opened


@pytest.mark.parametrize(("verb", "path"), FORBIDDEN)
def test_the_certificate_of_secrets_opens_nothing_else(stranger: Any, verb: str, path: str) -> None:
    asks = {
        "read": lambda: stranger.read(path),
        "list": lambda: stranger.list(path),
        "delete": lambda: stranger.delete(path),
        "write": lambda: stranger.write_data(path, data={"x": "y"}),
    }
    with pytest.raises(hvac.exceptions.Forbidden):
        asks[verb]()


async def test_another_role_is_not_to_be_had_with_it(backends: State) -> None:
    ours = client(backends, "secrets")
    async with open_bao(ours.settings.model_copy(update={"role": "identity"}), ours.identity) as bao:
        with pytest.raises(BaoRefused):
            await bao.ping()
