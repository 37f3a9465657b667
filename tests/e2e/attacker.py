"""Who holds the broker: reads and writes any subject of JetStream, and deletes what stands there."""

import asyncio
import base64
import json
import re
import ssl
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import nats
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from devstack.layout import State
from libs import settings
from libs.rpc.channel import Peer
from tests.e2e.listener import canonical
from tests.e2e.outside import JSON
from tests.e2e.world import World

STREAM = "EVENTS"


def tls_of(world: World, name: str = "operator") -> ssl.SSLContext:
    """Return a client context with one of the stack's certificates."""
    context = ssl.create_default_context(cafile=world.ca_file)
    context.load_cert_chain(world.state / f"pki/{name}.crt", world.state / f"pki/{name}.key")
    return context


def peer(world: World, service: str, caller: str, port: int = 0) -> Peer:
    """Return a channel to a service, or to its replica on another port, with the certificate of a process."""
    address = f"127.0.0.1:{port or State(world.state).port(service)}"
    pki = world.state / "pki"
    identity = settings.Tls(
        certificate_file=pki / f"{caller}.crt", key_file=pki / f"{caller}.key", ca_file=pki / "ca.crt"
    )
    return Peer(settings.Peer(address=address, name=service), identity)


@dataclass
class Broker:
    """A connection to NATS with somebody's certificate; by default the superuser's."""

    world: World
    name: str = "operator"
    context: ssl.SSLContext | None = None

    async def __aenter__(self) -> Self:
        self.errors: list[str] = []

        async def failed(error: Exception) -> None:
            self.errors.append(str(error))

        context = self.context or tls_of(self.world, self.name)
        self.nats: Client = await nats.connect(
            self.world.env["PLEX_NATS_URL"],
            tls=context,
            error_cb=failed,
            inbox_prefix=f"_INBOX.{self.name}".encode(),
            # Who is refused is refused for good; who is admitted outlives a restart of the broker.
            allow_reconnect=self.name == "operator",
            max_reconnect_attempts=60 if self.name == "operator" else 1,
            reconnect_time_wait=0.3,
            connect_timeout=2,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.nats.close()

    async def put(self, subject: str, data: bytes) -> int:
        """Write bytes to a subject of the stream and return their sequence."""
        answer = await self.nats.request(subject, data, timeout=3)
        found = json.loads(answer.data)
        assert "seq" in found, found
        return int(found["seq"])

    async def api(self, call: str, body: JSON | None = None) -> JSON:
        """Call JetStream's API."""
        answer = await self.nats.request(f"$JS.API.{call}", json.dumps(body or {}).encode(), timeout=3)
        found: JSON = json.loads(answer.data)
        return found

    async def last(self) -> int:
        """Return the last sequence of the stream."""
        return int((await self.api(f"STREAM.INFO.{STREAM}"))["state"]["last_seq"])

    async def get(self, sequence: int) -> tuple[str, bytes]:
        """Return subject and bytes of a message."""
        found = await self.api(f"STREAM.MSG.GET.{STREAM}", {"seq": sequence})
        return found["message"]["subject"], base64.b64decode(found["message"]["data"])

    async def find(self, identifier: str) -> tuple[int, str, bytes]:
        """Return the newest message that holds an id."""
        for sequence in range(await self.last(), 0, -1):
            subject, data = await self.get(sequence)
            if identifier.encode() in data:
                return sequence, subject, data
        raise AssertionError(f"{identifier} is not in the stream")


def wire(envelope: JSON) -> bytes:
    """Write an envelope as it goes over the wire."""
    return json.dumps(envelope, separators=(",", ":"), ensure_ascii=False).encode()


def signed(envelope: JSON, key: Ed25519PrivateKey) -> bytes:
    """Sign an envelope with a key."""
    text = wire({**envelope, "signature": ""}).decode()
    return wire({**envelope, "signature": base64.b64encode(key.sign(canonical(text))).decode()})


async def ask_vault(world: World, path: str, body: JSON) -> JSON:
    """Write to OpenBao as who holds it could."""
    base = world.env["PLEX_OPENBAO_ADDR"]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls_of(world))) as http:
        login = {"name": world.env["PLEX_OPENBAO_ROLE"]}
        async with http.post(f"{base}/v1/auth/cert/login", json=login) as answer:
            token = (await answer.json())["auth"]["client_token"]
        async with http.post(f"{base}/v1/{path}", json=body, headers={"X-Vault-Token": token}) as answer:
            assert answer.status < 300, await answer.text()
            found: JSON = await answer.json() if answer.status == 200 else {}
    return found


async def sign_in_vault(world: World, domain_id: str, envelope: JSON, version: int = 0) -> bytes:
    """Sign an envelope with a version of the Domain's own key, the newest for 0, as who holds OpenBao could."""
    text = wire({**envelope, "signature": ""}).decode()
    body = {"input": base64.b64encode(canonical(text)).decode(), "key_version": version}
    found = await ask_vault(world, f"transit-mesh/sign/evk-{domain_id}", body)
    signature = found["data"]["signature"].rsplit(":", 1)[1]
    return wire({**envelope, "signature": signature})


async def refusals(world: World, service: str, control: str, port: int = 0) -> Counter[str]:
    """Read from a service's metrics port, or another one, how often a control refused, by reason."""
    port = port or json.loads((world.state / "ports.json").read_text())[f"{service}-metrics"]
    url = f"https://127.0.0.1:{port}/metrics"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls_of(world, "probe"))) as http,
        http.get(url) as answer,
    ):
        text = await answer.text()
    wanted = re.compile(r'plexsphere_refusals_total\{control="([^"]*)",reason="([^"]*)"\} (\S+)')
    return Counter({match[2]: int(float(match[3])) for match in wanted.finditer(text) if match[1] == control})


async def eventually(check: Any, within_s: float = 30) -> None:
    """Wait until an async check is true; the limit is that of a busy machine."""
    async with asyncio.timeout(within_s):
        while not await check():  # noqa: ASYNC110 — there is no event for what another process does
            await asyncio.sleep(0.1)
