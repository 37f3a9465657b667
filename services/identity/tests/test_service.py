"""The directory's rules: relation before existence, audit before effect, and what each list leaves out."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from libs.errors import AuditUnavailable, AuthzUnavailable, Forbidden, PlexError, Unprocessable
from libs.ids import uuid7
from services.identity.model import Caller, Reachability, Tuple
from services.identity.schema import PLATFORM
from services.identity.tests.fakes import World

pytestmark = pytest.mark.unit

TOKEN = re.compile(r"psb_[a-z]+_[a-z2-7]+_(node|bridge)_[a-z2-7]{20,}")
POLICY = Reachability()


def writes(world: World, caller: Caller, missing: UUID | None = None) -> dict[str, Any]:
    """Every rule that changes something, on the world's objects or on one that does not exist."""
    rules = world.identity
    domain, project, resource = (missing or row.id for row in (world.domain, world.project, world.resource))
    return {
        "domain.update": lambda: rules.update_domain(caller, domain, {"name": "Other"}),
        "domain.delete": lambda: rules.delete_domain(caller, domain),
        "project.create": lambda: rules.create_project(caller, domain, "Shop", "shop", "", ""),
        "project.update": lambda: rules.update_project(caller, project, {"name": "Other"}),
        "project.delete": lambda: rules.delete_project(caller, project),
        "resource.create": lambda: rules.create_resource(caller, project, "adopted", "server", ""),
        "resource.delete": lambda: rules.delete_resource(caller, resource),
        "bootstrap_token.issue": lambda: rules.issue_token(caller, project, "node", "dev", 900),
        "bootstrap_token.revoke": lambda: rules.revoke_token(caller, project, uuid7()),
    }


def reads(world: World, caller: Caller, missing: UUID | None = None) -> dict[str, Any]:
    """Every rule that shows something."""
    rules = world.identity
    domain, project, resource = (missing or row.id for row in (world.domain, world.project, world.resource))
    return {
        "get_domain": lambda: rules.get_domain(caller, domain),
        "get_project": lambda: rules.get_project(caller, project),
        "get_resource": lambda: rules.get_resource(caller, resource),
        "list_resources": lambda: rules.list_resources(caller, project, "", 10),
        "get_token": lambda: rules.get_token(caller, project, uuid7()),
        "list_tokens": lambda: rules.list_tokens(caller, project, "", 10),
    }


NAMES = list(writes(World(), World().owner))
EFFECTS = {"deliver", "revoke"}


@pytest.mark.parametrize("action", [name for name in NAMES if name != "bootstrap_token.revoke"])
async def test_a_write_is_recorded_before_its_effect(action: str) -> None:
    world = World()
    await writes(world, world.owner)[action]()
    assert world.trace[:2] == ["relation", "audit"]
    (row,) = world.audit.rows
    assert (row.action, row.reason, row.subject_id) == (action, "granted", world.owner.subject)
    assert row.domain_id == str(world.domain.id)


@pytest.mark.parametrize("action", NAMES)
async def test_a_refused_write_has_no_effect_and_one_row(action: str) -> None:
    world = World()
    with pytest.raises(Forbidden) as raised:
        await writes(world, world.stranger)[action]()
    assert raised.value.extra == {"reason": "out_of_scope", "relation_path": []}
    assert world.trace == ["relation", "audit"]
    (row,) = world.audit.rows
    assert (row.action, row.reason, row.domain_id) == (action, "out_of_scope", world.stranger.domain_id)


@pytest.mark.parametrize("action", NAMES)
async def test_without_audit_or_relations_nothing_is_written(action: str) -> None:
    for error in (AuditUnavailable(), AuthzUnavailable()):
        world = World()
        target = world.audit if isinstance(error, AuditUnavailable) else world.authority
        target.refusal = error
        with pytest.raises(type(error)):
            await writes(world, world.owner)[action]()
        assert set(world.trace) <= {"relation", "audit"}


@pytest.mark.parametrize("name", [*NAMES, *reads(World(), World().owner)])
async def test_who_lacks_the_relation_cannot_tell_whether_it_exists(name: str) -> None:
    answers = []
    for missing in (None, uuid7()):
        world = World()
        with pytest.raises(PlexError) as raised:
            await (writes(world, world.stranger, missing) | reads(world, world.stranger, missing))[name]()
        answers.append((raised.value.code, raised.value.detail, raised.value.extra))
        if missing and world.audit.rows:
            # Nobody makes the audit service open a chain for a Domain that he made up.
            assert world.audit.rows[0].domain_id == ""
    assert answers[0] == answers[1]
    assert answers[0][0] == "permission_denied"


async def test_a_domain_is_created_with_its_key_and_its_creator_administers_it() -> None:
    world = World()
    row = await world.identity.create_domain(world.owner, "B", "b", "", "", "10.2.0.0/16", POLICY)
    assert world.trace == ["relation", "audit", "signing_key", "create_domain", "deliver"]
    this = f"domain:{row.id}"
    assert world.store.tuples == [Tuple(this, "platform", PLATFORM), Tuple(this, "admin", world.owner.reference)]
    assert [(row.domain_id, row.object_id) for row in world.audit.rows] == [("", str(row.id))]


BAD_DOMAINS = {
    "host bits": ("10.2.0.1/16", POLICY, "invalid_body"),
    "no network": ("300.0.0.0/8", POLICY, "invalid_body"),
    "partly filled policy": ("10.2.0.0/16", Reachability(30, 0, 300), "invalid_reachability_policy"),
    "policy out of order": ("10.2.0.0/16", Reachability(30, 300, 90), "invalid_reachability_policy"),
}


@pytest.mark.parametrize(("cidr", "policy", "code"), BAD_DOMAINS.values(), ids=BAD_DOMAINS.keys())
async def test_a_domain_that_is_not_valid_is_refused(cidr: str, policy: Reachability, code: str) -> None:
    world = World()
    with pytest.raises(PlexError) as raised:
        await world.identity.create_domain(world.owner, "B", "b", "", "", cidr, policy)
    assert raised.value.code == code
    assert "create_domain" not in world.trace


async def test_an_empty_patch_is_refused() -> None:
    world = World()
    for patch in (world.identity.update_domain, world.identity.update_project):
        with pytest.raises(PlexError) as raised:
            await patch(world.owner, world.domain.id if patch == world.identity.update_domain else world.project.id, {})
        assert raised.value.code == "empty_patch"


async def test_a_sub_range_lies_within_the_domain() -> None:
    world = World()
    for cidr in ("10.1.4.0/24", "10.1.0.0/16"):
        assert (await world.identity.create_project(world.owner, world.domain.id, "S", "s", "", cidr)).sub_range_cidr
    for cidr in ("10.0.0.0/8", "10.2.0.0/24", "fd00::/64"):
        with pytest.raises(Unprocessable):
            await world.identity.create_project(world.owner, world.domain.id, "S", "s", "", cidr)


async def test_only_adopted_resources_are_in_scope() -> None:
    world = World()
    with pytest.raises(PlexError) as raised:
        await world.identity.create_resource(world.owner, world.project.id, "provisioned", "server", "")
    assert raised.value.http == 422


async def test_deleting_removes_the_relations_before_it_answers() -> None:
    world = World()
    resource = await world.identity.create_resource(world.owner, world.project.id, "adopted", "server", "x")
    world.authority.granted.add((world.owner.reference, "deploy", f"resource:{resource.id}"))
    world.trace.clear()
    await world.identity.delete_resource(world.owner, resource.id)
    assert world.trace == ["relation", "audit", "delete_resource", "revoke"]
    assert world.authority.revoked == [Tuple(f"resource:{resource.id}", "project", f"project:{world.project.id}")]


async def test_a_bootstrap_token_is_shown_once_and_kept_as_a_hash() -> None:
    world = World()
    row, text = await world.identity.issue_token(world.owner, world.project.id, "bridge", "dev", 300)
    match = TOKEN.fullmatch(text)
    assert match is not None
    assert match[1] == "bridge"
    secret = text.rsplit("_", 1)[1]
    assert len(secret) * 5 >= 100
    assert secret not in repr(world.store.token_rows)
    assert secret.encode() not in row.digest
    assert secret not in repr(world.audit.rows)
    assert (row.expires_at - row.issued_at).total_seconds() == 300


async def test_only_an_unused_token_can_be_revoked() -> None:
    world = World()
    row, _ = await world.identity.issue_token(world.owner, world.project.id, "node", "dev", 300)
    await world.identity.revoke_token(world.owner, world.project.id, row.id)
    with pytest.raises(PlexError) as raised:
        await world.identity.revoke_token(world.owner, world.project.id, row.id)
    assert raised.value.code == "token_not_revocable"
    with pytest.raises(PlexError) as raised:
        await world.identity.revoke_token(world.owner, world.project.id, uuid7())
    assert raised.value.code == "not_found"


async def test_a_list_leaves_out_what_the_caller_may_not_read_and_pages_through_the_rest() -> None:
    world = World()
    mine = []
    for number in range(30):
        row = replace(world.domain, id=uuid7(), slug=f"d{number}")
        world.store.domain_rows[row.id] = row
        if number % 3 == 0:
            mine.append(row.id)
            world.authority.granted.add((world.stranger.reference, "read", f"domain:{row.id}"))
    seen, cursor, pages = [], "", 0
    while True:
        rows, cursor, _ = await world.identity.list_domains(world.stranger, cursor, 4)
        seen += [row.id for row in rows]
        pages += 1
        if not cursor:
            break
    assert (seen, pages) == (sorted(mine), 3)


async def test_a_cursor_belongs_to_its_list_and_its_caller() -> None:
    world = World()
    _, cursor, _ = await world.identity.list_domains(world.owner, "", 1)
    cases: dict[str, Callable[[], Awaitable[object]]] = {
        "cursor_binding_mismatch": lambda: world.identity.list_domains(world.stranger, cursor, 1),
        "invalid_cursor": lambda: world.identity.list_projects(world.owner, None, cursor, 1),
    }
    for code, attempt in cases.items():
        with pytest.raises(PlexError) as raised:
            await attempt()
        assert raised.value.code == code
    with pytest.raises(PlexError) as raised:
        await world.identity.list_domains(world.owner, cursor[:-2] + "AA", 1)
    assert raised.value.code == "invalid_cursor"
