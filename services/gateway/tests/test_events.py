"""Streams over HTTP behind the gate: what a node gets, resumes, and when its stream ends."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiohttp.test_utils import TestClient
from google.protobuf.message import Message

from devstack.process import until
from libs.custody import Secret
from libs.errors import AuditUnavailable
from libs.ids import uuid7
from libs.nsk import format_bearer
from plexsphere.identity.v1 import sign_in_pb2
from plexsphere.mesh.v1 import mesh_pb2
from services.gateway.gate import Place
from services.gateway.ring import KEPT_S, Entry, Ring
from services.gateway.tests.fakes import FakePeer, assertion, problem, start
from services.gateway.tests.five import Bench

pytestmark = pytest.mark.unit

NODE, OTHER = uuid7(), uuid7()
PROJECT = uuid7()


def bearer(node: UUID) -> dict[str, str]:
    return {"Authorization": "Bearer " + format_bearer("dev", node, Secret(bytes(32)))}


@dataclass
class Listener:
    """A node on its stream."""

    answer: Any
    frames: list[dict[str, str]] = field(default_factory=list)
    comments: int = 0
    ended: bool = False

    async def read(self) -> None:
        frame: dict[str, str] = {}
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            async for line in self.answer.content:
                text = line.decode().rstrip("\n")
                if not text and frame:
                    self.frames.append(frame)
                    frame = {}
                elif text.startswith(":"):
                    self.comments += 1
                elif text:
                    name, _, value = text.partition(": ")
                    frame[name] = value
        self.ended = True

    @property
    def sequences(self) -> list[int]:
        return [int(frame["id"]) for frame in self.frames if "id" in frame]


@dataclass
class Desk:
    """The edge in front of a bench."""

    bench: Bench
    client: TestClient[Any, Any]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def listen(self, node: UUID = NODE, after: str | None = None) -> Listener:
        headers = bearer(node) | ({} if after is None else {"Last-Event-ID": after})
        answer = await self.client.get(f"/v1/nodes/{node}/events", headers=headers)
        assert answer.status == 200, await answer.text()
        listener = Listener(answer)
        self.tasks.append(asyncio.ensure_future(listener.read()))
        await until(lambda: listener.comments, 2)
        return listener

    def publish(self, scope: str = "", **more: Any) -> int:
        mesh = self.bench.mesh
        return mesh.put(mesh.sign(scope=scope or f"domain:{mesh.domain}", **more))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    bench, peer = Bench(), FakePeer()
    for node in (NODE, OTHER):
        bench.fleet.places[node] = Place(bench.mesh.domain, PROJECT)

    def authenticated(request: Any) -> Message:
        return sign_in_pb2.AuthenticateResponse(assertion=assertion(sub="node", node_id=str(NODE)))

    peer.answers["Authenticate"] = authenticated
    peer.answers["RequestReconcile"] = lambda _: mesh_pb2.RequestReconcileResponse(announced=True)
    client = await start(peer, tmp_path, ports=bench.ports, hub=bench.hub)
    running = [asyncio.ensure_future(bench.hub.run()), asyncio.ensure_future(bench.hub.pulse())]
    await until(lambda: bench.hub.ready, 2)
    opened = Desk(bench, client)
    yield opened
    for task in [*running, *opened.tasks]:
        task.cancel()
    await asyncio.gather(*running, *opened.tasks, return_exceptions=True)
    await client.close()


async def test_a_node_gets_what_is_for_it_as_the_contract_has_it(desk: Desk) -> None:
    listener = await desk.listen()
    headers = listener.answer.headers
    assert (headers["Content-Type"], headers["Cache-Control"]) == ("text/event-stream", "no-cache")
    assert (headers["X-Plexsphere-API-Version"], headers["X-Accel-Buffering"]) == ("v1", "no")
    mine = [desk.publish(scope) for scope in ("", f"node:{NODE}", f"project:{PROJECT}")]
    for scope in (f"node:{OTHER}", f"project:{uuid7()}"):
        desk.publish(scope)
    await until(lambda: len(listener.frames) == 3, 2)
    assert listener.sequences == mine
    frame = listener.frames[0]
    assert (frame["event"], json.loads(frame["data"])["type"]) == ("action_request", "action_request")
    assert frame["data"].encode() == desk.bench.mesh.messages[0].data


async def test_without_a_cursor_it_begins_now_and_with_one_strictly_after(desk: Desk) -> None:
    sent = [desk.publish() for _ in range(5)]
    await until(lambda: desk.bench.hub.ring.position == sent[-1], 2)
    tail, resumed = await desk.listen(), await desk.listen(OTHER, after=str(sent[1]))
    sent.append(desk.publish())
    await until(lambda: resumed.sequences == sent[2:] and tail.sequences == sent[5:], 2)


async def test_a_resume_asks_nobody(desk: Desk) -> None:
    sent = [desk.publish() for _ in range(3)]
    await until(lambda: desk.bench.hub.ring.position == sent[-1], 2)
    checks = desk.bench.mesh.checks
    for _ in range(5):
        await desk.listen(after=str(sent[0]))
    # The pulse asks for nothing twice a second.
    assert desk.bench.mesh.checks - checks <= 5


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "9" * 20, "+1", "\u0661"])
async def test_a_cursor_is_a_number(desk: Desk, text: str) -> None:
    headers = bearer(NODE) | {"Last-Event-ID": text}
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=headers)
    assert await problem(answer) == (400, "invalid_cursor")


@pytest.mark.parametrize("after", ["0", "999"])
async def test_who_cannot_be_resumed_is_told_to_reconcile(desk: Desk, after: str) -> None:
    desk.bench.hub.ring.begin(10)
    desk.bench.mesh.position = 10
    listener = await desk.listen(after=after)
    told = desk.publish(kind="node_state_updated")
    await until(lambda: listener.sequences == [told], 4)
    # Whoever comes within the next seconds gets the same announcement.
    late = await desk.listen(OTHER, after=after)
    await until(lambda: late.sequences == [told], 4)


async def test_a_second_stream_replaces_the_first(desk: Desk) -> None:
    first = await desk.listen()
    second = await desk.listen()
    await until(lambda: first.ended, 2)
    sent = desk.publish()
    await until(lambda: second.sequences == [sent], 2)
    assert first.frames == []


async def test_relation_and_existence_decide_before_the_stream_begins(desk: Desk) -> None:
    desk.bench.fleet.refused = {NODE}
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (403, "permission_denied")
    desk.bench.fleet.refused, desk.bench.fleet.places = set(), {}
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (404, "not_found")
    desk.bench.fleet.down = True
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (503, "event_stream_unavailable")


@pytest.mark.parametrize("port", ["stream", "nonces", "keys"])
async def test_a_port_that_fails_ends_streams_and_is_503_until_it_is_back(desk: Desk, port: str) -> None:
    listener = await desk.listen()
    if port == "stream":
        desk.bench.mesh.break_stream()
    else:
        desk.bench.mesh.down.add(port)
        missed = desk.publish()
    await until(lambda: listener.ended, 4)
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (503, "event_stream_unavailable")
    desk.bench.mesh.down.clear()
    await until(lambda: desk.bench.hub.ready, 4)
    if port != "stream":
        back = await desk.listen(after=str(missed - 1))
        await until(lambda: back.sequences == [missed], 2)


async def test_without_an_event_the_loss_of_a_port_is_noticed(desk: Desk) -> None:
    listener = await desk.listen()
    desk.bench.mesh.down.add("nonces")
    await until(lambda: listener.ended, 4)


async def test_a_revoked_node_is_cut_off(desk: Desk) -> None:
    listener, other = await desk.listen(), await desk.listen(OTHER)
    desk.bench.hub.end_node(NODE, "revoked")
    await until(lambda: listener.ended, 1)
    assert not other.ended


async def test_after_a_silence_of_the_feed_everybody_is_asked_about_again(desk: Desk) -> None:
    listener, other = await desk.listen(), await desk.listen(OTHER)
    desk.bench.hub.feed_lost()
    desk.bench.fleet.refused = {NODE}
    await desk.bench.hub.feed_back()
    await until(lambda: listener.ended, 1)
    assert not other.ended


async def test_streams_end_when_revocations_were_not_heard_for_too_long(
    desk: Desk,
) -> None:
    desk.bench.hub.feed_gone_s = 0.5
    listener = await desk.listen()
    desk.bench.hub.feed_lost()
    await until(lambda: listener.ended, 3)


async def test_a_client_that_does_not_read_is_dropped_and_slows_nobody(
    desk: Desk,
) -> None:
    desk.bench.hub.most_unread = 64 * 1024
    listener = await desk.listen()
    idle = await desk.client.get(f"/v1/nodes/{OTHER}/events", headers=bearer(OTHER))
    sent = []
    for _ in range(300):
        sent.append(desk.publish(payload=b'{"a":"' + b"x" * 50_000 + b'"}'))
        await asyncio.sleep(0)
    await until(lambda: listener.sequences == sent, 10)
    assert OTHER not in desk.bench.hub._streams
    idle.close()


async def test_a_drain_ends_everybody_with_a_time_to_come_back(desk: Desk) -> None:
    listeners = [await desk.listen(), await desk.listen(OTHER)]
    await desk.bench.hub.drain(0.2)
    await until(lambda: all(listener.ended for listener in listeners), 2)
    waits = [int(frame["retry"]) for listener in listeners for frame in listener.frames]
    assert len(waits) == 2
    assert all(500 <= wait <= 5000 for wait in waits)
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (503, "event_stream_unavailable")


async def test_refusals_are_counted_and_recorded_once_a_minute(desk: Desk) -> None:
    bench = desk.bench
    subject = f"events.{bench.mesh.domain}.domain.{bench.mesh.domain}.action_request"
    for _ in range(1000):
        bench.mesh.put(b"{", subject, logged=False)
    bench.mesh.put(b"{", f"events.{uuid7()}.domain.{uuid7()}.action_request", logged=False)
    bench.mesh.put(b"{", f"events.{uuid7()}.domain.{uuid7()}.action_request", logged=False)
    bench.mesh.put(b"{", "events.nonsense", logged=False)
    await until(lambda: bench.hub.ring.position == bench.mesh.position, 3)
    await bench.refusals.report()
    rows = {(row.domain_id, *row.context["mesh"]) for row in bench.audit.rows.values()}
    assert rows == {(str(bench.mesh.domain), "parse"), ("", "parse"), ("", "subject")}
    assert len(bench.audit.rows) == 3
    assert {row.reason for row in bench.audit.rows.values()} == {"caveat_violation"}


async def test_a_refusal_that_cannot_be_recorded_waits(desk: Desk) -> None:
    bench = desk.bench
    bench.mesh.put(b"{", "events.nonsense", logged=False)
    await until(lambda: bench.hub.ring.position == bench.mesh.position, 3)
    bench.audit.down = True
    with pytest.raises(AuditUnavailable):
        await bench.refusals.report()
    bench.audit.down = False
    await bench.refusals.report()
    assert len(bench.audit.rows) == 1


# The ring -------------------------------------------------------------------------------------------------------------


def entry(ring: Ring, sequence: int, scope: str = "domain:d", key: str = "k") -> Entry:
    domain = UUID(int=1)
    return Entry(sequence, uuid7(), domain, scope, key, b"f", b"c" * 100, ring.clock())


def test_what_is_older_than_five_minutes_goes_and_only_who_missed_something_is_told() -> None:
    now = [1000.0]
    ring = Ring(lambda: now[0])
    ring.begin(10)
    for sequence, scope in ((11, "node:a"), (12, "node:b"), (13, "node:a")):
        ring.add(entry(ring, sequence, scope))
        now[0] += 100
    ring.reach(13)
    now[0] += KEPT_S - 300 + 1
    ring.reach(20)
    domain = UUID(int=1)
    assert [one.sequence for one in ring.after(domain, ("node:a",), 10)] == [13]
    # Only node:a missed what is gone; node:b has been told everything since the floor.
    assert ring.complete(domain, ("node:b",), 10)
    assert not ring.complete(domain, ("node:a",), 10)
    assert ring.complete(domain, ("node:a",), 11)
    assert not ring.complete(domain, ("node:b",), 9)


def test_an_event_is_kept_once() -> None:
    ring = Ring(lambda: 0.0)
    one = entry(ring, 1)
    assert [ring.add(one), ring.add(one)] == [True, False]


def test_what_a_revoked_key_signed_is_served_no_more() -> None:
    ring = Ring(lambda: 0.0)
    for sequence, key in ((1, "old"), (2, "new"), (3, "old")):
        ring.add(entry(ring, sequence, key=key))
    ring.untrust(UUID(int=1), {"new"})
    assert [one.sequence for one in ring.after(UUID(int=1), ("domain:d",), 0)] == [2]
