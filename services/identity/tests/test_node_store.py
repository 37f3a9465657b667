"""Registered nodes on the real PostgreSQL: round trips, what commits together, and what a registration sees."""

import datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from libs.errors import KeysRotatePeerNotFound
from services.identity.enrolment_store import PgEnrolmentStore
from services.identity.node_model import Wanted
from services.identity.node_store import PgNodeStore
from services.identity.registration_store import Registrations
from services.identity.rotation_store import PgRotationStore
from services.identity.store import PgStore
from services.identity.tests.conftest import Pools
from services.identity.tests.replicas import Replica, code, count
from services.identity.tests.test_node_ports import key

pytestmark = pytest.mark.integration

# The fixture of the directory's tests, which makes Domains and registers nodes.
Replicas = tuple[Replica, Replica]


async def nodes(one: Replica, number: int) -> list[UUID]:
    project = await one.project(await one.domain())
    return [(await one.node(project))[1].node.node_id for _ in range(number)]


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def test_a_state_is_one_statement(replicas: Replicas, pools: Pools) -> None:
    node_id, *_ = await nodes(replicas[0], 3)
    asked: list[str] = []

    def note(query: Any) -> None:
        asked.append(query.query)

    async with pools[0].acquire() as lent:
        lent.add_query_logger(note)
        found = await PgNodeStore(Lent(lent)).surroundings(node_id)  # type: ignore[arg-type]  # a pool of one connection
        lent.remove_query_logger(note)
    assert found is not None
    assert len(found.peers) == 2
    assert len(asked) == 1


class Lent:
    """A pool that lends one connection, so that a test sees all that goes over it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def acquire(self) -> "Lent":
        return self

    async def __aenter__(self) -> Any:
        return self._connection

    async def __aexit__(self, *_: object) -> None: ...


async def test_health_lasts_from_registration_until_a_node_was_silent_for_too_long(
    replicas: Replicas, pools: Pools
) -> None:
    (node_id,) = await nodes(replicas[0], 1)
    enrolment, store = PgEnrolmentStore(pools[0], Registrations(pools[0])), PgNodeStore(pools[1])
    first = await store.signs(node_id)
    assert first is not None
    since = []
    for seconds in (10, 99, 189.5, 190, 1000, 1089, 5000):
        at = first.registered_at + datetime.timedelta(seconds=seconds)
        # Who was silent for too long is told to look for what it missed.
        wanted = Wanted(rotate_keys=False, reconcile=seconds in {189.5, 1000, 5000})
        assert await enrolment.heartbeat(node_id, bytes(32), "1", "{}", at) == wanted
        signs = await store.signs(node_id)
        assert signs is not None
        assert signs.last_heartbeat_at == at
        assert signs.healthy_since is not None
        since.append((signs.healthy_since - first.registered_at).total_seconds())
    assert since == [0, 0, 189.5, 189.5, 1000, 1000, 5000]


async def test_a_first_heartbeat_that_is_late_begins_anew(replicas: Replicas, pools: Pools) -> None:
    (node_id,) = await nodes(replicas[0], 1)
    at = now() + datetime.timedelta(seconds=200)
    await PgEnrolmentStore(pools[0], Registrations(pools[0])).heartbeat(node_id, bytes(32), "1", "{}", at)
    signs = await PgNodeStore(pools[0]).signs(node_id)
    assert signs is not None
    assert signs.healthy_since == at


async def test_heartbeats_ask_for_a_key_until_it_is_there(replicas: Replicas, pools: Pools) -> None:
    (node_id,) = await nodes(replicas[0], 1)
    enrolment, rotations = PgEnrolmentStore(pools[0], Registrations(pools[0])), PgRotationStore(pools[1])
    asked = await rotations.request(node_id, now())
    assert asked is not None
    assert await enrolment.heartbeat(node_id, bytes(32), "1", "{}", now()) == Wanted(rotate_keys=True, reconcile=False)
    await rotations.complete(node_id, asked[0], key(), now())
    assert await enrolment.heartbeat(node_id, bytes(32), "1", "{}", now()) == Wanted(rotate_keys=False, reconcile=False)


async def test_who_registers_sees_endpoints_and_keys_as_they_are(replicas: Replicas, pools: Pools) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    first = (await one.node(project))[1].node.node_id
    await PgNodeStore(pools[0]).report_endpoint(first, "203.0.113.7:443", "unknown", now(), now())
    rotations, new = PgRotationStore(pools[0]), key()
    asked = await rotations.request(first, now())
    assert asked is not None
    await rotations.complete(first, asked[0], new, now())
    _, enrolled = await one.node(project)
    (peer,) = enrolled.node.peers
    assert (peer.node_id, peer.fallback_endpoint, peer.public_key) == (first, "203.0.113.7:443", new)


class Dies(RuntimeError):
    """The process, in the middle of a transaction."""


class Dying:
    """A connection that dies when it is to add an event."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, sql: str, *arguments: Any) -> Any:
        if "event_outbox" in sql:
            raise Dies
        return await self._connection.execute(sql, *arguments)


async def test_without_its_event_nothing_changes(replicas: Replicas, pools: Pools) -> None:
    (node_id,) = await nodes(replicas[0], 1)
    rotations, before = PgRotationStore(pools[0]), await count(pools[0], "event_outbox", "true")
    async with pools[1].acquire() as lent:
        dying: Any = Lent(Dying(lent))
        with pytest.raises(Dies):
            await PgRotationStore(dying).request(node_id, now())
        with pytest.raises(Dies):
            await PgNodeStore(dying).report_endpoint(node_id, "203.0.113.7:443", "unknown", now(), now())
        assert await count(pools[0], "key_rotations", "node_id = $1", node_id) == 0
        assert await count(pools[0], "endpoints", "node_id = $1", node_id) == 0
        known = await rotations.mesh_key(node_id)
        asked = await rotations.request(node_id, now())
        assert asked is not None
        with pytest.raises(Dies):
            await PgRotationStore(dying).complete(node_id, asked[0], key(), now())
    after = await rotations.mesh_key(node_id)
    assert known is not None
    assert after is not None
    assert (after.public_key, after.pending) == (known.public_key, asked[0])
    assert await count(pools[0], "event_outbox", "true") == before + 1


async def test_a_deletion_takes_endpoint_and_rotations_with_it_and_tells_last(replicas: Replicas, pools: Pools) -> None:
    one, _ = replicas
    domain = await one.domain()
    project = await one.project(domain)
    resource, enrolled = await one.node(project)
    node_id, rotations = enrolled.node.node_id, PgRotationStore(pools[0])
    await PgNodeStore(pools[0]).report_endpoint(node_id, "203.0.113.7:443", "unknown", now(), now())
    asked = await rotations.request(node_id, now())
    assert asked is not None
    await rotations.complete(node_id, asked[0], key(), now())
    await rotations.request(node_id, now())
    await one.identity.delete_resource(one.admin, resource.id)
    rows = await pools[0].fetch(
        "SELECT type FROM identity.event_outbox WHERE domain_id = $1 ORDER BY position", domain.id
    )
    assert [row["type"] for row in rows] == [
        "peer_added", "peer_endpoint_changed", "rotate_keys", "peer_key_rotated", "rotate_keys", "peer_removed",
    ]  # fmt: skip
    assert await count(pools[0], "key_rotations", "node_id = $1", node_id) == 0
    assert await count(pools[0], "endpoints", "node_id = $1", node_id) == 0
    with pytest.raises(KeysRotatePeerNotFound):
        await rotations.complete(node_id, asked[0], key(), now())
    # The Domain's last node is gone, so the rest goes as well.
    assert await code(one.identity.delete_project(one.admin, project.id)) == "ok"
    assert await code(one.identity.delete_domain(one.admin, domain.id)) == "ok"


async def test_only_nodes_with_a_live_key_stand_anywhere(replicas: Replicas, pools: Pools) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    (resource, gone), (_, here) = await one.node(project), await one.node(project)
    ids = [gone.node.node_id, here.node.node_id]
    store = PgStore(pools[0])
    assert {place.node_id for place in await store.places(ids * 2)} == set(ids)
    await one.identity.delete_resource(one.admin, resource.id)
    (place,) = await store.places(ids)
    assert (place.node_id, place.project_id, place.domain_id) == (ids[1], project.id, project.domain_id)
    revoke = "UPDATE identity.node_secret_keys SET revoked_at = now() WHERE node_id = $1"
    await pools[0].execute(revoke, ids[1])
    assert await store.places(ids) == []


async def test_a_receipt_and_its_completion_are_one(pools: Pools, replicas: Replicas) -> None:
    (node_id,) = await nodes(replicas[0], 1)
    asked = await PgRotationStore(pools[0]).request(node_id, now())
    assert asked is not None
    half = "UPDATE identity.key_rotations SET completed_at = now(), public_key = $2 WHERE id = $1"
    with pytest.raises(asyncpg.CheckViolationError):
        await pools[0].execute(half, asked[0], key())
