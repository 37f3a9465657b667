"""F-1: a broker that acknowledges and brings nothing, and one that brings what takes long to read."""

import asyncio
import datetime
import time

import aiohttp
import pytest

from tests.e2e.attacker import STREAM, eventually
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e

# 60,000 bytes at most, each some 40 ms of work to read.
SLOW = b'{"a":[' + b"1," * 29_000 + b"1]}"
FLOOD = 500
LONGEST_S = 0.5


async def consumers(arena: Arena) -> list[str]:
    names: list[str] = (await arena.broker.api(f"CONSUMER.NAMES.{STREAM}"))["consumers"]
    return names


async def test_what_is_acknowledged_and_not_brought_comes_from_the_log(arena: Arena) -> None:
    """Paused, a consumer still sends its heartbeats: to the gateway the broker looks well, and quiet."""
    async with arena.listen() as node, arena.listen(arena.story.node_b) as other:
        await node.until(await arena.publish())
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)
        paused = await consumers(arena)
        for name in paused:
            body = {"pause_until": until.isoformat().replace("+00:00", "Z")}
            answer = await arena.broker.api(f"CONSUMER.PAUSE.{STREAM}.{name}", body)
            assert answer["paused"], answer
        sent = [await arena.publish() for _ in range(3)]
        mine = await arena.publish(f"node:{arena.story.node_a.node_id}")
        for listener in (node, other):
            await listener.until(sent[-1], 8)
        await node.until(mine, 8)
        assert paused == await consumers(arena)
        for name in paused:
            await arena.broker.api(f"CONSUMER.PAUSE.{STREAM}.{name}", {})
        last = await arena.publish()
        for listener in (node, other):
            await listener.until(last, 8)
    assert [one for one in node.ids if one in sent] == sent
    assert mine not in other.ids
    for listener in (node, other):
        assert {heard.verdict for heard in listener.heard} == {"ok"}
        assert len(listener.ids) == len(listener.heard)


async def test_a_flood_of_what_is_slow_to_read_holds_up_neither_requests_nor_events(arena: Arena) -> None:
    longest, over = 0.0, asyncio.Event()

    async def ask() -> None:
        nonlocal longest
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as http:
            while not over.is_set():
                started = time.monotonic()
                async with http.get(f"{arena.edge.url}/v1/health") as answer:
                    await answer.read()
                longest = max(longest, time.monotonic() - started)
                await asyncio.sleep(0.02)

    async with arena.listen() as node:
        _, subject, _ = await arena.genuine()
        start = await arena.broker.last()
        before = await arena.refused()
        asking = asyncio.create_task(ask())
        for _ in range(FLOOD):
            await arena.broker.nats.publish(subject, SLOW)

        async def absorbed() -> bool:
            return await arena.broker.last() >= start + FLOOD

        await eventually(absorbed, 60)
        for _ in range(3):
            await node.until(await arena.publish(), 10)
        over.set()
        await asking
    refused = await arena.refused() - before
    # A genuine one among those that there was no time for counts as well, unless it was in the log by then.
    assert FLOOD <= sum(refused.values()) <= FLOOD + 3
    assert set(refused) <= {"missing_member", "unread"}
    assert {heard.verdict for heard in node.heard} == {"ok"}
    assert longest < LONGEST_S
