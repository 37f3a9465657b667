"""Operators' side: permissions, one row each before the effect, and crashes between OpenBao and PostgreSQL."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID

import pytest

from libs.custody import Secret
from libs.errors import (
    AuditUnavailable,
    AuthzUnavailable,
    Forbidden,
    InvalidCursor,
    NotFound,
    OpenbaoUnavailable,
    PlexError,
    PreconditionFailed,
    SecretNotFound,
    SecretVersionNotFound,
)
from libs.ids import uuid7
from services.secrets.administration import LEFT_BEHIND
from services.secrets.model import Place, SecretRow
from services.secrets.tests.fakes import World

pytestmark = pytest.mark.unit

Act = Callable[[World], Awaitable[object]]
NAME = "db-password"
HOME = str(uuid7())


def put(world: World, name: str = NAME, expected: int = 2, value: bytes = b"new") -> Awaitable[int]:
    return world.admin.put(world.operator, world.project, name, Secret(value), expected)


ACTIONS: dict[str, tuple[Act, str, set[str]]] = {
    # action: how, the permission that it needs, the effects that may follow its row
    "secret.put": (put, "manage", {"begin_put", "vault_write", "settle"}),
    "secret.list": (lambda w: w.admin.page(w.operator, w.project, "", 10), "read", set()),
    "secret.destroy": (
        lambda w: w.admin.destroy(w.operator, w.project, NAME),
        "manage",
        {"begin_destroy", "revoke_readers", "vault_destroy"},
    ),
    "secret.destroy_version": (
        lambda w: w.admin.destroy_version(w.operator, w.project, NAME, 1),
        "manage",
        {"note", "vault_destroy_version", "tell"},
    ),
    "reader.grant": (lambda w: w.admin.grant(w.operator, w.project, NAME, w.node), "manage", {"note", "grant", "tell"}),
    "reader.revoke": (
        lambda w: w.admin.revoke(w.operator, w.project, NAME, w.node),
        "manage",
        {"note", "revoke", "tell"},
    ),
}


async def test_readers_are_told_of_every_change_and_of_nothing_else() -> None:
    world = World()
    await world.admin.grant(world.operator, world.project, NAME, world.node)
    await put(world)
    with pytest.raises(PreconditionFailed):
        await put(world)
    await world.admin.destroy_version(world.operator, world.project, NAME, 1)
    await world.admin.revoke(world.operator, world.project, NAME, world.node)
    await put(world, expected=3)
    await world.admin.grant(world.operator, world.project, NAME, world.node)
    await world.admin.destroy(world.operator, world.project, NAME)
    assert [reason for node, reason in world.store.told if node == world.node] == [
        "secret_granted", "secret_updated", "secret_destroyed", "secret_revoked", "secret_granted", "secret_destroyed",
    ]  # fmt: skip


@pytest.mark.parametrize(("action", "act", "effects"), [(a, how, e) for a, (how, _, e) in ACTIONS.items()])
async def test_one_row_before_the_effect(action: str, act: Act, effects: set[str]) -> None:
    world = World()
    await act(world)
    assert [(row.action, row.reason, row.domain_id) for row in world.audit.rows] == [
        (action, "granted", str(world.domain))
    ]
    before, after = world.trace[: world.trace.index("audit")], world.trace[world.trace.index("audit") + 1 :]
    assert not effects & set(before)
    assert effects == set(after)


@pytest.mark.parametrize(("act", "effects"), [(how, e) for how, _, e in ACTIONS.values()], ids=ACTIONS)
async def test_no_row_no_effect(act: Act, effects: set[str]) -> None:
    world = World()
    world.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await act(world)
    assert not effects & set(world.trace)


@pytest.mark.parametrize(("action", "act", "permission"), [(a, how, p) for a, (how, p, _) in ACTIONS.items()])
@pytest.mark.parametrize("exists", [True, False])
async def test_who_lacks_the_relation_learns_nothing(action: str, act: Act, permission: str, *, exists: bool) -> None:
    world = World()
    world.relations.granted.discard((world.operator.reference, permission, f"project:{world.project}"))
    if not exists:
        world.fleet.projects.clear()
    world.operator = replace(world.operator, domain_id=HOME)
    with pytest.raises(Forbidden) as refused:
        await act(world)
    assert refused.value.extra == {"reason": "out_of_scope", "relation_path": []}
    # A stranger's own chain has it, whether there is such a project or not.
    assert [(row.domain_id, row.action, row.reason, row.relation) for row in world.audit.rows] == [
        (HOME, action, "out_of_scope", permission)
    ]


async def test_versions_count_from_one_and_a_stale_write_changes_nothing() -> None:
    world = World()
    assert await put(world, "fresh", 0, b"a") == 1
    assert await put(world, "fresh", 1, b"b") == 2
    for stale in (0, 1, 3):
        with pytest.raises(PreconditionFailed):
            await put(world, "fresh", stale, b"c")
    row = await world.store.find(world.project, "fresh")
    assert row is not None
    assert world.vault.values[row.id] == [b"a", b"b"]


@pytest.mark.parametrize("stop", ["before the value", "after the value"])
@pytest.mark.parametrize(("name", "expected"), [("fresh", 0), (NAME, 2)])
async def test_a_crash_in_a_write_leaves_nothing_half_done(stop: str, name: str, expected: int) -> None:
    world = World()
    world.vault.refusal = OpenbaoUnavailable()
    with pytest.raises(OpenbaoUnavailable):
        await put(world, name, expected)
    world.vault.refusal = None
    row = await world.store.find(world.project, name)
    assert row is not None
    assert (row.current_version, row.pending_version) == (expected, expected + 1)
    if stop == "after the value":
        world.vault.values.setdefault(row.id, []).append(b"crashed")
    listed = {
        row.name: row.current_version for row in (await world.admin.page(world.operator, world.project, "", 9)).rows
    }
    if stop == "before the value":
        assert listed.get(name, 0) == expected
        assert await put(world, name, expected) == expected + 1
    else:
        assert listed[name] == expected + 1
        with pytest.raises(PreconditionFailed):
            await put(world, name, expected)
        assert await put(world, name, expected + 1) == expected + 2


async def test_what_a_crash_left_behind_is_finished_without_being_asked_for() -> None:
    world = World()
    world.store.rows[world.row.id] = replace(world.row, pending_version=3)
    world.vault.values[world.row.id].append(b"three")
    assert await world.admin.finish_left_behind() == 1
    assert world.store.idle == LEFT_BEHIND
    assert world.store.rows[world.row.id] == replace(world.row, current_version=3)
    world.store.rows[world.row.id] = replace(world.row, destroying=True)
    await world.admin.finish_left_behind()
    assert (world.store.rows, world.vault.values) == ({}, {})


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("reader.grant", "secret_granted"),
        ("reader.revoke", "secret_revoked"),
        ("secret.destroy_version", "secret_destroyed"),
    ],
)
async def test_whom_a_change_concerns_is_told_after_it_and_also_when_nobody_knows_whether_it_was_made(
    action: str, reason: str
) -> None:
    world, act = World(), ACTIONS[action][0]
    world.relations.unwritable, world.vault.refusal = AuthzUnavailable(), OpenbaoUnavailable()
    with pytest.raises((AuthzUnavailable, OpenbaoUnavailable)):
        await act(world)
    assert world.store.told == []
    assert await world.admin.finish_left_behind() == 1
    assert await world.admin.finish_left_behind() == 0
    assert (world.store.told, world.store.idle) == ([(world.node, reason)], LEFT_BEHIND)
    world.relations.unwritable = world.vault.refusal = None
    await act(world)
    assert world.trace.index("note") < world.trace.index("tell")
    assert world.trace[-1] == "tell"
    assert world.store.told[1:] == [(world.node, reason)]


async def test_a_write_that_lost_the_race_is_refused_and_the_winner_stands() -> None:
    world = World()
    world.vault.before = lambda _: world.vault.values[world.row.id].append(b"winner")
    with pytest.raises(PreconditionFailed):
        await put(world)
    assert world.vault.values[world.row.id][-1] == b"winner"
    assert world.store.rows[world.row.id].current_version == 3


async def test_a_destroyed_secret_is_gone_with_its_grants_and_its_name_is_free_again() -> None:
    world = World()
    world.vault.refusal = OpenbaoUnavailable()
    with pytest.raises(OpenbaoUnavailable):
        await world.admin.destroy(world.operator, world.project, NAME)
    assert (await world.admin.page(world.operator, other_project(world), "", 9)).rows == ()
    world.vault.refusal = None
    # The destruction that was begun is finished by the next one who meets the name.
    assert await put(world, NAME, 0, b"reborn") == 1
    row = await world.store.find(world.project, NAME)
    assert row is not None
    assert row.id != world.row.id
    assert not [grant for grant in world.relations.granted if grant[2].startswith("secret:")]
    assert world.vault.values == {row.id: [b"reborn"]}


def other_project(world: World) -> UUID:
    """Return another project of the operator, so that listing does not itself finish what was begun."""
    other = uuid7()
    world.fleet.projects[other] = Place(other, world.domain)
    world.relations.granted.add((world.operator.reference, "read", f"project:{other}"))
    return other


MISSING: list[tuple[str, Act, type[PlexError]]] = [
    ("no such secret", lambda w: w.admin.destroy(w.operator, w.project, "nothing"), SecretNotFound),
    ("no such name", lambda w: w.admin.destroy(w.operator, w.project, "../x"), SecretNotFound),
    ("version 0", lambda w: w.admin.destroy_version(w.operator, w.project, NAME, 0), SecretVersionNotFound),
    ("version to come", lambda w: w.admin.destroy_version(w.operator, w.project, NAME, 3), SecretVersionNotFound),
    ("no such node", lambda w: w.admin.grant(w.operator, w.project, NAME, uuid7()), NotFound),
    ("node of another project", lambda w: elsewhere(w, "grant"), NotFound),
    ("revoke in another project", lambda w: elsewhere(w, "revoke"), NotFound),
]


async def elsewhere(world: World, verb: str) -> None:
    world.fleet.nodes[world.node] = Place(uuid7(), world.domain)
    await getattr(world.admin, verb)(world.operator, world.project, NAME, world.node)


@pytest.mark.parametrize(("act", "error"), [m[1:] for m in MISSING], ids=[m[0] for m in MISSING])
async def test_what_is_not_there_gets_no_row(act: Act, error: type[PlexError]) -> None:
    world = World()
    with pytest.raises(error):
        await act(world)
    assert world.audit.rows == []


async def test_pages_end_and_belong_to_their_caller() -> None:
    world = World()
    for name in ("a", "b", "c", "d"):
        row = SecretRow(uuid7(), world.domain, world.project, name, current_version=1)
        world.store.rows[row.id] = row
    first = await world.admin.page(world.operator, world.project, "", 3)
    second = await world.admin.page(world.operator, world.project, first.following, 3)
    assert [row.name for row in (*first.rows, *second.rows)] == ["a", "b", "c", "d", NAME]
    assert first.following
    assert second.following == ""
    stranger = replace(world.operator, subject=str(uuid7()))
    world.relations.granted.add((stranger.reference, "read", f"project:{world.project}"))
    with pytest.raises(InvalidCursor):
        await world.admin.page(stranger, world.project, first.following, 3)
