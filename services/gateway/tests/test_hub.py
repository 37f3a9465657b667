"""The hub behind the streams: what it reads after a restart, whom it beats, and which loss it notices by itself."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest
from nacl.signing import SigningKey

from devstack.process import until
from libs import envelope
from libs.clock import SystemClock, rfc3339
from libs.ids import uuid7
from services.gateway.gate import MOST_HOLES
from services.gateway.hub import BEAT_S, MOST_UNREAD, Hub
from services.gateway.ports import Message, Place
from services.gateway.ring import AT_ONCE_BYTES, Entry
from services.gateway.stream import Stream
from services.gateway.tests.desk import NODE, OTHER, Desk, bearer
from services.gateway.tests.fakes import problem
from services.gateway.tests.five import Bench

pytestmark = pytest.mark.unit


def ago(seconds: float) -> str:
    return rfc3339(SystemClock().now() - timedelta(seconds=seconds))


@contextlib.asynccontextmanager
async def reading(bench: Bench) -> AsyncIterator[None]:
    """Start a gateway that reads what the stream holds."""
    running = asyncio.ensure_future(bench.hub.run())
    await until(lambda: bench.hub.ready and bench.hub.ring.position == max(bench.mesh.log, default=0), 2)
    try:
        yield
    finally:
        running.cancel()


async def reasons(bench: Bench) -> set[str]:
    await bench.refusals.report()
    return {reason for row in bench.audit.rows.values() for reason in row.context["mesh"]}


async def test_what_is_merely_old_after_a_restart_is_nobodys_attack() -> None:
    bench = Bench()
    scope = f"node:{NODE}"
    old = bench.mesh.put(bench.mesh.sign(scope=scope, issued_at=ago(301)))
    retired = bench.mesh.put(bench.mesh.sign(scope=scope, key_id="evk_" + "1" * 32))
    bench.mesh.put(bench.mesh.sign())
    async with reading(bench):
        assert await reasons(bench) == set()
        ring, domain = bench.hub.ring, bench.mesh.domain
        # Who was to have them, and has not, reconciles; nobody else does.
        assert not ring.complete(domain, (scope,), old)
        assert ring.complete(domain, (scope,), retired)
        assert ring.complete(domain, (f"node:{OTHER}",), old - 1)


async def test_a_replay_of_something_old_is_an_attack_after_a_restart_as_well() -> None:
    bench = Bench()
    data = bench.mesh.sign(issued_at=ago(301))
    bench.mesh.put(data)
    bench.mesh.put(data, bench.mesh.messages[0].subject, logged=False)
    async with reading(bench):
        assert await reasons(bench) == {"stale"}


async def test_in_normal_running_whatever_is_stale_is_recorded() -> None:
    bench = Bench()
    async with reading(bench):
        bench.mesh.put(bench.mesh.sign(issued_at=ago(301)))
        await bench.read()
        assert await reasons(bench) == {"stale"}


async def test_what_was_read_late_is_served_only_while_nodes_would_take_it() -> None:
    now = [1000.0]
    bench = Bench()
    bench.hub = Hub(bench.gate, bench.refusals, bench.reconcile, clock=lambda: now[0])
    bench.mesh.put(bench.mesh.sign())
    bench.mesh.put(bench.mesh.sign(issued_at=ago(280)))
    async with reading(bench):
        scopes = (f"domain:{bench.mesh.domain}",)
        assert bench.hub.ring.complete(bench.mesh.domain, scopes, 1)
        now[0] += 20
        assert not bench.hub.ring.complete(bench.mesh.domain, scopes, 1)


# What is not believed of the broker -----------------------------------------------------------------------------------


def sequences(bench: Bench) -> list[int]:
    return [entry.sequence for entry in bench.hub.ring.after(bench.mesh.domain, (f"domain:{bench.mesh.domain}",), 0)]


async def test_a_replay_at_a_place_of_the_far_future_moves_nothing() -> None:
    bench = Bench()
    async with reading(bench):
        bench.mesh.put(data := bench.mesh.sign())
        subject = bench.mesh.messages[0].subject
        bench.mesh.messages += [Message(2**62, subject, data), Message(2**63 - 1, subject, b"{")]
        await until(lambda: bench.hub.ring.position == 1, 2)
        assert await reasons(bench) == {"nonce_replayed", "parse"}
        # From there the stream is followed again, and there gaps begin.
        bench.mesh.messages.clear()
        bench.mesh.break_stream()
        await until(lambda: not bench.hub.ready, 2)
        bench.mesh.down.clear()
        bench.mesh.put(bench.mesh.sign(), lost=True)
        bench.mesh.put(bench.mesh.sign())
        await until(lambda: sequences(bench) == [1, 2, 3], 2)


async def test_a_process_begins_where_the_log_says_and_not_at_the_first_message() -> None:
    bench = Bench()
    bench.mesh.position = bench.mesh.floor = 40
    bench.mesh.messages.append(Message(3, "events.x", b"{"))
    bench.mesh.put(bench.mesh.sign())
    async with reading(bench):
        assert (bench.hub.ring.floor, bench.hub.ring.position) == (40, 41)


@pytest.mark.parametrize("instead", ["nothing", "junk", "a forgery"])
async def test_what_is_withheld_or_replaced_comes_from_the_log_in_its_place(instead: str) -> None:
    bench = Bench()
    mesh = bench.mesh
    async with reading(bench):
        mesh.put(mesh.sign())
        lost = mesh.put(mesh.sign(), lost=True)
        if instead != "nothing":
            data = b"{" if instead == "junk" else mesh.sign(key=SigningKey.generate())
            mesh.messages.append(Message(lost, mesh.messages[0].subject, data))
        mesh.put(mesh.sign())
        await until(lambda: len(sequences(bench)) == 3, 2)
        assert sequences(bench) == [1, 2, 3]


async def test_a_flood_around_what_was_replaced_costs_one_question() -> None:
    bench = Bench()
    mesh = bench.mesh
    for _ in range(200):
        mesh.put(b"{", f"events.{mesh.domain}.domain.{mesh.domain}.action_request", logged=False)
        mesh.put(mesh.sign(), lost=True)
        mesh.messages.append(Message(mesh.position, mesh.messages[0].subject, b"{"))
        mesh.put(mesh.sign())
    async with reading(bench):
        assert [one.sequence for one in everything(bench)] == sorted(mesh.log)
    assert max(mesh.gaps) <= MOST_HOLES
    # Two batches, and what is late is asked once a batch.
    assert mesh.checks <= 4


def everything(bench: Bench) -> list[Entry]:
    return bench.hub.ring._by_domain[bench.mesh.domain]


async def test_a_broker_that_brings_nothing_more_is_noticed_and_the_log_takes_its_place(desk: Desk) -> None:
    listener, mesh = await desk.listen(), desk.bench.mesh
    sent = [mesh.put(mesh.sign(), lost=True) for _ in range(3)]
    await until(lambda: listener.sequences == sent, 4)
    sent.append(mesh.put(mesh.sign(), lost=True))
    await until(lambda: listener.sequences == sent, 4)


async def test_a_broker_that_says_that_there_is_nothing_is_not_believed_after_a_start() -> None:
    bench = Bench()
    bench.mesh.put(bench.mesh.sign(), lost=True)
    async with reading(bench):
        assert sequences(bench) == [1]


async def test_a_bug_in_reading_is_an_outage_and_not_the_end_of_the_edge(desk: Desk) -> None:
    listener, mesh = await desk.listen(), desk.bench.mesh
    mesh.bug = ValueError("Value out of range")
    sent = mesh.put(mesh.sign())
    await until(lambda: listener.ended, 10)
    answer = await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    assert await problem(answer) == (503, "event_stream_unavailable")
    mesh.bug = None
    await until(lambda: desk.bench.hub.ready, 10)
    back = await desk.listen(after=str(sent - 1))
    await until(lambda: back.sequences == [sent], 2)


@pytest.mark.parametrize("genuine", [True, False])
async def test_a_domain_whose_keys_cannot_be_told_misses_what_was_published_and_no_other_suffers(
    *, genuine: bool
) -> None:
    bench = Bench()
    mesh, scope = bench.mesh, f"domain:{bench.mesh.domain}"
    its, other = (
        Stream(
            node, Place(domain, uuid7()), "", "", cast("Any", FakeTransport()), chunked=True,
            ended=asyncio.get_running_loop().create_future(),
        )
        for node, domain in ((NODE, mesh.domain), (OTHER, uuid7()))
    )  # fmt: skip
    mesh.put(mesh.sign())
    async with reading(bench):
        bench.hub.open(its)
        bench.hub.open(other)
        mesh.untold = {mesh.domain}
        place = mesh.put(mesh.sign()) if genuine else forged(bench)
        await until(lambda: its.ended.done() if genuine else bool(bench.hub.refusals._waiting), 2)
        assert (its.ended.done(), other.ended.done(), bench.hub.ready) == (genuine, False, True)
        assert sequences(bench) == [1]
        # Who resumes before it reconciles; a forgery makes nobody do so, and is an attack.
        assert bench.hub.ring.complete(mesh.domain, (scope,), place - 1) is not genuine
        assert await reasons(bench) == (set() if genuine else {"unknown_key"})


def forged(bench: Bench) -> int:
    subject = f"events.{bench.mesh.domain}.domain.{bench.mesh.domain}.action_request"
    return bench.mesh.put(bench.mesh.sign(key=SigningKey.generate()), subject, logged=False)


async def test_a_flood_that_is_slow_to_read_holds_up_neither_others_nor_events() -> None:
    bench, slow = Bench(), b'{"a":[' + b"1," * 29_000 + b"1]}"
    mesh = bench.mesh
    assert len(slow) <= envelope.LARGEST
    for turn in range(2000):
        mesh.put(slow, f"events.{mesh.domain}.domain.{mesh.domain}.action_request", logged=False)
        if turn % 100 == 0:
            mesh.put(mesh.sign())
    # Work, and not time: others share this machine.
    began = last = time.thread_time()
    longest = 0.0
    reader = asyncio.ensure_future(bench.hub.run())
    while not bench.hub.ready:
        await asyncio.sleep(0.001)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    reader.cancel()
    assert [one.sequence for one in everything(bench)] == sorted(mesh.log)
    # To read all of it takes more than a minute.
    assert last - began < 15
    assert longest < 0.3
    # What was not read, and was published, is nobody's attack.
    assert sum(bench.refusals._counts.values()) == 2000
    assert await reasons(bench) == {"missing_member", "unread"}


# In the background ----------------------------------------------------------------------------------------------------


class FakeTransport:
    """Counts what is written; nobody reads it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.written))

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)


async def test_a_beat_comes_every_25_seconds_even_when_the_clock_jumps() -> None:
    now = [1000.0]
    bench = Bench()
    hub = Hub(bench.gate, bench.refusals, bench.reconcile, clock=lambda: now[0])
    transports = []
    for second in range(BEAT_S):
        now[0] = 1000.9 + second
        transports.append(transport := FakeTransport())
        place, ended = Place(bench.mesh.domain, uuid7()), asyncio.get_running_loop().create_future()
        hub.open(Stream(uuid7(), place, "", "", cast("Any", transport), chunked=False, ended=ended))
    # A process that is held up now and then sleeps for longer than a second.
    done = int(now[0])
    for pause in (1.0, 1.001, 2.5, 0.9, 7, 1, 11.5):
        now[0] += pause
        done = hub.beat_since(done)
    assert [len(transport.written) for transport in transports] == [1] * BEAT_S
    now[0] += 300
    hub.beat_since(done)
    # After a long pause one beat is enough.
    assert [len(transport.written) for transport in transports] == [2] * BEAT_S


async def test_without_an_event_the_loss_of_the_relation_checker_is_noticed(desk: Desk) -> None:
    desk.bench.hub.relations_gone_s = 2.0
    listener = await desk.listen()
    desk.bench.fleet.down = True
    await asyncio.sleep(0.4)
    assert not listener.ended
    await until(lambda: listener.ended, 8)
    # Streams are ended, not refused for good: as soon as it answers again they are back.
    desk.bench.fleet.down = False
    back = await desk.listen()
    await asyncio.sleep(1.2)
    assert not back.ended


async def test_a_revocation_that_nobody_heard_of_is_found(desk: Desk) -> None:
    listener, other = await desk.listen(), await desk.listen(OTHER)
    desk.bench.fleet.refused = {OTHER}
    await until(lambda: other.ended, 3)
    assert not listener.ended


async def test_a_burst_leaves_no_more_unread_than_a_stream_may_have() -> None:
    bench = Bench()
    stream = Stream(
        NODE, Place(bench.mesh.domain, uuid7()), "", "", transport := cast("Any", FakeTransport()), chunked=True,
        ended=asyncio.get_running_loop().create_future(),
    )  # fmt: skip
    async with reading(bench):
        bench.hub.open(stream)
        for _ in range(200):
            bench.mesh.put(bench.mesh.sign(payload=b'{"a":"' + b"x" * 50_000 + b'"}'))
        await bench.read()
        assert stream.ended.result() == "slow"
        assert transport.get_write_buffer_size() <= MOST_UNREAD + AT_ONCE_BYTES
        # Nothing is written to what has ended, whatever it ended of.
        before = transport.get_write_buffer_size()
        stream.write([everything(bench)[0]], 2**40)
        stream.say(b"retry: 1\n\n")
        assert transport.get_write_buffer_size() == before
    await asyncio.sleep(0)


async def test_what_was_revoked_unheard_is_found_by_its_key_as_well(desk: Desk) -> None:
    listener, other = await desk.listen(), await desk.listen(OTHER)
    desk.bench.hub.feed_lost()
    desk.bench.fleet.kids[NODE] = "nsk_2"
    await desk.bench.hub.feed_back()
    await until(lambda: listener.ended, 1)
    desk.bench.fleet.kids[OTHER] = "nsk_2"
    # Nobody said that anything was lost: it is asked about in its turn.
    await until(lambda: other.ended, 3)
