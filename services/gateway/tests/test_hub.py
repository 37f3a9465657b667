"""The hub behind the streams: what it reads after a restart, whom it beats, and which loss it notices by itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest

from devstack.process import until
from libs.clock import SystemClock, rfc3339
from libs.ids import uuid7
from services.gateway.gate import Place
from services.gateway.hub import BEAT_S, Hub, Stream
from services.gateway.tests.desk import NODE, OTHER, Desk
from services.gateway.tests.five import Bench

pytestmark = pytest.mark.unit


def ago(seconds: float) -> str:
    return rfc3339(SystemClock().now() - timedelta(seconds=seconds))


@contextlib.asynccontextmanager
async def reading(bench: Bench) -> AsyncIterator[None]:
    """Start a gateway that reads what the stream holds."""
    running = asyncio.ensure_future(bench.hub.run())
    await until(lambda: bench.hub.ready and bench.hub.ring.position == bench.mesh.position, 2)
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
        await until(lambda: bench.hub.ring.position == bench.mesh.position, 2)
        assert await reasons(bench) == {"stale"}


async def test_what_was_read_late_is_served_only_while_nodes_would_take_it() -> None:
    now = [1000.0]
    bench = Bench()
    bench.hub = Hub(bench.gate, bench.refusals, clock=lambda: now[0])
    bench.mesh.put(bench.mesh.sign())
    bench.mesh.put(bench.mesh.sign(issued_at=ago(280)))
    async with reading(bench):
        scopes = (f"domain:{bench.mesh.domain}",)
        assert bench.hub.ring.complete(bench.mesh.domain, scopes, 1)
        now[0] += 20
        assert not bench.hub.ring.complete(bench.mesh.domain, scopes, 1)


# In the background ----------------------------------------------------------------------------------------------------


class FakeTransport:
    """Counts what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written.append(data)


async def test_a_beat_comes_every_25_seconds_even_when_the_clock_jumps() -> None:
    now = [1000.0]
    bench = Bench()
    hub = Hub(bench.gate, bench.refusals, clock=lambda: now[0])
    transports = []
    for second in range(BEAT_S):
        now[0] = 1000.9 + second
        transports.append(transport := FakeTransport())
        place, ended = Place(bench.mesh.domain, uuid7()), asyncio.get_running_loop().create_future()
        hub.open(Stream(uuid7(), place, "", cast("Any", transport), chunked=False, ended=ended))
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
