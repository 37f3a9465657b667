"""F-1: the broker itself: who may do what there, and what it loses comes back from the log."""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.errors import Error as NatsError

from tests.e2e.attacker import STREAM, Broker, eventually
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e

MARK = b'{"written by":"somebody else"}'
OTHERS = ("gateway", "identity", "access", "secrets", "audit", "probe", "spicedb", "nats")


async def attempt(arena: Arena, name: str, subject: str) -> str:
    """Try to publish with somebody's certificate; returns how that was refused."""
    try:
        async with Broker(arena.world, name) as broker:
            await broker.nats.publish(subject, MARK)
            await broker.nats.flush()
            await asyncio.sleep(0.2)
            forbidden = any("permissions violation" in error.lower() for error in broker.errors)
            return "forbidden" if forbidden else "published"
    except NatsError:
        return "no user of the broker"


@pytest.mark.parametrize("name", OTHERS)
async def test_nobody_but_mesh_publishes_events(arena: Arena, name: str) -> None:
    before = await arena.broker.last()
    outcome = await attempt(arena, name, f"events.{arena.domain}.domain.{arena.domain}.action_request")
    assert outcome == ("forbidden" if name == "gateway" else "no user of the broker")
    for sequence in range(before + 1, await arena.broker.last() + 1):
        assert (await arena.broker.get(sequence))[1] != MARK


CONSUMERS: dict[str, dict[str, Any]] = {
    "a push consumer into the events": {"deliver_subject": "events.forged.domain.x.action_request"},
    "a push consumer into somebody's inbox": {"deliver_subject": "_INBOX.mesh.x"},
    "a pull consumer of its own": {},
}


@pytest.mark.parametrize("name", CONSUMERS)
async def test_a_gateway_only_pulls_from_consumers_that_mesh_made(arena: Arena, name: str) -> None:
    config = {"name": "own", "ack_policy": "none", "deliver_policy": "all", **CONSUMERS[name]}
    async with Broker(arena.world, "gateway") as broker:
        for call in (
            f"CONSUMER.CREATE.{STREAM}.own",
            f"CONSUMER.CREATE.{STREAM}",
            f"CONSUMER.DURABLE.CREATE.{STREAM}.own",
        ):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(broker.api(call, {"stream_name": STREAM, "config": config}), 0.7)
        for call in (f"STREAM.PURGE.{STREAM}", f"STREAM.DELETE.{STREAM}", f"STREAM.MSG.DELETE.{STREAM}"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(broker.api(call), 0.7)


async def test_mesh_may_not_delete_the_stream_or_a_message(arena: Arena) -> None:
    async with Broker(arena.world, "mesh") as broker:
        for call in (f"STREAM.DELETE.{STREAM}", f"STREAM.MSG.DELETE.{STREAM}", f"STREAM.MSG.GET.{STREAM}"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(broker.api(call), 0.7)


async def delete_some(arena: Arena, sequences: list[int]) -> None:
    for sequence in sequences:
        await arena.broker.api(f"STREAM.MSG.DELETE.{STREAM}", {"seq": sequence})


async def wipe(arena: Arena, _: list[int]) -> None:
    await arena.broker.api(f"STREAM.DELETE.{STREAM}")


async def purge(arena: Arena, _: list[int]) -> None:
    await arena.broker.api(f"STREAM.PURGE.{STREAM}")


async def flip_bits(arena: Arena, _: list[int]) -> None:
    """Change the stream's files while the broker runs, and let it start from them."""
    for path in blocks(arena.world.state):
        size = path.stat().st_size
        with path.open("r+b") as file:
            for _turn in range(20):
                at = random.randrange(size)
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 0xFF]))
    await arena.world.restart("nats")


async def cut_tail(arena: Arena, _: list[int]) -> None:
    """Take the end of the newest file away, as a disk that lost its last writes would."""
    await arena.world.kill("nats")
    newest = max(blocks(arena.world.state), key=lambda path: path.stat().st_mtime_ns)
    os.truncate(newest, newest.stat().st_size * 2 // 3)
    for index in newest.parent.glob("index.db"):
        index.unlink()
    await arena.world.start("nats")


def blocks(state: Path) -> list[Path]:
    found = [path for path in (state / "nats").rglob("*.blk") if path.stat().st_size > 1000]
    assert found, "the stream has no files"
    return found


DAMAGE = {
    "messages are deleted": delete_some,
    "the stream is deleted": wipe,
    "the stream is purged": purge,
    "bits of its files are flipped": flip_bits,
    "its newest file loses its end": cut_tail,
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_the_broker_loses_under_load_comes_back_in_order_and_once(arena: Arena, damage: str) -> None:
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def load() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            body = {"type": "action_request", "scope": arena.scope, "payload": {"number": number}}
            try:
                answer = await arena.operator.call("POST", f"/v1/domains/{arena.domain}/events", body)
            except aiohttp.ClientError:
                # A connection from before the gateway's last restart.
                continue
            if answer.status == 202:
                acknowledged.append(answer.json["id"])
            else:
                assert answer.status == 503, answer.body
                await asyncio.sleep(0.1)

    first = await arena.publish()
    start = (await arena.broker.find(first))[0]
    async with arena.listen() as listener:
        loading = asyncio.create_task(load())
        await asyncio.sleep(1)
        last = await arena.broker.last()
        await DAMAGE[damage](arena, list(range(start + 1, last, 2)))
        await asyncio.sleep(2)
        count = len(acknowledged)

        async def going_on() -> bool:
            return len(acknowledged) > count + 20

        await eventually(going_on, 30)
        stop.set()
        await loading

        async def complete() -> bool:
            return set(acknowledged) <= set(listener.ids)

        await eventually(complete, 20)
    assert {heard.verdict for heard in listener.heard} == {"ok"}
    mine = set(acknowledged)
    assert [identifier for identifier in listener.ids if identifier in mine] == acknowledged
    sequences = [heard.sequence for heard in listener.heard]
    assert sequences == sorted(set(sequences))
    # A gateway that starts now finds them, too: who comes back with an old cursor misses nothing.
    await arena.world.restart("gateway")
    late = arena.listen(arena.story.node_b)
    late.cursor = str(start)
    async with late:

        async def resumed() -> bool:
            reconciled = any(heard.envelope["type"] == "node_state_updated" for heard in late.heard)
            return set(acknowledged) <= set(late.ids) or reconciled

        await eventually(resumed, 20)


async def test_an_acknowledged_publish_survives_the_broker(arena: Arena) -> None:
    async with arena.listen() as listener:
        await listener.until(await arena.publish())
        for _ in range(3):
            identifier = await arena.publish()
            await arena.world.kill("nats")
            await arena.world.start("nats")
            await listener.until(identifier, 20)

            async def published() -> bool:
                body = {"type": "action_request", "scope": arena.scope}
                answer = await arena.operator.call("POST", f"/v1/domains/{arena.domain}/events", body)
                return answer.status == 202

            await eventually(published, 20)
    assert len(listener.ids) == len(listener.heard)
