"""Roles as people give them, on the real PostgreSQL and SpiceDB: who may, what is refused, what is recorded."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from libs.clock import SystemClock, rfc3339
from libs.cursor import Cursors
from libs.custody import Secret
from libs.errors import AuthzUnavailable, LookupTooLarge, PlexError
from libs.ids import uuid7
from services.identity.access_policy_store import PgAccessPolicyStore
from services.identity.authority import Gate
from services.identity.authorization import Authorization
from services.identity.authorization_store import PgTupleDirectory
from services.identity.model import Caller, Caveat, Domain, Project, Reachability, Resource, Tuple
from services.identity.relations import Question, Relations
from services.identity.schema import PLATFORM
from services.identity.store import PgStore
from services.identity.tests.fakes import FakeAudit, signed_in
from services.identity.tests.test_relations import Away

pytestmark = pytest.mark.integration

Pools = tuple[asyncpg.Pool, asyncpg.Pool]
NOW = SystemClock().now()
BINDING = """
INSERT INTO identity.idp_bindings (id, issuer, client_id, client_secret_ref, discovery_url, claim_mappings,
    required_acr, required_amr, jit_policy, status, alias, is_primary, created_at, updated_at)
SELECT uuidv7(), 'https://roles.example', 'c', 'kv/idp/platform/roles',
    'https://roles.example/.well-known/openid-configuration', '{}', '{}', '{}', 'allow', 'active', 'roles', false,
    now(), now()
WHERE NOT EXISTS (SELECT FROM identity.idp_bindings)
"""
SERVICE = """
INSERT INTO identity.service_identities
    (id, domain_id, display_name, subject, audience, federation_kind, created_at)
VALUES ($1, $2, 'robot', $1::uuid::text, '', 'api_token', now())
"""
PERSON = """
INSERT INTO identity.identities (id, domain_id, binding_id, subject, display_name, email, created_at, last_sign_in_at)
SELECT $1::uuid, $2, id, $1::text, '', '', now(), now() FROM identity.idp_bindings WHERE required_acr = '{}' LIMIT 1
"""


@dataclass
class Town:
    """Two Domains with a project each, and who is in them."""

    rules: Authorization
    audit: FakeAudit
    relations: Relations
    pool: asyncpg.Pool
    mine: Project
    other: Project
    resource: Resource
    foreign: Resource
    owner: Caller
    member: Caller
    stranger: Caller

    def role(self, name: str = "viewer", on: str = "", to: Caller | None = None, caveat: Caveat | None = None) -> Tuple:
        return Tuple(on or f"project:{self.mine.id}", name, (to or self.member).reference, caveat)

    async def may(self, who: Caller, permission: str, resource: str) -> str:
        return (await self.relations.decide(who.reference, permission, resource)).reason

    async def give(self, row: Tuple) -> Any:
        return await self.rules.create(self.owner, self.mine.id, row)


async def person(pool: asyncpg.Pool, domain_id: UUID | None) -> Caller:
    someone = signed_in()
    await pool.execute(PERSON, UUID(someone.subject), domain_id)
    return someone


async def service(pool: asyncpg.Pool, project: Project) -> Caller:
    robot = Caller("service", str(uuid7()))
    await pool.execute(SERVICE, UUID(robot.subject), project.domain_id)
    return robot


@dataclass
class Site:
    """One of the two Domains."""

    project: Project
    resource: Resource
    owner: Caller


async def site(pool: asyncpg.Pool, relations: Relations) -> Site:
    store, domain_id, project_id, random = PgStore(pool), uuid7(), uuid7(), uuid4().hex
    cidr = f"fd{random[:2]}:{random[2:6]}:{random[6:10]}::/64"
    domain = Domain(domain_id, "Town", f"town-{random}", "", "", cidr, Reachability(), NOW, NOW)
    await store.create_domain(domain, [Tuple(f"domain:{domain_id}", "platform", PLATFORM)])
    project = Project(project_id, domain_id, "P", "p", "", "", NOW, NOW)
    await store.create_project(project, [Tuple(f"project:{project_id}", "domain", f"domain:{domain_id}")])
    resource = Resource(uuid7(), project_id, domain_id, "server", "r", "adopted", NOW, NOW)
    await store.create_resource(resource, [Tuple(f"resource:{resource.id}", "project", f"project:{project_id}")])
    owner = await person(pool, domain_id)
    await relations.grant(Tuple(f"domain:{domain_id}", "admin", owner.reference))
    return Site(project, resource, owner)


@pytest.fixture
async def town(pools: Pools, relations: Relations) -> Town:
    pool = pools[0]
    await pool.execute(BINDING)
    here, there = await site(pool, relations), await site(pool, relations)
    audit = FakeAudit([])
    gate = Gate(relations, audit, PgStore(pool))
    rules = Authorization(
        relations, PgTupleDirectory(pool), gate, PgAccessPolicyStore(pool), Cursors(Secret(b"k" * 32))
    )
    member = await person(pool, here.project.domain_id)
    return Town(
        rules, audit, relations, pool, here.project, there.project, here.resource, there.resource, here.owner, member,
        there.owner,
    )  # fmt: skip


async def refused(attempt: Awaitable[object]) -> str:
    try:
        await attempt
    except PlexError as error:
        return " ".join(part for part in (error.code, str(error.extra.get("reason", ""))) if part)
    return "done"


async def test_a_role_is_given_once_counts_until_it_is_taken_away_and_leaves_a_row_each_time(town: Town) -> None:
    this, row = f"project:{town.mine.id}", town.role()
    given = await town.give(row)
    assert await town.may(town.member, "read", this) == "granted"
    assert (await town.give(row)).id == given.id
    until = Caveat("expires", {"until": rfc3339(NOW + timedelta(hours=1))})
    assert await refused(town.give(replace(row, caveat=until))) == "relation_tuple_conflict"
    await town.rules.delete(town.owner, given.id)
    assert await town.may(town.member, "read", this) == "out_of_scope"
    assert await refused(town.rules.delete(town.owner, given.id)) == "relation_tuple_not_found"
    seen = [(one.action, one.object_id, one.reason, one.domain_id) for one in town.audit.rows]
    project, domain = str(town.mine.id), str(town.mine.domain_id)
    assert seen == [
        *[("relation.create", project, "granted", domain)] * 3,
        ("relation.delete", project, "granted", domain),
        ("relation.delete", str(given.id), "out_of_scope", ""),
    ]
    # Which caveat, and never what it says.
    assert town.audit.rows[2].context == {
        "relation": ["viewer"], "subject": [town.member.reference], "caveat": ["expires"],
    }  # fmt: skip


@pytest.mark.parametrize("credential", ["api_token", "service_token", ""])
async def test_no_token_gives_or_takes_a_role(town: Town, credential: str) -> None:
    given = await town.give(town.role())
    token = replace(town.owner, credential=credential)
    for attempt in (
        town.rules.create(token, town.mine.id, town.role("operator")),
        town.rules.update(token, given.id, town.role("operator")),
        town.rules.delete(token, given.id),
    ):
        assert await refused(attempt) == "permission_denied caveat_violation"
        assert (town.audit.rows[-1].reason, town.audit.rows[-1].context["token"]) == (
            "caveat_violation", ["credential"],
        )  # fmt: skip
    assert len(town.audit.rows) == 4
    assert await town.may(town.member, "read", f"project:{town.mine.id}") == "granted"
    assert await town.may(town.member, "deploy", f"project:{town.mine.id}") == "insufficient_relation"


async def test_who_manages_under_a_condition_gives_nobody_a_role(town: Town) -> None:
    until = Caveat("expires", {"until": rfc3339(NOW + timedelta(hours=1))})
    given = await town.give(town.role("admin", caveat=until))
    assert await town.may(town.member, "manage", f"project:{town.mine.id}") == "granted"
    for attempt in (
        town.rules.update(town.member, given.id, town.role("admin")),
        town.rules.create(town.member, town.mine.id, town.role("admin", to=town.owner)),
        town.rules.delete(town.member, given.id),
    ):
        assert await refused(attempt) == "permission_denied caveat_violation"
        assert town.audit.rows[-1].context["grant"] == ["conditional"]
    # Who may do it without the condition as well may do it.
    await town.relations.grant(Tuple(f"domain:{town.mine.domain_id}", "admin", town.member.reference))
    await town.rules.update(town.member, given.id, town.role("admin"))


async def test_nothing_is_given_before_its_row(town: Town) -> None:
    given = await town.give(town.role("operator"))
    town.audit.refusal = AuthzUnavailable()
    for attempt in (
        town.give(town.role()),
        town.rules.update(town.owner, given.id, town.role()),
        town.rules.delete(town.owner, given.id),
    ):
        assert await refused(attempt) == "authz_unavailable"
    assert await town.may(town.member, "act", f"project:{town.mine.id}") == "granted"
    assert await town.may(town.member, "audit", f"project:{town.mine.id}") == "insufficient_relation"
    rows = await town.pool.fetchval(
        "SELECT count(*) FROM identity.relation_tuples WHERE subject_id = $1", town.member.subject
    )
    assert rows == 1


async def test_what_is_not_a_role_or_not_from_here_is_refused_with_its_own_code(town: Town) -> None:
    node, secret = f"node:{uuid7()}", f"secret:{uuid7()}"
    foreign, nowhere = f"resource:{town.foreign.id}", f"resource:{uuid7()}"
    platform_person = await person(town.pool, None)
    wanted = {
        "relation_structural": [
            Tuple(f"project:{town.mine.id}", "domain", f"domain:{town.mine.domain_id}"),
            Tuple(f"project:{town.mine.id}", "agent", node),
            Tuple(f"resource:{town.resource.id}", "project", f"project:{town.mine.id}"),
            Tuple(f"domain:{town.mine.domain_id}", "platform", PLATFORM),
        ],
        "relation_of_secret": [Tuple(secret, "reader", node), Tuple(secret, "project", f"project:{town.mine.id}")],
        "relation_not_allowed": [
            town.role("emperor"),
            town.role("auditor"),
            Tuple(f"project:{town.mine.id}", "viewer", node),
            Tuple(f"project:{town.mine.id}", "viewer", "user:*"),
        ],
        "relation_object_not_found": [
            town.role("operator", foreign), town.role("operator", nowhere),
            town.role("viewer", f"project:{town.other.id}"),
        ],
        "relation_subject_not_found": [
            town.role(to=town.stranger), town.role(to=Caller("user", str(uuid7()))),
            town.role(to=Caller("service", str(uuid7()))), town.role(to=await service(town.pool, town.other)),
        ],
        "caveat_invalid": [
            town.role(caveat=Caveat("moonlight", {})),
            town.role(caveat=Caveat("", {"until": "2030-01-01T00:00:00Z"})),
            town.role(caveat=Caveat("expires", {})),
            town.role(caveat=Caveat("expires", {"until": "tomorrow"})),
            town.role(caveat=Caveat("expires", {"until": "2030-01-01T00:00:00Z", "now": "2020-01-01T00:00:00Z"})),
            town.role(caveat=Caveat("from_network", {"network": "10.0.0.1/8"})),
        ],
        "permission_denied out_of_scope": [
            town.role("member", f"domain:{town.other.domain_id}"), town.role("admin", PLATFORM),
        ],
        "done": [
            town.role("operator", f"resource:{town.resource.id}"), town.role(to=platform_person),
            town.role("member", f"domain:{town.mine.domain_id}"), town.role(to=await service(town.pool, town.mine)),
        ],
    }  # fmt: skip
    for code, rows in wanted.items():
        for row in rows:
            before = len(town.audit.rows)
            assert await refused(town.give(row)) == code, row
            assert len(town.audit.rows) == before + 1


async def test_the_platform_is_given_by_who_manages_it_and_to_its_own_people_only(town: Town) -> None:
    root = await person(town.pool, None)
    await town.relations.grant(Tuple(PLATFORM, "admin", root.reference))
    helper = await person(town.pool, None)
    try:
        wanted = Tuple(PLATFORM, "auditor", town.member.reference)
        assert await refused(town.rules.create(root, town.mine.id, wanted)) == "relation_subject_not_found"
        given = await town.rules.create(root, town.mine.id, Tuple(PLATFORM, "auditor", helper.reference))
        assert town.audit.rows[-1].domain_id == ""
        assert await town.may(helper, "audit", f"domain:{town.other.domain_id}") == "granted"
        rows, _ = await town.rules.page(root, town.mine.id, "", 200)
        assert given.id in {row.id for row in rows}
        assert given.id not in {row.id for row in (await town.rules.page(town.owner, town.mine.id, "", 200))[0]}
        await town.rules.delete(root, given.id)
    finally:
        await town.relations.remove(PLATFORM, "", root.reference)
        await town.relations.remove(PLATFORM, "", helper.reference)


async def test_a_stranger_learns_nothing_from_any_answer(town: Town) -> None:
    given = await town.give(town.role())
    they, no_project, no_tuple = town.stranger, uuid7(), uuid7()
    row = town.role()
    pairs = [
        (town.rules.page(they, town.mine.id, "", 50), town.rules.page(they, no_project, "", 50)),
        (town.rules.create(they, town.mine.id, row), town.rules.create(they, no_project, row)),
        (town.rules.update(they, given.id, row), town.rules.update(they, no_tuple, row)),
        (town.rules.delete(they, given.id), town.rules.delete(they, no_tuple)),
    ]
    for there, not_there in pairs:
        answer = await refused(there)
        assert answer == await refused(not_there)
        assert answer in {"permission_denied out_of_scope", "relation_tuple_not_found"}
    for resource in (f"project:{town.mine.id}", f"project:{no_project}"):
        decision = await town.rules.check(they, town.member.reference, "read", resource, {})
        assert decision.reason == "out_of_scope"
        assert await town.rules.lookup_subjects(they, "user", "read", resource, {}) == []
        assert await town.rules.check(they, they.reference, "read", resource, {}) == decision
    for subject in (town.member.reference, f"user:{uuid7()}"):
        assert await town.rules.lookup_resources(they, subject, "read", "project", {}) == []
    # Nor who is bound to the project and does not manage it, beyond his own.
    assert await refused(town.rules.delete(town.member, given.id)) == "permission_denied insufficient_relation"
    decision = await town.rules.check(town.member, town.owner.reference, "read", f"project:{town.mine.id}", {})
    assert decision.reason == "out_of_scope"


async def test_lookups_list_what_the_asker_may_see_and_never_the_sentinel(town: Town) -> None:
    await town.give(town.role())
    this = f"project:{town.mine.id}"
    assert await town.rules.lookup_resources(town.member, town.member.reference, "read", "project", {}) == [this]
    assert await town.rules.lookup_resources(town.owner, town.member.reference, "read", "project", {}) == [this]
    found = await town.rules.lookup_subjects(town.owner, "user", "read", this, {})
    assert {town.owner.reference, town.member.reference} <= set(found)
    assert town.stranger.reference not in found
    # What he has in another Domain is nothing to who asks here.
    platform_person = await person(town.pool, None)
    await town.give(town.role(to=platform_person))
    await town.rules.create(
        town.stranger, town.other.id, town.role("viewer", f"project:{town.other.id}", platform_person)
    )
    assert await town.rules.lookup_resources(town.owner, platform_person.reference, "read", "project", {}) == []
    root = await person(town.pool, None)
    await town.relations.grant(Tuple(PLATFORM, "admin", root.reference))
    try:
        both = {this, f"project:{town.other.id}"}
        found = await town.rules.lookup_resources(root, platform_person.reference, "read", "project", {})
        assert set(found) == both
        found = await town.rules.lookup_subjects(root, "user", "audit", PLATFORM, {})
        assert root.reference in found
        assert "user:sentinel" not in found
        assert await town.rules.lookup_resources(root, root.reference, "audit", "platform", {}) == [PLATFORM]
        question = Question(root.reference, "read", "project", {})
        with pytest.raises(LookupTooLarge):
            await town.relations.checker.resources(question, 1)
    finally:
        await town.relations.remove(PLATFORM, "", root.reference)


async def test_a_context_is_asked_with_and_a_bad_one_is_the_askers_mistake(town: Town) -> None:
    until = Caveat("expires", {"until": "2030-01-01T00:00:00Z"})
    await town.give(town.role(caveat=until))
    this, me = f"project:{town.mine.id}", town.member.reference
    for now, reason in (("2029-12-31T23:59:59Z", "granted"), ("2030-01-01T00:00:00Z", "caveat_violation")):
        assert (await town.rules.check(town.member, me, "read", this, {"now": now})).reason == reason
    assert await refused(town.rules.check(town.member, me, "read", this, {"now": 5})) == "caveat_invalid"
    assert await refused(town.rules.check(town.member, me, "fly", this, {})) == "unknown_permission"
    found = await town.rules.lookup_subjects(town.owner, "user", "read", this, {"now": "2031-01-01T00:00:00Z"})
    # The platform's people, whom other tests let sign in, read every project.
    assert {town.owner.reference, me}.intersection(found) == {town.owner.reference}


async def test_a_changed_role_keeps_its_id_and_the_old_one_counts_no_more(town: Town) -> None:
    this = f"project:{town.mine.id}"
    given = await town.give(town.role("operator"))
    changed = await town.rules.update(town.owner, given.id, town.role("viewer"))
    assert (changed.id, changed.row.relation) == (given.id, "viewer")
    assert await town.may(town.member, "act", this) == "insufficient_relation"
    assert await town.may(town.member, "read", this) == "granted"
    # A condition that is added narrows, so it counts at once as well.
    past = Caveat("expires", {"until": rfc3339(NOW - timedelta(seconds=1))})
    assert (await town.rules.update(town.owner, given.id, town.role("viewer", caveat=past))).id == given.id
    assert await town.may(town.member, "read", this) == "caveat_violation"
    await town.give(town.role("deployer"))
    assert await refused(town.rules.update(town.owner, given.id, town.role("deployer"))) == "relation_tuple_conflict"
    foreign = town.role("viewer", f"project:{town.other.id}")
    assert await refused(town.rules.update(town.owner, given.id, foreign)) == "relation_tuple_not_found"
    rows, _ = await town.rules.page(town.owner, town.mine.id, "", 50)
    assert {(row.row.relation, row.row.subject) for row in rows if row.row.subject == town.member.reference} == {
        ("viewer", town.member.reference), ("deployer", town.member.reference),
    }  # fmt: skip


async def test_taking_away_answers_only_when_spicedb_has_taken_it(town: Town) -> None:
    given = await town.give(town.role())
    away: Any = Away(town.relations.checker)  # type: ignore[arg-type]  # it is the real one
    cut_off = replace(town.rules, oracle=replace(town.relations, checker=away))
    for _ in range(2):
        assert await refused(cut_off.delete(town.owner, given.id)) == "authz_unavailable"
    assert await town.may(town.member, "read", f"project:{town.mine.id}") == "granted"
    # Asked again it is not yet "not found", because it still counts.
    await town.rules.delete(town.owner, given.id)
    assert await town.may(town.member, "read", f"project:{town.mine.id}") == "out_of_scope"


async def test_a_domain_keeps_an_administrator_whoever_hurries(town: Town) -> None:
    this = f"domain:{town.mine.domain_id}"
    second = await town.give(town.role("admin", this))
    rows, _ = await town.rules.page(town.owner, town.mine.id, "", 50)
    first = next(row for row in rows if row.row == Tuple(this, "admin", town.owner.reference))
    both = await asyncio.gather(
        refused(town.rules.delete(town.owner, first.id)), refused(town.rules.delete(town.member, second.id))
    )
    assert sorted(both) == ["done", "last_administrator"]
    left = first if both[0] == "last_administrator" else second
    owner = town.owner if left is first else town.member
    past = replace(left.row, caveat=Caveat("expires", {"until": "2040-01-01T00:00:00Z"}))
    for attempt in (
        town.rules.update(owner, left.id, past),
        town.rules.update(owner, left.id, replace(left.row, relation="member")),
    ):
        assert await refused(attempt) == "last_administrator"


async def test_a_project_lists_its_roles_page_by_page_and_nothing_that_is_not_one(town: Town) -> None:
    given = [await town.give(town.role(name)) for name in ("viewer", "operator", "deployer", "admin")]
    given.append(await town.give(town.role("operator", f"resource:{town.resource.id}")))
    seen, cursor = [], ""
    while True:
        rows, cursor = await town.rules.page(town.owner, town.mine.id, cursor, 2)
        seen += rows
        if not cursor:
            break
    assert {row.id for row in given} <= {row.id for row in seen}
    assert {(row.row.resource.partition(":")[0], row.row.relation) for row in seen} == {
        ("project", "viewer"), ("project", "operator"), ("project", "deployer"), ("project", "admin"),
        ("resource", "operator"), ("domain", "admin"),
    }  # fmt: skip
    # Who manages the project alone does not see his Domain's.
    rows, _ = await town.rules.page(town.member, town.mine.id, "", 200)
    assert {row.row.resource.partition(":")[0] for row in rows} == {"project", "resource"}
