"""The directory and registration on the real PostgreSQL, OpenBao and SpiceDB: races are decided once, for everybody."""

import asyncio
import hashlib
import ipaddress
from collections import Counter
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest

from devstack.layout import State
from libs.clock import SystemClock
from libs.columns import guard_columns
from libs.errors import PlexError
from libs.ids import uuid7
from libs.migrations import Migrate, migrate
from libs.settings import load
from services.identity.columns import COLUMNS
from services.identity.enrolment_store import PgEnrolmentStore
from services.identity.model import Peer, Reachability, Tuple
from services.identity.registration_store import Registration, Registrations
from services.identity.tests.conftest import Pools
from services.identity.tests.replicas import Replica, code, count, fresh_cidr, fresh_key

pytestmark = pytest.mark.integration


async def test_the_schema_is_the_declared_one(pools: Pools) -> None:
    await guard_columns(pools[0], "identity", COLUMNS)


async def test_fifty_uses_of_one_token_at_once_register_one_node(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    resource = await one.resource(project)
    wanted = await one.wish(project, str(resource.id))
    wishes = [replace(wanted, nonce=str(uuid4())) for _ in range(50)]
    answers = await asyncio.gather(*(code(replicas[n % 2].enrolment.register(w)) for n, w in enumerate(wishes)))
    assert Counter(answers) == {"ok": 1, "token_consumed": 49}
    assert await count(pools[0], "nodes", "project_id = $1", project.id) == 1
    assert await count(pools[0], "node_secret_keys", "domain_id = $1", project.domain_id) == 1


async def test_the_same_request_many_times_at_once_is_one_node_whose_last_key_lives(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    wanted = await one.wish(project, str((await one.resource(project)).id))
    answers = await asyncio.gather(*(code(replicas[n % 2].enrolment.register(wanted)) for n in range(10)))
    assert set(answers) <= {"ok", "allocator_contention"}
    assert await count(pools[0], "nodes", "project_id = $1", project.id) == 1
    last = await one.enrolment.register(wanted)
    live = await pools[0].fetchval(
        "SELECT fingerprint FROM identity.node_secret_keys WHERE node_id = $1 AND revoked_at IS NULL", last.node.node_id
    )
    assert live == hashlib.sha256(last.key.reveal()).digest()


async def test_a_hundred_registrations_at_once_get_distinct_addresses(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, _ = replicas
    domain = await one.domain()
    project = await one.project(domain)
    resources = [await one.resource(project) for _ in range(100)]
    wishes = [await one.wish(project, str(resource.id)) for resource in resources]
    nodes = await asyncio.gather(*(replicas[n % 2].enrolment.register(w) for n, w in enumerate(wishes)))
    addresses = [ipaddress.ip_address(enrolled.node.mesh_ip) for enrolled in nodes]
    network = ipaddress.ip_network(domain.mesh_cidr)
    assert sorted(int(address) - int(network[0]) for address in addresses) == list(range(1, 101))
    assert await count(pools[0], "event_outbox", "domain_id = $1 AND type = 'peer_added'", domain.id) == 100
    # Every grant of a registration has arrived once it has answered.
    allowed = [(f"node:{n.node.node_id}", "node-agent", f"node:{n.node.node_id}") for n in nodes]
    assert all(decision.granted for decision in await one.relations.decide_all(allowed))


class Crashing(Registrations):
    """PostgreSQL, and a process that dies in the middle of a transaction."""

    async def _commit(
        self, lent: asyncpg.Connection, domain_id: UUID, wanted: list[Registration]
    ) -> list[tuple[Peer, str]]:
        await super()._commit(lent, domain_id, wanted)
        raise RuntimeError("killed")


async def test_a_crash_between_the_steps_uses_no_token(replicas: tuple[Replica, Replica], pools: Pools) -> None:
    one, other = replicas
    project = await one.project(await one.domain())
    wanted = await one.wish(project, str((await one.resource(project)).id))
    crashing = PgEnrolmentStore(pools[0], Crashing(pools[0]))
    with pytest.raises(RuntimeError):
        await replace(one.enrolment, store=crashing).register(wanted)
    assert await count(pools[0], "nodes", "project_id = $1", project.id) == 0
    assert await count(pools[0], "event_outbox", "domain_id = $1", project.domain_id) == 0
    assert (await other.enrolment.register(wanted)).node.mesh_ip


async def test_who_cannot_be_registered_takes_nobody_along(replicas: tuple[Replica, Replica], pools: Pools) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    taken, _ = await one.node(project)
    wishes = [await one.wish(project, str((await one.resource(project)).id)) for _ in range(9)]
    of_another = replace(wishes[3], public_key=wishes[2].public_key)
    twice = await one.wish(project, str(taken.id))
    colliding = replace(wishes[7], nonce=wishes[6].nonce)
    asked = [*wishes[:3], of_another, *wishes[4:7], colliding, wishes[8], twice]
    answers = await asyncio.gather(*(code(one.enrolment.register(wish)) for wish in asked))
    # Of two that cannot both be, either may be first.
    assert sorted({answers[2], answers[3]}) == ["ok", "public_key_invalid"]
    assert sorted({answers[6], answers[7]}) == ["nonce_collision", "ok"]
    assert answers[9] == "resource_not_found"
    assert Counter(answers)["ok"] == 7
    assert await count(pools[0], "nodes", "project_id = $1", project.id) == 8
    assert await count(pools[0], "bootstrap_tokens", "project_id = $1 AND consumed_at IS NOT NULL", project.id) == 8
    lost = {wish.bootstrap_token for wish, answer in zip(asked, answers, strict=True) if answer != "ok"}
    for wish in (wish for wish in wishes if wish.bootstrap_token in lost):
        again = replace(wish, public_key=fresh_key(), nonce=str(uuid4()))
        assert await code(one.enrolment.register(again)) == "ok"


async def test_the_last_addresses_are_given_out_to_as_many_as_there_are(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    project = await one.project(await one.domain(fresh_cidr(125)))
    wishes = [await one.wish(project, str((await one.resource(project)).id)) for _ in range(10)]
    answers = await asyncio.gather(*(code(one.enrolment.register(wish)) for wish in wishes))
    assert Counter(answers) == {"ok": 6, "pool_exhausted": 4}


async def test_the_nonce_of_another_token_collides(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    first = await one.wish(project, str((await one.resource(project)).id))
    await one.enrolment.register(first)
    second = await one.wish(project, str((await one.resource(project)).id))
    assert await code(one.enrolment.register(replace(second, nonce=first.nonce))) == "nonce_collision"
    assert await code(one.enrolment.register(second)) == "ok"


async def test_a_retry_for_another_resource_collides(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    wanted = await one.wish(project, str((await one.resource(project)).id))
    await one.enrolment.register(wanted)
    other = await one.resource(project)
    assert await code(one.enrolment.register(replace(wanted, resource_handle=str(other.id)))) == "nonce_collision"


async def test_addresses_come_from_the_own_range_and_never_from_another_projects(
    replicas: tuple[Replica, Replica],
) -> None:
    one, _ = replicas
    network = ipaddress.ip_network(fresh_cidr(124))
    low, high = network.subnets(1)
    domain = await one.domain(str(network))
    ranged, free = await one.project(domain, str(low)), await one.project(domain)
    assert [(await one.node(free))[1].node.mesh_ip for _ in range(7)] == [str(high[n]) for n in range(7)]
    assert [(await one.node(ranged))[1].node.mesh_ip for _ in range(6)] == [str(low[n]) for n in range(1, 7)]
    assert await code(one.node(free)) == "pool_exhausted"
    assert await code(one.node(ranged)) == "subrange_exhausted"
    assert await code(one.project(domain, str(high))) == "sub_range_overlap"


async def test_a_range_in_use_cannot_be_taken_away(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    network = ipaddress.ip_network(fresh_cidr(112))
    low, high = network.subnets(1)
    domain = await one.domain(str(network))
    project = await one.project(domain, str(low))
    await one.node(project)
    update_project, update_domain = one.identity.update_project, one.identity.update_domain
    assert await code(update_project(one.admin, project.id, {"sub_range_cidr": str(high)})) == (
        "sub_range_invalidates_allocation"
    )
    assert await code(update_domain(one.admin, domain.id, {"mesh_cidr": str(high)})) == (
        "sub_range_invalidates_allocation"
    )
    assert (await update_project(one.admin, project.id, {"sub_range_cidr": ""})).sub_range_cidr == ""


async def test_ranges_and_slugs_are_exclusive(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    cidr = fresh_cidr()
    assert Counter(await asyncio.gather(*(code(replicas[n % 2].domain(cidr)) for n in range(8)))) == {
        "ok": 1,
        "mesh_cidr_overlap": 7,
    }
    domain = await one.domain()
    taken = other.identity.create_domain(one.admin, "D", domain.slug, "", "", fresh_cidr(), Reachability())
    assert await code(taken) == "slug_taken"
    half = str(next(iter(ipaddress.ip_network(domain.mesh_cidr).subnets(1))))
    assert Counter(await asyncio.gather(*(code(replicas[n % 2].project(domain, half)) for n in range(8)))) == {
        "ok": 1,
        "sub_range_overlap": 7,
    }


async def test_a_deleted_resource_takes_its_node_keys_and_relations_with_it(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, other = replicas
    resource, enrolled = await one.node(await one.project(await one.domain()))
    node_id = enrolled.node.node_id
    secret = f"secret:{uuid7()}"
    await one.relations.grant(Tuple(secret, "reader", f"node:{node_id}"))
    await other.identity.delete_resource(one.admin, resource.id)
    questions = [(f"node:{node_id}", "node-agent", f"node:{node_id}"), (f"node:{node_id}", "read", secret)]
    assert [d.reason for d in await one.relations.decide_all(questions)] == ["out_of_scope", "out_of_scope"]
    assert await count(pools[0], "nodes", "id = $1", node_id) == 0
    # The row of the key stays, revoked, so that its bearer is told so.
    assert await count(pools[0], "node_secret_keys", "node_id = $1 AND revoked_at IS NOT NULL", node_id) == 1
    assert await count(pools[0], "relation_tuples", "subject_id = $1 OR resource_id = $1", str(node_id)) == 0
    assert (
        await count(pools[0], "event_outbox", "type = 'peer_removed' AND payload->>'node_id' = $1", str(node_id)) == 1
    )


async def test_a_registration_and_a_deletion_at_once_leave_all_or_nothing(
    replicas: tuple[Replica, Replica], pools: Pools
) -> None:
    one, other = replicas
    project = await one.project(await one.domain())
    for _ in range(10):
        resource = await one.resource(project)
        wanted = await one.wish(project, str(resource.id))
        registered, deleted = await asyncio.gather(
            code(one.enrolment.register(wanted)), code(other.identity.delete_resource(one.admin, resource.id))
        )
        assert deleted == "ok"
        assert registered in {"ok", "resource_not_found"}
    where = "domain_id = $1 AND revoked_at IS NULL"
    assert await count(pools[0], "node_secret_keys", where, project.domain_id) == 0
    assert await count(pools[0], "nodes", "project_id = $1", project.id) == 0
    await one.relations.deliver()
    assert await count(pools[0], "relation_tuples", "resource_id = $1 AND relation = 'agent'", str(project.id)) == 0


async def test_only_what_is_empty_is_deleted_and_counts_say_why(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    domain = await one.domain()
    project = await one.project(domain)
    resource, _ = await one.node(project)
    with pytest.raises(PlexError) as raised:
        await one.identity.delete_domain(one.admin, domain.id)
    assert raised.value.code == "domain_not_empty"
    assert raised.value.extra["child_counts"] == {
        "projects": 1, "groups": 0, "identities": 0, "idp_bindings": 0, "nodes": 1,
    }  # fmt: skip
    with pytest.raises(PlexError) as raised:
        await one.identity.delete_project(one.admin, project.id)
    assert raised.value.code == "project_not_empty"
    assert {"resources": 1, "nodes": 1}.items() <= raised.value.extra["project_child_counts"].items()
    await one.identity.delete_resource(one.admin, resource.id)
    await one.identity.delete_project(one.admin, project.id)
    await one.identity.delete_domain(one.admin, domain.id)
    assert await code(one.identity.get_domain(one.admin, domain.id)) == "permission_denied"


async def test_something_is_not_created_below_what_is_being_deleted(replicas: tuple[Replica, Replica]) -> None:
    one, other = replicas
    for _ in range(5):
        domain = await one.domain()
        created, deleted = await asyncio.gather(
            code(one.project(domain)), code(other.identity.delete_domain(one.admin, domain.id))
        )
        assert (created, deleted) in {
            ("ok", "domain_not_empty"), ("not_found", "ok"), ("permission_denied", "ok"),
        }  # fmt: skip


async def test_tokens_are_listed_newest_first(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    issued = [(await one.identity.issue_token(one.admin, project.id, "node", "dev", 300))[0].id for _ in range(5)]
    first, cursor = await one.identity.list_tokens(one.admin, project.id, "", 3)
    rest, end = await one.identity.list_tokens(one.admin, project.id, cursor, 3)
    assert [row.id for row in [*first, *rest]] == sorted(issued, reverse=True)
    assert end == ""


async def test_a_heartbeat_that_cannot_be_stored_is_malformed(replicas: tuple[Replica, Replica], pools: Pools) -> None:
    one, _ = replicas
    _, enrolled = await one.node(await one.project(await one.domain()))
    store, now = PgEnrolmentStore(pools[0], Registrations(pools[0])), SystemClock().now()
    for nat_summary in ("{", '{"a": "\\u0000"}'):
        beat = store.heartbeat(enrolled.node.node_id, bytes(32), "1", nat_summary, now)
        assert await code(beat) == "malformed_heartbeat_request"
    assert await store.heartbeat(enrolled.node.node_id, bytes(32), "1", '{"nat": "cone"}', now)
    assert await store.heartbeat(uuid7(), bytes(32), "1", "{}", now) is None


async def test_a_text_that_postgresql_cannot_hold_is_the_callers_mistake(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    project = await one.project(await one.domain())
    rules, admin = one.identity, one.admin
    attempts = [
        rules.update_project(admin, project.id, {"name": "a\0b"}),
        rules.create_resource(admin, project.id, "adopted", "ser\0ver", ""),
        one.enrolment.register(replace(await one.wish(project, "x"), resource_handle="\0")),
    ]
    assert [await code(attempt) for attempt in attempts] == ["invalid_body"] * 3


async def test_a_downgrade_that_would_lose_keys_is_refused_and_changes_nothing(backends: State, pools: Pools) -> None:
    with pytest.raises(asyncpg.FeatureNotSupportedError):
        await migrate(load(backends / "config/migrate.toml", Migrate), ["identity"], "base")
    await guard_columns(pools[0], "identity", COLUMNS)
