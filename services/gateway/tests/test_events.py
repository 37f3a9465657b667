"""Streams over HTTP behind the gate: what a node gets, resumes, and when its stream ends."""

import asyncio
import contextlib
import itertools
import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devstack.process import until
from libs.errors import AuthzUnavailable, EventBusUnavailable, Forbidden, PlexError, Unavailable
from libs.ids import uuid7
from plexsphere.identity.v1 import relations_pb2 as pb
from services.gateway.credentials import AssertionCache, digest_of
from services.gateway.hub import MOST_UNREAD
from services.gateway.ports import Place, Ports
from services.gateway.revocations import apply
from services.gateway.ring import AT_ONCE_BYTES
from services.gateway.stream import LIVE
from services.gateway.tests.desk import NODE, OTHER, PROJECT, Desk, bearer
from services.gateway.tests.fakes import FakePeer, problem, start
from services.gateway.tests.five import Bench

pytestmark = pytest.mark.unit


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
    # Whose relation went with the node must register again.
    kept, desk.bench.fleet.places = desk.bench.fleet.places, {}
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (401, "nsk_revoked")
    assert kept
    desk.bench.fleet.refused = set()
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


THIS = f"node:{NODE}"


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        (pb.WatchRevocationsResponse(node_id=str(NODE)), True),
        (pb.WatchRevocationsResponse(credential_digest=digest_of(bearer(NODE)["Authorization"][7:])), True),
        (pb.WatchRevocationsResponse(relation=pb.RevokedRelation(subject=THIS, relation="agent", resource=THIS)), True),
        (pb.WatchRevocationsResponse(relation=pb.RevokedRelation(subject=THIS, resource=f"secret:{NODE}")), False),
        (pb.WatchRevocationsResponse(relation=pb.RevokedRelation(subject=f"user:{NODE}", resource=THIS)), False),
        (pb.WatchRevocationsResponse(identity_id=str(NODE)), False),
        (pb.WatchRevocationsResponse(), False),
    ],
)
async def test_what_the_feed_says_ends_the_streams_that_it_is_about(desk: Desk, message: Any, ends: bool) -> None:  # noqa: FBT001 — a column of the table
    listener, other = await desk.listen(), await desk.listen(OTHER)
    apply(message, AssertionCache(), desk.bench.hub)
    await asyncio.sleep(0.1)
    assert (listener.ended, other.ended) == (ends, False)


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
    # Nobody holds it against the node: it comes back with its cursor and gets what it missed.
    desk.bench.hub.most_unread = MOST_UNREAD
    back = await desk.listen(OTHER, after=str(sent[-3]))
    await until(lambda: back.sequences == sent[-2:], 5)


# A client that stops reading in the middle of what it missed ----------------------------------------------------------


@dataclass
class Parked:
    """A connection on which a resume was asked for, and nothing is read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def rest(self) -> bytes:
        """Read all that still comes."""
        found = b""
        with contextlib.suppress(ConnectionError):
            while part := await self.reader.read(65_536):
                found += part
        self.writer.close()
        return found


async def park(desk: Desk) -> Parked:
    """Publish far more than buffers hold, and resume before it without reading."""
    for _ in range(200):
        desk.publish(payload=b'{"a":"' + b"x" * 50_000 + b'"}')
    await until(lambda: desk.bench.hub.ring.position == desk.bench.mesh.position, 10)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    raw.setblocking(False)
    server = desk.client.server
    await asyncio.get_running_loop().sock_connect(raw, (str(server.host), int(server.port or 0)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
    lines = [f"GET /v1/nodes/{NODE}/events HTTP/1.1", "Host: x", "Last-Event-ID: 0"]
    lines += [f"{name}: {value}" for name, value in bearer(NODE).items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    await until(lambda: NODE in desk.bench.hub._streams, 2)
    await asyncio.sleep(0.3)
    return Parked(reader, writer)


async def test_who_is_revoked_while_it_does_not_read_gets_nothing_of_what_comes_after(desk: Desk) -> None:
    parked = await park(desk)
    stream = desk.bench.hub._streams[NODE]
    assert stream.transport.get_write_buffer_size() < 4 * AT_ONCE_BYTES
    desk.bench.hub.end_node(NODE, "revoked")
    after = [desk.publish() for _ in range(3)]
    await until(lambda: desk.bench.hub.ring.position == after[-1], 2)
    # What had not left is dropped, and the connection does not wait for who never reads.
    await until(lambda: stream.transport.get_write_buffer_size() == 0, 1)
    got = await parked.rest()
    assert b"HTTP/1.1 200 OK" in got
    assert not any(b"id: %d\n" % sequence in got for sequence in after)
    assert len(got) < 130 * 50_000
    assert stream.transport.is_closing()


async def test_a_second_connection_ends_one_that_does_not_read(desk: Desk) -> None:
    parked = await park(desk)
    stream = desk.bench.hub._streams[NODE]
    second = await desk.listen(after="0")
    await until(lambda: len(second.frames) == 200, 10)
    assert stream.ended.result() == "replaced"
    assert len(await parked.rest()) < 130 * 50_000


async def test_who_reads_slowly_gets_all_of_it_once_and_in_order(desk: Desk) -> None:
    parked = await park(desk)
    sent = [*range(1, 201), *(desk.publish() for _ in range(3))]
    reading = asyncio.ensure_future(parked.rest())
    await until(lambda: desk.bench.hub._streams[NODE].passed == LIVE, 10)
    sent.append(desk.publish())
    await asyncio.sleep(0.3)
    await desk.bench.hub.drain(0.1)
    got = await asyncio.wait_for(reading, 5)
    assert [int(found) for found in re.findall(rb"^id: (\d+)$", got, re.MULTILINE)] == sent
    # Who is sent elsewhere is told so to the end.
    assert got.endswith(b"0\r\n\r\n")


async def test_what_is_gone_before_a_slow_client_has_it_ends_its_stream(desk: Desk) -> None:
    parked = await park(desk)
    stream = desk.bench.hub._streams[NODE]
    desk.bench.hub.ring.miss(desk.bench.mesh.domain, f"domain:{desk.bench.mesh.domain}", 199)
    got = await parked.rest()
    assert stream.ended.result() == "slow"
    assert b"id: 200\n" not in got


async def test_a_key_that_is_revoked_between_authentication_and_opening_opens_nothing(desk: Desk) -> None:
    answer = desk.peer.answers["Authenticate"]

    def revoked_at_once(request: Any) -> Any:
        desk.bench.fleet.kids[NODE] = "nsk_2"
        apply(
            pb.WatchRevocationsResponse(credential_digest=digest_of(bearer(NODE)["Authorization"][7:])),
            desk.cache, desk.bench.hub,
        )  # fmt: skip
        return answer(request)

    desk.peer.answers["Authenticate"] = revoked_at_once
    listener = await desk.listen()
    await until(lambda: listener.ended, 0.4)


async def test_a_drain_ends_everybody_with_a_time_to_come_back(desk: Desk) -> None:
    listeners = [await desk.listen(), await desk.listen(OTHER)]
    await desk.bench.hub.drain(0.2)
    await until(lambda: all(listener.ended for listener in listeners), 2)
    waits = [int(frame["retry"]) for listener in listeners for frame in listener.frames]
    assert len(waits) == 2
    assert all(500 <= wait <= 5000 for wait in waits)
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (503, "event_stream_unavailable")


# What is answered in place of a stream --------------------------------------------------------------------------------

NAMES = ("event_stream", "nonce_store", "signature_verifier", "relation_checker", "node_repo")
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "correlation_id"}


async def answered(tmp_path: Path, provided: tuple[bool, ...]) -> tuple[int, str, set[str]]:
    """Ask for a stream where some ports are provided; a stream must bring an event."""
    bench = Bench()
    bench.fleet.places[NODE] = Place(bench.mesh.domain, PROJECT)
    some = {name: getattr(bench.ports, name) for name, there in zip(NAMES, provided, strict=True) if there}
    client = await start(FakePeer(), tmp_path, ports=Ports(**some), hub=bench.hub if all(provided) else None)
    running = asyncio.ensure_future(bench.hub.run())
    await until(lambda: bench.hub.ready, 2)
    try:
        answer = await client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
        if answer.status == 200:
            Desk(bench, client).publish()
            async with asyncio.timeout(2):
                return 200, (await answer.content.readuntil(b"}\n\n")).decode(), set()
        return *await problem(answer), set(await answer.json(content_type=None))
    finally:
        running.cancel()
        await client.close()


async def test_every_combination_of_ports_but_the_whole_one_is_501_over_http(tmp_path: Path) -> None:
    for provided in itertools.product((False, True), repeat=5):
        found = await answered(tmp_path, provided)
        if all(provided):
            assert found[0] == 200
            assert "event: action_request" in found[1]
        else:
            assert found == (501, "signed_event_bus_not_provisioned", MEMBERS), provided


def raising(error: PlexError) -> Any:
    def answer(_: Any) -> Any:
        raise error

    return answer


@pytest.mark.parametrize("error", [AuthzUnavailable(), Unavailable()])
async def test_whichever_dependency_is_down_a_stream_is_503_with_its_own_code(desk: Desk, error: PlexError) -> None:
    desk.peer.answers["Authenticate"] = raising(error)
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (503, "event_stream_unavailable")


@pytest.mark.parametrize("error", [EventBusUnavailable(), Forbidden(), PlexError()])
async def test_what_mesh_says_of_itself_is_never_said_of_the_node(desk: Desk, error: PlexError) -> None:
    desk.bench.hub.ring.begin(10)
    desk.peer.answers["RequestReconcile"] = raising(error)
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE) | {"Last-Event-ID": "0"})
    assert await problem(answer) == (503, "event_stream_unavailable")
