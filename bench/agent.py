"""A node as the soak sees it: holds its stream, resumes by cursor, and believes nothing that it has not verified.

It shares no code with publisher or gateway: its own HTTP reader, its own canonical form, another Ed25519 library.
"""

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.e2e.outside import Node

MEMBERS = ["id", "type", "scope", "key_id", "issued_at", "payload", "signature"]
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
AGAIN_AFTER_S = 0.1
CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 20.0
# The gateway writes a comment every 25 s; a connection without one is dead.
SILENT_S = 40.0
OK = 200
# A published agent stops for good on these, and gives up the bus on 501.
FINAL = frozenset({401, 403, 404, 501})


@dataclass(frozen=True)
class Received:
    """One verified event, in the order in which the node saw it."""

    sequence: int
    id: str
    type: str
    scope: str
    payload: dict[str, Any]
    at: float


class Forged(Exception):
    """An envelope that was delivered and does not verify."""


@dataclass
class Agent:
    """One node with the key that its registration was answered with."""

    node: Node
    address: tuple[str, int]
    trust: ssl.SSLContext
    scopes: frozenset[str]
    key_id: str
    key: Ed25519PublicKey
    received: list[Received] = field(default_factory=list)
    forged: list[str] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    cursor: int | None = None
    listening: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Hold the stream for as long as nobody cancels it."""
        while True:
            try:
                await self._connection()
                self.lost["ended"] += 1
            except (OSError, TimeoutError, EOFError, ValueError) as error:
                self.lost[type(error).__name__] += 1
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _connection(self) -> None:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            reader, writer = await asyncio.open_connection(*self.address, ssl=self.trust, limit=1 << 20)
        try:
            resume = f"Last-Event-ID: {self.cursor}\r\n" if self.cursor is not None else ""
            writer.write(
                f"GET /v1/nodes/{self.node.node_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Authorization: Bearer {self.node.bearer}\r\nAccept: text/event-stream\r\n{resume}\r\n".encode()
            )
            async with asyncio.timeout(ANSWER_WITHIN_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split(" ", 2)[1])
            self.answers[status] += 1
            if status != OK:
                return
            self.listening.set()
            async for frame in _frames(reader):
                self._take(frame)
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    def _take(self, frame: str) -> None:
        fields = dict(line.split(": ", 1) for line in frame.split("\n") if line and not line.startswith(":"))
        if "data" not in fields:
            return
        try:
            event = self._verified(fields)
        except Forged as error:
            self.forged.append(f"{error}: {frame[:300]}")
            return
        self.cursor = event.sequence
        self.received.append(event)

    def _verified(self, fields: dict[str, str]) -> Received:
        pairs = json.loads(fields["data"], object_pairs_hook=list)
        found = dict(pairs)
        if len(found) != len(pairs) or not set(MEMBERS) <= found.keys():
            raise Forged("members")
        payload = json.loads(fields["data"])["payload"]
        signed = canonical({**found, "payload": payload})
        if found["key_id"] != self.key_id:
            raise Forged("key")
        try:
            self.key.verify(base64.b64decode(found["signature"], validate=True), signed)
        except (InvalidSignature, ValueError):
            raise Forged("signature") from None
        if found["scope"] not in self.scopes:
            raise Forged("scope")
        if fields.get("event") != found["type"] or not fields.get("id", "").isdigit():
            raise Forged("frame")
        return Received(int(fields["id"]), found["id"], found["type"], found["scope"], payload, time.monotonic())


def canonical(members: dict[str, Any]) -> bytes:
    """Return the signed bytes of an envelope: the contract's six members in its order, as Go's encoder writes them."""
    text = json.dumps(
        {name: members[name] for name in MEMBERS if name != "signature"}, ensure_ascii=False, separators=(",", ":")
    )
    for char, escape in ESCAPES.items():
        text = text.replace(char, escape)
    return text.encode()


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield text/event-stream frames of a chunked body (RFC 9112, 7.1); raises when the body is cut."""
    text = b""
    while True:
        async with asyncio.timeout(SILENT_S):
            size = int((await reader.readuntil(b"\r\n")).strip(), 16)
            chunk = await reader.readexactly(size + 2)
        if not size:
            return
        text += chunk[:-2]
        *frames, text = text.split(b"\n\n")
        for frame in frames:
            yield frame.decode()
