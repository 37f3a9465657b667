"""The reader's process as a bench commands it, and numbered events for its streams."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc

from bench.deployment import Deployment
from devstack.layout import ROOT
from devstack.process import child_setup
from libs.ids import uuid7
from libs.rpc.channel import OPTIONS
from plexsphere.mesh.v1 import mesh_pb2 as pb
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from tests.e2e.outside import Node

LONGEST_LINE = 1 << 24
TYPE = "policy_updated"
# Makes an envelope about as long as one with a peer in it.
PADDING = "x" * 120


@dataclass
class Streams:
    """Streams that another process holds."""

    process: asyncio.subprocess.Process
    reached: int = 0
    answers: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def listen(self) -> None:
        """Take in what the process tells."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            told = json.loads(line)
            if "all" in told:
                async with self.moved:
                    self.reached = max(self.reached, told["all"])
                    self.moved.notify_all()
            else:
                self.answers.put_nowait(told)

    async def ask(self, within_s: float = 30.0, **command: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self.tell(**command)
        async with asyncio.timeout(within_s):
            return await self.answers.get()

    def tell(self, **command: Any) -> None:
        """Send a command that has no answer now."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    async def open(self, nodes: Sequence[Node], *, within_s: float = 300.0, **more: Any) -> dict[str, Any]:
        """Open a stream for each node and return how that went."""
        self.reached = 0
        wanted = [(f"/v1/nodes/{node.node_id}/events", node.bearer) for node in nodes]
        return await self.ask(within_s, do="open", nodes=wanted, **more)

    async def all_have(self, number: int, within_s: float = 60.0) -> None:
        """Wait until every stream has an event; raises TimeoutError."""
        async with asyncio.timeout(within_s), self.moved:
            await self.moved.wait_for(lambda: self.reached >= number)

    async def state(self) -> dict[str, Any]:
        """Return how the streams are."""
        return await self.ask(do="state")


@contextlib.asynccontextmanager
async def streaming(deployment: Deployment, port: int) -> AsyncIterator[Streams]:
    """Keep a reader's process for the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.reader", "--port", str(port), "--ca-file", str(deployment.state / "pki/ca.crt"),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LONGEST_LINE,
        preexec_fn=child_setup(os.getpid()),
    )  # fmt: skip
    streams = Streams(process)
    listening = asyncio.ensure_future(streams.listen())
    try:
        yield streams
    finally:
        process.kill()
        await process.wait()
        listening.cancel()


@dataclass
class Signed:
    """Publishes numbered events through mesh."""

    stub: "stubs.PublishServiceAsyncStub"
    domain_id: str
    number: int = 0
    called: dict[int, int] = field(default_factory=dict)
    published: dict[int, int] = field(default_factory=dict)

    async def send(self) -> int:
        """Publish the next event to the Domain's nodes; notes when it was asked and when it was acknowledged."""
        self.number += 1
        payload = json.dumps({"n": self.number, "padding": PADDING}, separators=(",", ":"))
        request = pb.PublishRequest(
            domain_id=self.domain_id,
            id=str(uuid7()),
            type=TYPE,
            scope=f"domain:{self.domain_id}",
            payload_json=payload,
        )
        self.called[self.number] = time.monotonic_ns()
        await self.stub.Publish(request, timeout=10)
        self.published[self.number] = time.monotonic_ns()
        return self.number


@contextlib.asynccontextmanager
async def publisher(deployment: Deployment) -> AsyncIterator["stubs.PublishServiceAsyncStub"]:
    """Connect to mesh as identity does, over gRPC with its certificate."""
    own = deployment.identity("identity")
    files = (own.ca_file, own.key_file, own.certificate_file)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    options = [*OPTIONS, ("grpc.ssl_target_name_override", "mesh")]
    address = f"127.0.0.1:{deployment.state.port('mesh')}"
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield stubs.PublishServiceStub(channel)


@dataclass
class Raw:
    """Hands frames to the bare server."""

    feed: asyncio.StreamWriter
    frames: list[bytes]
    number: int = 0
    published: dict[int, int] = field(default_factory=dict)

    async def send(self) -> int:
        """Hand over the next frame; notes when."""
        frame = self.frames[self.number]
        self.number += 1
        self.published[self.number] = time.monotonic_ns()
        self.feed.write(len(frame).to_bytes(4) + frame)
        await self.feed.drain()
        return self.number


@dataclass(frozen=True)
class Bare:
    """A bare server's process."""

    process: asyncio.subprocess.Process
    port: int
    feed: Path


@contextlib.asynccontextmanager
async def bare_server(deployment: Deployment) -> AsyncIterator[Bare]:
    """Keep a bare server with the gateway's certificate for the block."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    feed = deployment.state / "run/bare.sock"
    feed.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.bare", "--port", str(port), "--feed", str(feed),
        "--certificate", str(deployment.state / "pki/gateway.crt"), "--key", str(deployment.state / "pki/gateway.key"),
        cwd=ROOT, preexec_fn=child_setup(os.getpid()),
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            while not feed.exists():  # noqa: ASYNC110 — another process makes it
                await asyncio.sleep(0.05)
        yield Bare(process, port, feed)
    finally:
        process.kill()
        await process.wait()


async def frames_of(deployment: Deployment, domain_id: str, last: int) -> list[bytes]:
    """Return the newest events of a Domain as frames, read from mesh's log: the same bytes for the other side."""
    dba = await deployment.world.superuser()
    try:
        rows = await dba.fetch(
            """
            SELECT p.sequence, l.type, l.envelope FROM mesh.event_log l JOIN mesh.event_positions p USING (id)
            WHERE l.domain_id = $1 AND l.type = $3 ORDER BY p.sequence DESC LIMIT $2
            """,
            UUID(domain_id),
            last,
            TYPE,
        )
    finally:
        await dba.close()
    return [
        f"id: {row['sequence']}\nevent: {row['type']}\ndata: ".encode() + row["envelope"] + b"\n\n"
        for row in reversed(rows)
    ]
