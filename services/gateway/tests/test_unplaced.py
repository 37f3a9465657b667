"""What mesh notes after the gate gave it up: nobody who was to have it is left without."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from devstack.process import until
from libs import envelope
from libs.errors import EventStreamUnavailable
from libs.ids import uuid7
from services.gateway.tests.five import Bench
from services.gateway.unplaced import NO_NODE, Unplaced

pytestmark = pytest.mark.unit


@contextlib.asynccontextmanager
async def reading(bench: Bench) -> AsyncIterator[None]:
    """Let a gateway read."""
    running = asyncio.ensure_future(bench.hub.run())
    await until(lambda: bench.hub.ready, 2)
    try:
        yield
    finally:
        running.cancel()


def put_unplaced(bench: Bench, scope: str = "") -> int:
    """Publish an event whose place is not noted; the gate has waited for its first copy in vain."""
    data = bench.mesh.sign(scope=scope or f"domain:{bench.mesh.domain}")
    now = asyncio.get_running_loop().time()
    bench.gate.patience.give_up([UUID(envelope.parse(data).id)])
    bench.gate.patience.spend(now - 1, now)
    bench.mesh.hidden.add(bench.mesh.position + 1)
    return bench.mesh.put(data)


async def look(bench: Bench, later_s: int = 0) -> None:
    await bench.hub.unplaced.look(bench.hub.ring, time.time_ns() + later_s * 1_000_000_000)


@pytest.mark.parametrize("node", [None, uuid7()])
async def test_nodes_of_what_is_noted_after_a_gateway_read_past_it_fetch_their_state(node: UUID | None) -> None:
    bench = Bench()
    async with reading(bench):
        place = put_unplaced(bench, f"node:{node}" if node else "")
        await bench.read()
        await look(bench)
        assert bench.asked == []
        bench.mesh.hidden.remove(place)
        await look(bench)
        assert bench.asked == [node or NO_NODE]
        # They are told once, and it is over.
        await bench.read()
        for _ in range(2):
            await look(bench)
        assert len(bench.asked) == 1


async def test_a_second_copy_that_is_noted_elsewhere_and_read_past_counts_as_well() -> None:
    bench = Bench()
    async with reading(bench):
        put_unplaced(bench)
        await bench.read()
        unread = bench.mesh.position + 1
        bench.mesh.put(bench.mesh.messages[0].data, lost=True)
        bench.hub.ring.reach(unread)
        await look(bench)
        assert bench.asked == [NO_NODE]


async def test_what_the_log_brings_in_time_asks_nothing_of_anybody() -> None:
    bench = Bench()
    async with reading(bench):
        place = put_unplaced(bench)
        while not bench.audit.rows:
            await bench.refusals.report()
            await asyncio.sleep(0.01)
        bench.mesh.hidden.remove(place)
        await look(bench)
        # It is noted, and not read yet: what is behind it brings it from the log.
        assert bench.hub.ring.position < place
        await bench.read()
        await look(bench)
        assert bench.asked == []


async def test_who_cannot_be_told_is_told_later() -> None:
    bench, down = Bench(), [True]

    async def reconcile(domain_id: UUID, node_id: UUID) -> None:
        if down:
            raise EventStreamUnavailable
        await bench.reconcile(domain_id, node_id)

    bench.hub.unplaced = Unplaced(bench.mesh, reconcile, bench.hub.reconciled)
    async with reading(bench):
        place = put_unplaced(bench)
        await bench.read()
        bench.mesh.hidden.remove(place)
        with pytest.raises(EventStreamUnavailable):
            await look(bench)
        down.clear()
        await look(bench)
        assert bench.asked == [NO_NODE]


async def test_what_is_never_noted_is_forgotten_when_nobody_would_believe_it() -> None:
    bench = Bench()
    async with reading(bench):
        put_unplaced(bench)
        await bench.read()
        await look(bench, later_s=301)
        asked = bench.mesh.checks
        await look(bench)
        assert bench.mesh.checks == asked
