"""F-1: who may hold a stream, for how long, and what a missing dependency does to it."""

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable

import pytest

from devstack.process import until
from libs import settings
from libs.pg import create_pool
from services.identity.relation_store import PgTupleStore
from services.identity.relations import Relations
from services.identity.settings import IdentitySettings
from services.identity.spicedb import SENTINEL, SpiceDb
from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.listener import Listener
from tests.e2e.outside import JSON, Edge, Node
from tests.e2e.threats.mesh.conftest import Arena, another_gateway
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

CUT_OFF_S = 2.0
DRAINED = 20


async def ask(arena: Arena, node: Node, path_of: Node | None = None) -> str:
    """Say how a stream is answered, without staying on it."""
    url = f"{arena.edge.url}/v1/nodes/{(path_of or node).node_id}/events"
    async with arena.edge.http.get(url, headers={"Authorization": f"Bearer {node.bearer}"}) as answer:
        if answer.status == 200:
            return "200"
        return f"{answer.status} {(await answer.json(content_type=None))['code']}"


async def cut_off(arena: Arena, node: Node, act: object) -> float:
    """Hold a stream, let something happen, and return how long the stream lived on."""
    async with arena.listen(node) as listener:
        await listener.until(await arena.publish())
        started = time.monotonic()
        assert asyncio.iscoroutine(act)
        await act
        await until(lambda: not listener.connected.is_set(), 10)
        return time.monotonic() - started


async def delete_resource_of(arena: Arena, handle: str) -> None:
    page = await arena.operator.call("GET", f"/v1/projects/{arena.story.project_id}/resources?limit=200")
    found = next(row for row in page.json["items"] if row.get("external_ref") == handle)
    deleted = await arena.operator.call("DELETE", f"/v1/resources/{found['id']}")
    assert deleted.status == 204, deleted.body


async def test_a_deleted_node_is_cut_off_and_stays_out_and_its_peers_hear_of_it(arena: Arena, scene: Scene) -> None:
    node = await scene.newcomer("short-lived")
    async with arena.listen() as peer:
        took = await cut_off(arena, node, delete_resource_of(arena, "short-lived"))
        await until(
            lambda: any(
                one.envelope["type"] == "peer_removed" and one.envelope["payload"]["node_id"] == node.node_id
                for one in peer.heard
            ),
            10,
        )
    assert took < CUT_OFF_S
    assert await ask(arena, node) == "401 nsk_revoked"
    assert [about(row) for row in await arena.denials("nsk_revoked")] == [(node.node_id, "node-agent")]


def about(row: JSON) -> tuple[str, str]:
    """Return the node that a row is about, and what was asked for."""
    return row["object"]["id"], row["relation"]


async def enrolled(scene: Scene, handle: str) -> tuple[Node, bytes, Callable[[], Awaitable[None]]]:
    """Register a node; returns it, its key, and how it asks for another one as if the answer had been lost."""
    project, node = scene.story.project_id, Node(handle)
    adopted = {"origin": "adopted", "kind": "server", "external_ref": handle}
    assert (await scene.operator.call("POST", f"/v1/projects/{project}/resources", adopted)).status == 201
    wanted = {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900}
    issued = await scene.operator.call("POST", f"/v1/projects/{project}/bootstrap-tokens", wanted)
    body = {
        "project_id": project, "resource_handle": handle, "bootstrap_token": issued.json["token"],
        "nonce": str(uuid.uuid4()), "public_key": node.public_key,
    }  # fmt: skip

    async def register() -> None:
        answer = await scene.edge.call("POST", "/v1/register", body)
        assert answer.status == 201, answer.body
        node.node_id, node.key = answer.json["node_id"], base64.b64decode(answer.json["nsk"])
        node.signing_key_id = answer.json["signing_key_id"]
        node.signing_public_key = base64.b64decode(answer.json["signing_public_key"])

    await register()
    return node, node.key, register


async def remove_relation(world: World, node: Node) -> None:
    """Remove the node's own relation by identity's own rule, as one more replica of it would."""
    identity = settings.load(world.state / "config/identity.toml", IdentitySettings)
    at, this = identity.spicedb, f"node:{node.node_id}"
    async with create_pool(identity.postgres, identity.tls) as pool:
        spicedb = SpiceDb(at.address, at.name, at.key_file, identity.tls.ca_file)
        assert await Relations(spicedb, PgTupleStore(pool), SENTINEL).remove(this, "agent", this) == 1


async def test_a_removed_relation_cuts_off_and_the_reconnect_is_refused(arena: Arena, scene: Scene) -> None:
    node = await scene.newcomer("disowned")
    assert await cut_off(arena, node, remove_relation(arena.world, node)) < CUT_OFF_S

    async def refused() -> bool:
        return await ask(arena, node) == "403 permission_denied"

    await eventually(refused, 5)
    rows = await arena.denials("permission_denied")
    assert {about(row) for row in rows} == {(node.node_id, "node-agent")}
    # Asked again at once, it is the same row.
    for _ in range(20):
        assert await ask(arena, node) == "403 permission_denied"
    assert len(await arena.denials("permission_denied")) <= len(rows) + 1


async def test_a_revoked_key_cuts_off_and_only_the_new_one_comes_back(arena: Arena, scene: Scene) -> None:
    node, key, again = await enrolled(scene, "rekeyed")
    assert await cut_off(arena, node, again()) < CUT_OFF_S
    old = dataclasses.replace(node, key=key)
    assert node.key != key
    assert await ask(arena, old) == "401 nsk_revoked"
    assert (node.node_id, "node-agent") in [about(row) for row in await arena.denials("nsk_revoked")]
    async with arena.listen(node) as listener:
        await listener.until(await arena.publish())


async def test_a_node_of_another_domain_gets_nothing_of_this_one(arena: Arena) -> None:
    stranger, earlier = arena.other.node_a, {row["seq"] for row in await arena.denials("node_id_mismatch")}
    assert await ask(arena, stranger, arena.story.node_a) == "403 node_id_mismatch"
    async with arena.listen(stranger) as listener, arena.listen() as node:
        await node.until(await arena.publish())
        await asyncio.sleep(0.5)
    assert listener.heard == []
    rows = await arena.denials("node_id_mismatch", arena.other.domain_id)
    assert (arena.story.node_a.node_id, "node-agent") in [about(row) for row in rows]
    assert {row["seq"] for row in await arena.denials("node_id_mismatch")} == earlier


@pytest.mark.parametrize("what", ["events", "state", "heartbeat", "endpoint"])
async def test_another_nodes_path_is_refused_and_recorded_once(arena: Arena, what: str) -> None:
    node, peer = arena.story.node_a, arena.story.node_b
    method = {"events": "GET", "state": "GET", "heartbeat": "POST", "endpoint": "PUT"}[what]
    before = {row["seq"] for row in await arena.denials("node_id_mismatch")}
    for _ in range(3):
        answer = await arena.edge.as_bearer(node.bearer).call(method, f"/v1/nodes/{peer.node_id}/{what}")
        assert str(answer) == "403 node_id_mismatch"
    rows = [row for row in await arena.denials("node_id_mismatch") if row["seq"] not in before]
    # A minute may have ended meanwhile.
    assert 1 <= len(rows) <= 2
    assert {(*about(row), *row["decision"]["caveat_context"]["action"]) for row in rows} == {
        (peer.node_id, "node-agent", f"node.{what}")
    }


async def test_only_a_nodes_own_bearer_opens_its_stream(arena: Arena) -> None:
    path = f"/v1/nodes/{arena.story.node_a.node_id}/events"
    assert (await arena.operator.call("GET", path)).status == 401
    assert (await arena.edge.call("GET", path)).status == 401


@pytest.mark.parametrize("backend", ["nats", "mesh", "spicedb"])
async def test_a_port_that_is_down_is_503_and_ends_open_streams(arena: Arena, backend: str) -> None:
    async with arena.listen() as listener:
        await listener.until(await arena.publish())
        await arena.world.kill(backend)
        try:
            await until(lambda: not listener.connected.is_set(), 10)
            answer = await ask(arena, arena.story.node_b)
            assert answer == "503 event_stream_unavailable"
        finally:
            await arena.world.start(backend)
        # It comes back by itself, with its cursor.
        async with asyncio.timeout(20):
            await listener.connected.wait()
        body = {"type": "action_request", "scope": arena.scope}

        async def published() -> bool:
            answer = await arena.operator.call("POST", f"/v1/domains/{arena.domain}/events", body)
            return answer.status == 202

        await eventually(published, 20)
        await until(lambda: len(listener.ids) >= 2, 10)
    assert {status.split()[0] for status in listener.statuses} <= {"200", "503"}
    assert len(listener.ids) == len(listener.heard)


async def test_without_identity_a_stream_is_503(arena: Arena) -> None:
    async with arena.listen() as listener:
        await listener.until(await arena.publish())
        await arena.world.kill("identity")
        try:
            assert (await ask(arena, arena.story.node_b)).startswith("503")
            # Nobody can tell any more what was revoked: after fifteen seconds what is open ends, too.
            await until(lambda: not listener.connected.is_set(), 20)
        finally:
            await arena.world.start("identity")
        async with asyncio.timeout(20):
            await listener.connected.wait()
    assert {status.split()[0] for status in listener.statuses} <= {"200", "503"}


@dataclasses.dataclass
class Drained(Listener):
    """An agent that notes when its stream ended and when it was told to come back, and then goes elsewhere."""

    elsewhere: Edge | None = None
    waits: list[int] = dataclasses.field(default_factory=list)
    ended_at: float = 0.0

    async def once(self) -> None:
        try:
            await super().once()
        finally:
            if self.waits:
                self.ended_at = self.ended_at or time.monotonic()
                self.edge = self.elsewhere or self.edge

    def _take(self, frame: dict[str, str]) -> None:
        if "retry" in frame:
            self.waits.append(int(frame["retry"]))
        super()._take(frame)


async def test_a_gateway_that_stops_sends_its_streams_away_one_by_one_and_nothing_is_lost(
    arena: Arena, scene: Scene
) -> None:
    nodes = [await scene.newcomer(f"drained-{number}") for number in range(DRAINED)]
    async with another_gateway(arena) as second, contextlib.AsyncExitStack() as streams:
        agents = [Drained(second.edge, node, elsewhere=arena.edge) for node in nodes]
        for agent in agents:
            await streams.enter_async_context(agent)
        sent = [await arena.publish()]
        for agent in agents:
            await agent.until(sent[0])
        second.process.terminate()
        while second.process.returncode is None:
            sent.append(await arena.publish())
            await asyncio.sleep(0.1)
        sent.append(await arena.publish())
        for agent in agents:
            await agent.until(sent[-1])
    assert second.process.returncode == 0
    for agent in agents:
        assert [one for one in agent.ids if one in sent] == sent
        # A new process is 503 until it has read what there was; from then on nobody is refused.
        assert set(agent.statuses[agent.statuses.index("200") :]) == {"200"}
        assert len(agent.waits) == 1
    ends = sorted(agent.ended_at for agent in agents)
    # They have half of the ten seconds that the process has: neither all at once, nor in waves.
    assert ends[-1] - ends[0] > 3
    assert max(later - earlier for earlier, later in itertools.pairwise(ends)) < 1.5
    waits = {agent.waits[0] for agent in agents}
    assert len(waits) > DRAINED // 2
    assert all(500 <= wait <= 5000 for wait in waits)
