"""A node on its event stream: frames, signatures and resumption, with code that shares nothing with the publisher."""

import asyncio
import base64
import contextlib
import datetime
import json
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.e2e.outside import JSON, Edge, Node

SIGNED = ("id", "type", "scope", "key_id", "issued_at", "payload")
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def members(text: str) -> dict[str, str]:
    """Return the members of a JSON object as raw text."""
    decoder, at, found = json.JSONDecoder(), 1, {}
    while text[at] != "}":
        at += text[at] == ","
        name, at = decoder.raw_decode(text, at)
        start = at + 1
        _, at = decoder.raw_decode(text, start)
        assert name not in found, f"{name} twice"
        found[name] = text[start:at]
    return found


def canonical(text: str) -> bytes:
    """Rebuild the bytes that were signed: six members in their order, as Go's encoder writes them."""
    raw = members(text)
    body = ",".join(f'"{name}":{raw.get(name, "null")}' for name in SIGNED)
    return ("{" + "".join(ESCAPES.get(char, char) for char in body) + "}").encode()


def verdict(text: str, keys: dict[str, bytes]) -> str:
    """Say what a node thinks of an envelope: "ok", or what is wrong."""
    try:
        envelope = json.loads(text)
        key = keys.get(envelope["key_id"])
        if key is None:
            return "unknown key"
        signature = base64.b64decode(envelope["signature"], validate=True)
        Ed25519PublicKey.from_public_bytes(key).verify(signature, canonical(text))
    except (InvalidSignature, ValueError, KeyError, IndexError, AssertionError) as error:
        return type(error).__name__
    issued = datetime.datetime.fromisoformat(envelope["issued_at"])
    if abs((datetime.datetime.now(datetime.UTC) - issued).total_seconds()) > 300:
        return "stale"
    return "ok"


@dataclass
class Heard:
    """One event."""

    sequence: int
    envelope: JSON
    verdict: str
    at: float

    @property
    def id(self) -> str:
        """Id of the envelope."""
        return str(self.envelope["id"])


@dataclass
class Listener:
    """One node's agent: it reconnects with its cursor, follows rotations and remembers what it saw."""

    edge: Edge
    node: Node
    keys: dict[str, bytes] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    cursor: str = ""
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    retry_s: float = 0.2
    _task: "asyncio.Task[None] | None" = None

    def __post_init__(self) -> None:
        self.keys.setdefault(self.node.signing_key_id, self.node.signing_public_key)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        async with asyncio.timeout(15):
            await self.connected.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def ids(self) -> list[str]:
        """Ids of what was heard, in order, each once."""
        return list(dict.fromkeys(heard.id for heard in self.heard))

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                await self.once()
            self.connected.clear()
            await asyncio.sleep(self.retry_s)

    async def once(self) -> None:
        """Hold one connection until it ends."""
        headers = {"Authorization": f"Bearer {self.node.bearer}"}
        if self.cursor:
            headers["Last-Event-ID"] = self.cursor
        timeout = aiohttp.ClientTimeout(total=None, sock_read=40)
        url = f"{self.edge.url}/v1/nodes/{self.node.node_id}/events"
        async with self.edge.http.get(url, headers=headers, timeout=timeout) as answer:
            if answer.status != 200:
                self.statuses.append(f"{answer.status} {(await answer.json(content_type=None))['code']}")
                return
            self.statuses.append("200")
            frame: dict[str, str] = {}
            async for raw in answer.content:
                # The first line is a comment; from then on everything that is for this node arrives.
                self.connected.set()
                line = raw.decode().rstrip("\n")
                if not line:
                    self._take(frame)
                    frame = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    frame[name] = value

    def _take(self, frame: dict[str, str]) -> None:
        if "data" not in frame:
            return
        text = frame["data"]
        envelope: dict[str, Any] = json.loads(text)
        found = verdict(text, self.keys)
        if found == "ok" and envelope["type"] == "signing_key_rotated":
            payload = envelope["payload"]
            self.keys[payload["key_id"]] = base64.b64decode(payload["public_key"])
        self.heard.append(Heard(int(frame["id"]), envelope, found, asyncio.get_running_loop().time()))
        self.cursor = frame["id"]

    async def until(self, identifier: str, within_s: float = 30) -> Heard:
        """Wait until an event was heard."""
        async with asyncio.timeout(within_s):
            while True:
                for heard in self.heard:
                    if heard.id == identifier:
                        return heard
                await asyncio.sleep(0.01)

    async def hears(self, kind: str, within_s: float = 30) -> Heard:
        """Wait until an event of a type was heard, and return the newest."""
        async with asyncio.timeout(within_s):
            while True:
                for heard in reversed(self.heard):
                    if heard.envelope["type"] == kind:
                        return heard
                await asyncio.sleep(0.01)


async def publish(operator: Edge, domain_id: str, scope: str, kind: str = "action_request", **payload: Any) -> str:
    """Publish as the operator and return the event's id; raises unless it was acknowledged."""
    answer = await operator.call(
        "POST", f"/v1/domains/{domain_id}/events", {"type": kind, "scope": scope, "payload": payload}
    )
    assert answer.status == 202, f"publish: {answer} {answer.body!r}"
    return str(answer.json["id"])


async def tell(listener: Listener, operator: Edge, domain_id: str, scope: str) -> None:
    """Publish until it is heard: without a cursor, what comes while a stream is opened anew is not its own."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(TimeoutError):
                await listener.until(await publish(operator, domain_id, scope), 3)
                return
