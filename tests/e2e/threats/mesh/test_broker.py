"""F-1: the broker itself: who may do what there, and what it loses comes back from the log."""

import asyncio
import json
import os
import random
import shutil
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from libs.tests.pki import make_authority
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.e2e.attacker import STREAM, Broker, eventually, peer, tls_of, wire
from tests.e2e.threats.mesh.conftest import Arena
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


async def injected(arena: Arena, before: int) -> list[int]:
    """Return the sequences of the stream since then that mesh's log does not know."""
    dba = await arena.world.superuser()
    try:
        rows = await dba.fetch(
            "SELECT sequence FROM generate_series($1::bigint, $2::bigint) sequence "
            "WHERE NOT EXISTS (SELECT FROM mesh.event_positions p WHERE p.sequence = sequence.sequence)",
            before + 1,
            await arena.broker.last(),
        )
    finally:
        await dba.close()
    return [row["sequence"] for row in rows]


async def attempt(arena: Arena, subject: str, name: str, context: ssl.SSLContext) -> str:
    """Try to publish with somebody's certificate; returns how that was refused."""
    try:
        async with Broker(arena.world, name, context) as broker:
            await broker.nats.publish(subject, b'{"written by":"somebody else"}')
            await broker.nats.flush()
            await asyncio.sleep(0.2)
            forbidden = any("permissions violation" in error.lower() for error in broker.errors)
            return "forbidden" if forbidden else "published"
    except (NatsError, OSError):
        return "no user of the broker"


def foreigners(world: World, folder: Path) -> dict[str, ssl.SSLContext]:
    """Return who is not of this deployment: nobody, and mesh as another CA knows it."""
    nobody, stranger = (ssl.create_default_context(cafile=world.ca_file) for _ in range(2))
    forged = make_authority(folder).issue("mesh")
    stranger.load_cert_chain(forged.certificate_file, forged.key_file)
    return {"no certificate": nobody, "another CA's mesh": stranger}


async def test_nobody_but_mesh_publishes_events(arena: Arena, tmp_path: Path) -> None:
    issued = {path.stem for path in (arena.world.state / "pki").glob("*.crt")} - {"ca", "mesh", "operator"}
    everybody = {name: tls_of(arena.world, name) for name in issued} | foreigners(arena.world, tmp_path)
    assert len(everybody) > 10
    subject, before = f"events.{arena.domain}.domain.{arena.domain}.action_request", await arena.broker.last()
    outcomes = await asyncio.gather(*(attempt(arena, subject, *identity) for identity in everybody.items()))
    refusals = dict(zip(everybody, outcomes, strict=True))
    assert refusals.pop("gateway") == "forbidden"
    assert set(refusals.values()) == {"no user of the broker"}, refusals
    assert await attempt(arena, "other.subject", "mesh", tls_of(arena.world, "mesh")) == "forbidden"
    assert await injected(arena, before) == []


async def open_consumer(arena: Arena, start: int) -> str:
    """Get a consumer as a gateway's certificate can: from mesh."""
    async with peer(arena.world, "mesh", "gateway") as mesh:
        request = mesh_pb2.OpenConsumerRequest(start_sequence=start)
        return str((await mesh_pb2_grpc.DeliveryServiceStub(mesh).OpenConsumer(request)).name)


PULLS: tuple[dict[str, Any], ...] = (
    {"batch": 1},
    {"batch": 50, "no_wait": True},
    {"batch": 50, "expires": 400_000_000, "idle_heartbeat": 100_000_000},
)
# Where the broker's answer to a pull would do harm: among the events, at its own API, and with another service.
REPLIES = (
    "events.{domain}.domain.{domain}.action_request",
    f"$JS.API.STREAM.PURGE.{STREAM}",
    f"$JS.API.STREAM.DELETE.{STREAM}",
    f"$JS.API.CONSUMER.CREATE.{STREAM}",
    "_INBOX.mesh.victim",
)


@pytest.mark.parametrize("reply", REPLIES)
async def test_a_gateway_cannot_make_the_broker_answer_elsewhere(arena: Arena, reply: str) -> None:
    genuine = (await arena.broker.find(await arena.publish()))[0]
    before, created = await arena.broker.last(), (await arena.broker.api(f"STREAM.INFO.{STREAM}"))["created"]
    consumer, reply = await open_consumer(arena, genuine), reply.format(domain=arena.domain)
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    # Who has every right in the account of the stream hears nothing at that subject.
    await arena.broker.nats.subscribe(reply, cb=hear)
    async with Broker(arena.world, "gateway") as gateway:
        for pull in PULLS:
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}"
            await gateway.nats.publish(subject, json.dumps(pull).encode(), reply=reply)
            await gateway.nats.flush()
            await asyncio.sleep(0.5)
    assert await injected(arena, before) == []
    assert heard == []
    assert (await arena.broker.api(f"STREAM.INFO.{STREAM}"))["created"] == created
    assert await arena.broker.get(genuine)


async def test_what_one_gateway_makes_another_read_is_delivered_once_and_verified(arena: Arena) -> None:
    """Gateways share a certificate's name, so one that is hostile reaches the inbox of another."""
    async with arena.listen() as listener, Broker(arena.world, "gateway") as hostile:
        first = await arena.publish()
        await listener.until(first)
        sequence, subject, data = await arena.broker.find(first)
        forged = json.loads(data) | {"payload": {"do": "something else"}}
        await arena.broker.put(subject, wire(forged))
        inbox: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def overhear(message: Msg) -> None:
            if message.headers and not inbox.done():
                inbox.set_result(message.subject)

        await hostile.nats.subscribe("_INBOX.gateway.>", cb=overhear)
        consumer = await open_consumer(arena, sequence)
        pull = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}"
        for number in range(3):
            await arena.publish(number=number)
        async with asyncio.timeout(10):
            await hostile.nats.publish(pull, b'{"batch": 50, "no_wait": true}', reply=await inbox)
        await listener.until(await arena.publish())
        await listener.until(await arena.publish())
    assert {heard.verdict for heard in listener.heard} == {"ok"}
    assert len(listener.ids) == len(listener.heard)
    assert [heard.sequence for heard in listener.heard] == sorted(heard.sequence for heard in listener.heard)


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


async def test_mesh_has_no_right_to_delete_the_stream_or_a_message(arena: Arena) -> None:
    """Its code does not; who holds its certificate could still name such a subject for the answer to a read."""
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


async def lose_store(arena: Arena, _: list[int]) -> None:
    """Take the whole disk away while the broker is down."""
    await arena.world.kill("nats")
    shutil.rmtree(arena.world.state / "nats")
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
    "the broker comes back on an empty disk": lose_store,
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


async def test_a_stream_at_the_end_of_all_numbers_is_cried_out_until_an_operator_deletes_it(arena: Arena) -> None:
    dba = await arena.world.superuser()
    body = {"type": "action_request", "scope": arena.scope}

    async def status() -> int:
        return (await arena.operator.call("POST", f"/v1/domains/{arena.domain}/events", body)).status

    async def cried_out() -> bool:
        return b"stream.too_far" in arena.world.logs()["mesh.log"]

    async def published() -> bool:
        return await status() == 202

    async with arena.listen() as listener:
        await listener.until(await arena.publish())
        highest = await dba.fetchval("SELECT max(sequence) FROM mesh.event_positions")
        await arena.broker.api(f"STREAM.PURGE.{STREAM}", {"seq": 2**63 - 1})
        await eventually(cried_out)
        assert [await status() for _ in range(3)] == [503] * 3
        # Somebody else's may have come in between.
        assert await dba.fetchval("SELECT max(sequence) FROM mesh.event_positions") < highest + 1000
        await arena.broker.api(f"STREAM.DELETE.{STREAM}")
        await eventually(published)
        await listener.until(await arena.publish())
    assert len(listener.ids) == len(listener.heard)
    assert await dba.fetchval("SELECT max(sequence) FROM mesh.event_positions") < highest + 1000
    assert await injected(arena, await arena.broker.last()) == []
    await dba.close()
