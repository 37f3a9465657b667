"""The promises of the stores of registered nodes, on the fake and on PostgreSQL alike."""

import asyncio
import datetime
import ipaddress
import json
import secrets
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from libs.errors import EndpointPeerGone, EndpointPeerNotFound, KeysRotateKeyInvalid, KeysRotatePeerNotFound, TooMany
from libs.ids import uuid7
from services.identity.model import Reachability
from services.identity.node_model import AffectedPeer, MeshKey, peer_object
from services.identity.node_ports import NodeStore, RotationStore
from services.identity.node_store import PgNodeStore
from services.identity.rotation_store import PgRotationStore
from services.identity.tests.node_fakes import FakeNodes

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
Event = tuple[str, str, dict[str, Any]]
NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
WRAPPED = "vault:v7:" + "A" * 80


def later(seconds: float) -> datetime.datetime:
    return NOW + datetime.timedelta(seconds=seconds)


def key() -> bytes:
    return secrets.token_bytes(32)


@dataclass
class FakeSide:
    """The fake."""

    nodes: FakeNodes
    rotations: FakeNodes
    domain_id: UUID

    async def add(self, public_key: bytes) -> UUID:
        node_id = self.nodes.add(self.domain_id, NOW, public_key)
        self.nodes.nodes[node_id].wrap_key_version = 7
        return node_id

    async def remove(self, node_id: UUID) -> None:
        self.nodes.remove(node_id)

    async def events(self) -> list[Event]:
        return self.nodes.events


@dataclass
class PgSide:
    """PostgreSQL, with rows of a Domain of its own."""

    nodes: NodeStore
    rotations: RotationStore
    domain_id: UUID
    pool: asyncpg.Pool
    project_id: UUID
    network: ipaddress.IPv6Network
    count: int = 0

    async def add(self, public_key: bytes) -> UUID:
        resource_id, node_id = uuid7(), uuid7()
        self.count += 1
        await self.pool.execute(
            "INSERT INTO identity.resources VALUES ($1, $2, $3, 'server', '', 'adopted', $4, $4)",
            resource_id, self.project_id, self.domain_id, NOW,
        )  # fmt: skip
        await self.pool.execute(
            "INSERT INTO identity.nodes VALUES ($1, $2, $3, $4, $5, $6, $7)",
            node_id, resource_id, self.project_id, self.domain_id, self.network[self.count], public_key, NOW,
        )  # fmt: skip
        await self.pool.execute(
            "INSERT INTO identity.node_secret_keys VALUES ($1, $2, $3, $4, $5, $6)",
            f"nsk_{node_id.hex}", node_id, self.domain_id, WRAPPED, secrets.token_bytes(32), NOW,
        )  # fmt: skip
        return node_id

    async def remove(self, node_id: UUID) -> None:
        await self.pool.execute("DELETE FROM identity.nodes WHERE id = $1", node_id)

    async def events(self) -> list[Event]:
        sql = "SELECT type, scope, payload FROM identity.event_outbox WHERE domain_id = $1 ORDER BY position"
        rows = await self.pool.fetch(sql, self.domain_id)
        return [(row["type"], row["scope"], json.loads(row["payload"])) for row in rows]


@pytest.fixture(params=["fake", "PostgreSQL"])
async def side(request: pytest.FixtureRequest, pools: Pools) -> FakeSide | PgSide:
    domain_id, project_id = uuid7(), uuid7()
    if request.param == "fake":
        nodes = FakeNodes()
        return FakeSide(nodes, nodes, domain_id)
    network = ipaddress.IPv6Network((0xFD << 120 | secrets.randbits(56) << 64, 64))
    await pools[0].execute(
        "INSERT INTO identity.domains VALUES ($1, 'D', $2, '', '', $3, 30, 90, 300, $4, $4)",
        domain_id, f"d-{domain_id.hex}", network, NOW,
    )  # fmt: skip
    await pools[0].execute(
        "INSERT INTO identity.projects VALUES ($1, $2, 'P', 'p', '', NULL, $3, $3)", project_id, domain_id, NOW
    )
    stores = PgNodeStore(pools[0]), PgRotationStore(pools[1])
    return PgSide(*stores, domain_id, pools[0], project_id, network)


Side = FakeSide | PgSide


async def test_a_node_has_its_peers_around_it_by_id_and_not_itself(side: Side) -> None:
    keys = {await side.add(one): one for one in (key(), key(), key())}
    ids = sorted(keys)
    found = await side.nodes.surroundings(ids[1])
    assert found is not None
    assert [(peer.node_id, peer.public_key, peer.fallback_endpoint) for peer in found.peers] == [
        (ids[0], keys[ids[0]], ""), (ids[2], keys[ids[2]], ""),
    ]  # fmt: skip
    assert (found.domain_id, found.signs.policy) == (side.domain_id, Reachability())
    assert (found.signs.registered_at, found.signs.last_heartbeat_at, found.signs.healthy_since) == (NOW, None, None)
    assert await side.nodes.surroundings(ids[1]) == found
    assert await side.nodes.signs(ids[1]) == found.signs


async def test_a_node_that_is_not_has_nothing(side: Side) -> None:
    gone = await side.add(key())
    await side.remove(gone)
    for node_id in (gone, uuid7()):
        assert await side.nodes.surroundings(node_id) is None
        assert await side.nodes.signs(node_id) is None
        assert await side.rotations.place(node_id) is None
        assert await side.rotations.request(node_id, NOW) is None
        assert await side.rotations.impact(node_id) is None
        assert await side.rotations.mesh_key(node_id) is None
        with pytest.raises(KeysRotatePeerNotFound):
            await side.rotations.complete(node_id, uuid7(), key(), NOW)
    assert await side.events() == []


async def test_an_endpoint_that_is_new_is_told_once(side: Side) -> None:
    node_id, other = await side.add(key()), await side.add(key())
    for seconds, endpoint in ((0, "203.0.113.7:1"), (1, "203.0.113.7:1"), (2, "203.0.113.7:2")):
        await side.nodes.report_endpoint(node_id, endpoint, "full_cone", later(seconds), later(seconds))
    around = await side.nodes.surroundings(other)
    assert around is not None
    (peer,) = around.peers
    assert peer.fallback_endpoint == "203.0.113.7:2"
    events = await side.events()
    assert [(kind, scope) for kind, scope, _ in events] == [("peer_endpoint_changed", f"domain:{side.domain_id}")] * 2
    assert events[-1][2] == {"peer": peer_object(peer)}


async def test_an_older_report_changes_nothing(side: Side) -> None:
    node_id, other = await side.add(key()), await side.add(key())
    await side.nodes.report_endpoint(node_id, "203.0.113.7:2", "full_cone", later(2), later(2))
    await side.nodes.report_endpoint(node_id, "203.0.113.7:1", "full_cone", later(1), later(3))
    around = await side.nodes.surroundings(other)
    assert around is not None
    assert around.peers[0].fallback_endpoint == "203.0.113.7:2"
    assert len(await side.events()) == 1


async def test_a_node_that_moves_all_the_time_is_told_to_wait_and_its_peers_hear_of_few(side: Side) -> None:
    node_id, calm = await side.add(key()), await side.add(key())

    async def move(node: UUID, number: int, seconds: float) -> None:
        await side.nodes.report_endpoint(node, f"203.0.113.7:{number}", "full_cone", later(seconds), later(seconds))

    for number in range(1, 6):
        await move(node_id, number, number / 10)
    with pytest.raises(TooMany) as refused:
        await move(node_id, 6, 1)
    assert refused.value.extra["retry_after_s"] == 10
    around = await side.nodes.surroundings(calm)
    assert around is not None
    assert around.peers[0].fallback_endpoint == "203.0.113.7:5"
    # Where it is already is no news, however often it says so; and what was refused was not taken as heard.
    await move(node_id, 5, 0.9)
    await move(calm, 1, 1)
    await move(node_id, 6, 11)
    with pytest.raises(TooMany):
        await move(node_id, 7, 12)
    assert len(await side.events()) == 7
    await asyncio.gather(*(move(calm, number, 60) for number in range(10, 20)), return_exceptions=True)
    assert len(await side.events()) == 12


async def test_who_was_there_is_gone_and_who_never_was_is_not_found(side: Side) -> None:
    gone = await side.add(key())
    await side.remove(gone)
    for node_id, refusal in ((gone, EndpointPeerGone), (uuid7(), EndpointPeerNotFound)):
        with pytest.raises(refusal):
            await side.nodes.report_endpoint(node_id, "203.0.113.7:1", "full_cone", NOW, NOW)


async def test_one_rotation_is_pending_whoever_asks_at_once(side: Side) -> None:
    node_id = await side.add(key())
    asked = await asyncio.gather(*(side.rotations.request(node_id, NOW) for _ in range(10)))
    found = [one for one in asked if one]
    assert len({rotation_id for rotation_id, _ in found}) == 1
    assert sorted(pending for _, pending in found) == [False] + [True] * 9
    assert await side.events() == [("rotate_keys", f"node:{node_id}", {"rotation_id": str(found[0][0])})]
    impact = await side.rotations.impact(node_id)
    assert impact is not None
    assert impact.already_pending


async def test_the_impact_is_every_peer_with_its_node_key(side: Side) -> None:
    ids = sorted([await side.add(key()) for _ in range(3)])
    impact = await side.rotations.impact(ids[0])
    assert impact is not None
    assert impact.peers == [AffectedPeer(node_id, f"nsk_{node_id.hex}", 7) for node_id in ids[1:]]
    assert (impact.already_pending, impact.heartbeat_interval_s) == (False, 30)


async def test_a_node_alone_affects_nobody(side: Side) -> None:
    impact = await side.rotations.impact(await side.add(key()))
    assert impact is not None
    assert impact.peers == []


async def test_a_rotation_is_completed_once_and_its_receipt_stays_with_the_key(side: Side) -> None:
    old, new = key(), key()
    node_id, other = await side.add(old), await side.add(key())
    await side.nodes.report_endpoint(node_id, "203.0.113.7:1", "full_cone", NOW, NOW)
    assert await side.rotations.mesh_key(node_id) == MeshKey(old, None, None)
    first = await side.rotations.request(node_id, NOW)
    assert first is not None
    assert await side.rotations.mesh_key(node_id) == MeshKey(old, first[0], None)
    assert await side.rotations.complete(node_id, uuid7(), new, NOW) is None
    done = await asyncio.gather(*(side.rotations.complete(node_id, first[0], new, NOW) for _ in range(5)))
    (receipt,) = [one for one in done if one]
    assert (receipt.rotation_id, receipt.kid, receipt.wrap_key_version) == (first[0], f"nsk_{node_id.hex}", 7)
    assert await side.rotations.mesh_key(node_id) == MeshKey(new, None, receipt)
    around = await side.nodes.surroundings(other)
    assert around is not None
    kind, scope, payload = (await side.events())[-1]
    assert (kind, scope, payload) == (
        "peer_key_rotated", f"domain:{side.domain_id}", {"peer": peer_object(around.peers[0])},
    )  # fmt: skip
    assert around.peers[0].public_key == new
    second = await side.rotations.request(node_id, later(1))
    assert second is not None
    assert await side.rotations.mesh_key(node_id) == MeshKey(new, second[0], receipt)
    assert [event[0] for event in await side.events()] == [
        "peer_endpoint_changed", "rotate_keys", "peer_key_rotated", "rotate_keys",
    ]  # fmt: skip


async def test_a_key_that_comes_back_has_its_newest_receipt(side: Side) -> None:
    node_id, one, other = await side.add(key()), key(), key()
    receipts = []
    for seconds, public_key in enumerate((one, other, one)):
        asked = await side.rotations.request(node_id, later(seconds))
        assert asked is not None
        receipts.append(await side.rotations.complete(node_id, asked[0], public_key, later(seconds)))
    assert await side.rotations.mesh_key(node_id) == MeshKey(one, None, receipts[2])


async def test_no_node_takes_another_ones_key(side: Side) -> None:
    taken = key()
    node_id = await side.add(key())
    await side.add(taken)
    asked = await side.rotations.request(node_id, NOW)
    assert asked is not None
    with pytest.raises(KeysRotateKeyInvalid):
        await side.rotations.complete(node_id, asked[0], taken, NOW)
    found = await side.rotations.mesh_key(node_id)
    assert found is not None
    assert found.pending == asked[0]
