"""Each leg of a publish is taken away once: the caller gets a typed refusal, and nothing is written."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

from libs.errors import PlexError
from libs.ids import uuid7
from libs.rpc.channel import Peer
from plexsphere.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tests.e2e.attacker import Broker, eventually, peer
from tests.e2e.conftest import Scene
from tests.e2e.freeze import frozen
from tests.e2e.listener import Listener
from tests.e2e.outside import Answer
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

Away = Callable[[World, str], AbstractAsyncContextManager[None]]

OWNERS = ("identity", "secrets", "mesh")
# What operators may hear, and what services hear where the leg is one of theirs. An assertion that the gateway still
# has takes a request past identity, to the next process that misses the leg; without one the gateway waits in vain.
LEGS = {
    "openbao": ({"signing_unavailable"}, "signing_unavailable"),
    "postgres": ({"datastore_unavailable", "unavailable"}, "datastore_unavailable"),
    "audit": ({"audit_unavailable"}, ""),
    "identity": ({"authz_unavailable", "unavailable"}, ""),
    "spicedb": ({"authz_unavailable"}, ""),
    "nats": ({"event_bus_unavailable"}, "event_bus_unavailable"),
}


@dataclass(frozen=True)
class Written:
    """What a publish leaves behind: the stream's last sequence, places in the log, events in the log."""

    last: int
    places: int
    events: int


@asynccontextmanager
async def gone(world: World, leg: str) -> AsyncIterator[None]:
    """Kill a process for the block."""
    await world.kill(leg)
    try:
        yield
    finally:
        await world.start(leg)


@dataclass(frozen=True)
class Desk:
    """Publishes as each kind of caller, and looks at what is written."""

    world: World
    scene: Scene
    broker: Broker
    mesh: Peer

    @property
    def domain(self) -> str:
        return self.scene.story.domain_id

    async def as_operator(self) -> Answer:
        body = {"type": "action_request", "scope": f"domain:{self.domain}", "payload": {"do": "reboot"}}
        return await self.scene.operator.call("POST", f"/v1/domains/{self.domain}/events", body)

    async def published(self) -> str:
        """Publish, as often as it takes, and return the event's id."""
        answers: list[Answer] = []

        async def done() -> bool:
            answers.append(await self.as_operator())
            return answers[-1].status == 202

        await eventually(done)
        return str(answers[-1].json["id"])

    async def as_service(self, domain: str = "") -> str:
        """Publish as an owner's relay does; returns the code of the refusal."""
        domain = domain or self.domain
        request = mesh_pb2.PublishRequest(
            domain_id=domain, id=str(uuid7()), type="action_request", scope=f"domain:{domain}", payload_json="{}"
        )
        try:
            await mesh_pb2_grpc.PublishServiceStub(self.mesh).Publish(request)
        except PlexError as error:
            return error.code
        return ""

    async def written(self) -> Written:
        dba = await self.world.superuser()
        try:
            places = await dba.fetchval("SELECT count(*) FROM mesh.event_positions")
            events = await dba.fetchval("SELECT count(*) FROM mesh.event_log")
        finally:
            await dba.close()
        return Written(await self.broker.last(), places, events)

    async def quiet(self) -> bool:
        """Whether no event of an earlier test is on its way."""
        dba = await self.world.superuser()
        try:
            waiting = [
                await dba.fetchval(f"SELECT count(*) FROM {owner}.event_outbox WHERE refused_code = ''")
                for owner in OWNERS
            ]
        finally:
            await dba.close()
        return not any(waiting)


@pytest.fixture
async def desk(world: World, scene: Scene) -> AsyncIterator[Desk]:
    async with Broker(world) as broker, peer(world, "mesh", "identity") as mesh:
        await mesh.channel_ready()
        found = Desk(world, scene, broker, mesh)
        await eventually(found.quiet)
        yield found


@pytest.mark.parametrize("away", [gone, frozen])
@pytest.mark.parametrize("leg", LEGS)
async def test_without_a_leg_a_publish_is_refused_and_writes_nothing(desk: Desk, leg: str, away: Away) -> None:
    operators, services = LEGS[leg]
    async with Listener(desk.scene.edge, desk.scene.story.node_a) as listener:
        first = await desk.published()
        await listener.until(first)
        before = await desk.written()
        async with away(desk.world, leg):
            answer = await desk.as_operator()
            code = await desk.as_service() if services else ""
        after = await desk.written()
        assert answer.status == 503
        assert answer.code in operators
        assert code == services
        assert after.places == before.places
        # The log is written before the stream. A broker that slept takes what lay in its socket when it wakes up: that
        # has no place in the log, so no gateway believes it.
        assert leg == "nats" or after == before
        assert away is frozen or after.last == before.last
        last = await desk.published()
        await listener.until(last)
    assert listener.ids == [first, last]


async def test_without_a_key_a_publish_is_refused_and_writes_nothing(desk: Desk) -> None:
    before = await desk.written()
    assert await desk.as_service(str(uuid7())) == "signing_key_missing"
    assert await desk.written() == before
