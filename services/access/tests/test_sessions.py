"""Sessions that are there: shown, listed, revoked, attached to, reported on, and taken from who may not have them."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from libs.errors import (
    AttachNotProvisioned,
    AuditUnavailable,
    AuthzUnavailable,
    CursorBindingMismatch,
    Forbidden,
    InvalidRequest,
    NodeUnauthorized,
    NotFound,
    NskNodeMismatch,
    PlexError,
    SessionAlreadyRevoked,
    SessionExpired,
    SessionNotActive,
    SessionNotSsh,
)
from libs.ids import uuid7
from libs.principal import Principal
from services.access.model import Session
from services.access.tests.fakes import World

pytestmark = pytest.mark.unit


async def opened(world: World, who: Principal | None = None, **more: Any) -> Session:
    return (await world.access.issue(who or world.operator, world.wish(**more))).session


def viewer(world: World, *permissions: str) -> Principal:
    who = world.person()
    world.authority.granted |= {(who.reference, one, f"project:{world.project}") for one in permissions}
    return who


def now(world: World, session: Session) -> Session:
    return world.store.sessions[session.id]


async def test_a_session_is_shown_to_its_owner_and_to_who_reads_the_project() -> None:
    world = World()
    session = await opened(world)
    for who in (world.operator, viewer(world, "read")):
        assert (await world.access.get(who, world.project, session.id)).id == session.id
    for who in (world.person(), replace(world.operator, scope=("deploy",))):
        for session_id in (session.id, uuid7()):
            with pytest.raises(Forbidden):
                await world.access.get(who, world.project, session_id)
    with pytest.raises(NotFound):
        await world.access.get(viewer(world, "read"), world.project, uuid7())
    with pytest.raises(Forbidden):
        await world.access.get(world.operator, uuid7(), session.id)


async def test_a_list_goes_on_where_it_ended_and_only_for_who_began_it() -> None:
    world = World()
    sessions = sorted([await opened(world) for _ in range(3)], key=lambda row: row.id)
    reader = viewer(world, "read")
    first = await world.access.page(reader, world.project, "", "", None, "", 2)
    assert [row.id for row in first.rows] == [sessions[2].id, sessions[1].id]
    rest = await world.access.page(reader, world.project, "", "", None, first.following, 2)
    assert ([row.id for row in rest.rows], rest.following) == ([sessions[0].id], "")
    with pytest.raises(CursorBindingMismatch):
        await world.access.page(viewer(world, "read"), world.project, "", "", None, first.following, 2)
    with pytest.raises(Forbidden):
        await world.access.page(world.operator, world.project, "", "", None, "", 2)


async def test_expiry_needs_nobody_to_be_true() -> None:
    world = World()
    session = await opened(world, ttl_s=60)
    assert session.status(world.clock.now()) == "active"
    world.clock.at = session.expires_at - timedelta(microseconds=1)
    assert now(world, session).status(world.clock.now()) == "active"
    world.clock.at = session.expires_at
    assert now(world, session).status(world.clock.now()) == "expired"
    page = await world.access.page(viewer(world, "read"), world.project, "expired", "", None, "", 2)
    assert [row.id for row in page.rows] == [session.id]


async def test_a_session_is_revoked_once_with_a_row_each_time() -> None:
    world = World()
    session = await opened(world)
    for who in (world.operator, viewer(world, "act")):
        await world.access.revoke(who, world.project, session.id, "identity_compromise")
    assert (now(world, session).status(world.clock.now()), world.store.denied) == ("revoked", {session.id})
    assert [name for name, *_ in world.store.events] == ["session_setup", "session_revoked"]
    revoked = [row for row in world.audit.rows if row.action == "session.revoke"]
    assert [(row.reason, row.context) for row in revoked] == [("granted", {"revoked": ["identity_compromise"]})] * 2


async def test_a_session_is_not_revoked_by_who_may_not_nor_without_its_row() -> None:
    world = World()
    session = await opened(world)
    home = str(uuid7())
    others = [replace(who, domain_id=home) for who in (viewer(world, "read"), replace(world.operator, scope=("read",)))]
    for reason, chain in (("out_of_scope", home), ("insufficient_relation", str(world.domain))):
        world.authority.reason = reason
        for who in others:
            for session_id in (session.id, uuid7()):
                with pytest.raises(Forbidden):
                    await world.access.revoke(who, world.project, session_id, "operator_request")
                assert (world.audit.rows[-1].action, world.audit.rows[-1].domain_id) == ("session.revoke", chain)
    with pytest.raises(NotFound):
        await world.access.revoke(viewer(world, "act"), world.project, uuid7(), "operator_request")
    world.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await world.access.revoke(world.operator, world.project, session.id, "operator_request")
    assert now(world, session).status(world.clock.now()) == "active"


async def test_attaching_comes_as_far_as_there_is_a_way() -> None:
    world = World()
    session = await opened(world)
    tcp = await opened(world, kind="tcp", target={"tcp": {"host": "db", "port": 1}})

    async def attempt(who: Principal, of: Session) -> type[PlexError]:
        with pytest.raises(PlexError) as refused:
            await world.access.attach(who, world.project, of.id)
        return type(refused.value)

    assert await attempt(world.operator, session) is AttachNotProvisioned
    assert await attempt(world.operator, tcp) is SessionNotSsh
    assert await attempt(viewer(world, "read", "act"), session) is Forbidden
    assert await attempt(world.person(), session) is Forbidden
    world.authority.granted.discard((world.operator.reference, "act", f"resource:{world.resource}"))
    assert await attempt(world.operator, session) is Forbidden
    world.clock.advance(3600)
    assert await attempt(world.operator, session) is SessionNotActive


# Nodes ------------------------------------------------------------------------------------------


async def test_a_node_reports_while_a_session_is_active_and_not_after() -> None:
    world = World()
    session = await opened(world)
    world.clock.advance(5)
    await world.activity.report(world.agent(), world.node, session.id, "ssh", {})
    assert now(world, session).last_active_at == world.clock.now()
    await world.access.revoke(world.operator, world.project, session.id, "operator_request")
    with pytest.raises(SessionAlreadyRevoked):
        await world.activity.report(world.agent(), world.node, session.id, "ssh", {})
    short = await opened(world, ttl_s=1)
    world.clock.advance(1)
    for _ in range(3):
        with pytest.raises(SessionExpired):
            await world.activity.report(world.agent(), world.node, short.id, "ssh", {})
    refused = [row for row in world.audit.rows if row.action == "session.report"]
    assert [row.context["session"] for row in refused] == [["session_already_revoked"], ["session_expired"]]


async def test_of_a_report_what_the_contract_has_is_kept_and_no_command() -> None:
    world = World()
    session = await opened(world)
    said = {"command": "mysql -pS3cret", "exit_code": 1, "started_at": "2026-05-01T12:00:00Z", "more": [1]}
    await world.activity.report(world.agent(), world.node, session.id, "ssh", said)
    tcp = await opened(world, kind="tcp", target={"tcp": {"host": "db", "port": 1}})
    said = {
        "phase": "session_ended",
        "bytes_in": 7,
        "target_host": "d\0b" * 200,
        "terminated_by": "\ud800",
        "bytes_out": [1],
    }
    await world.activity.report(world.agent(), world.node, tcp.id, "tcp", said)
    assert [(row, report) for row, _, report in world.store.reports] == [
        (session.id, {"exit_code": 1, "started_at": "2026-05-01T12:00:00Z"}),
        (tcp.id, {"phase": "session_ended", "bytes_in": 7, "target_host": ("db" * 200)[:256], "terminated_by": "?"}),
    ]


async def test_a_denied_token_is_not_taken_whatever_the_row_says() -> None:
    world = World()
    session = await opened(world)
    world.store.denied.add(session.id)
    with pytest.raises(SessionAlreadyRevoked):
        await world.activity.report(world.agent(), world.node, session.id, "ssh", {})


async def test_a_report_is_of_the_nodes_own_session_and_kind() -> None:
    world = World()
    session = await opened(world)
    with pytest.raises(InvalidRequest):
        await world.activity.report(world.agent(), world.node, session.id, "tcp", {})
    with pytest.raises(NotFound):
        await world.activity.report(world.agent(), world.node, uuid7(), "ssh", {})
    with pytest.raises(NskNodeMismatch):
        await world.activity.report(world.agent(), uuid7(), session.id, "ssh", {})
    with pytest.raises(NodeUnauthorized):
        await world.activity.report(world.operator, world.node, session.id, "ssh", {})
    other = uuid7()
    stranger = replace(world.agent(), subject=str(other), node_id=str(other))
    world.authority.granted.add((f"node:{other}", "node-agent", f"node:{other}"))
    with pytest.raises(NotFound):
        await world.activity.report(stranger, other, session.id, "ssh", {})
    world.authority.granted.clear()
    with pytest.raises(Forbidden):
        await world.activity.report(world.agent(), world.node, session.id, "ssh", {})


# Standing ------------------------------------------------------------------------------------------


async def test_who_lost_relation_or_sign_in_loses_the_session_and_nobody_else() -> None:
    world = World()
    out, gone, stays = (world.person() for _ in range(3))
    sessions = {}
    for who in (out, gone, stays):
        world.admit(who)
        sessions[who.subject] = await opened(world, who)
    world.directory.gone = set(sessions[out.subject].sign_in_ids)
    world.authority.granted.discard((gone.reference, "act", f"resource:{world.resource}"))
    assert await world.standing.look() == 2
    statuses = {who: now(world, session).status(world.clock.now()) for who, session in sessions.items()}
    assert statuses == {out.subject: "revoked", gone.subject: "revoked", stays.subject: "active"}
    revoked = {row.object_id: row.context for row in world.audit.rows if row.action == "session.revoke"}
    assert revoked == {
        str(sessions[out.subject].id): {"revoked": ["policy_violation"], "sign_in": ["ended"]},
        str(sessions[gone.subject].id): {"revoked": ["policy_violation"], "relation": ["gone"]},
    }
    assert await world.standing.look() == 0
    assert [name for name, *_ in world.store.events].count("session_revoked") == 2


async def test_one_that_cannot_be_recorded_keeps_no_other_alive() -> None:
    world = World()
    first, second = await opened(world), await opened(world)
    world.authority.granted.clear()
    world.audit.refuses = str(first.id)
    with pytest.raises(AuditUnavailable):
        await world.standing.look()
    assert [now(world, one).status(world.clock.now()) for one in (first, second)] == ["active", "revoked"]
    world.audit.refuses = ""
    assert await world.standing.look() == 1


async def test_who_hangs_up_gives_the_place_back() -> None:
    world = World()
    asking = asyncio.create_task(opened(world))
    while "audit" not in world.trace:  # noqa: ASYNC110 — the trace has no event
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert (asking.cancelled(), world.store.places, world.store.sessions) == (True, {}, {})


async def test_what_is_revoked_while_a_session_is_issued_is_looked_at_once_more() -> None:
    world = World()
    await opened(world)
    assert not world.doubt.roused.is_set()
    world.vault.before = world.doubt.rouse
    await opened(world)
    assert world.doubt.count == 2


@pytest.mark.parametrize("reason", ["caveat_violation", "insufficient_relation"])
async def test_a_condition_ends_a_session_unless_it_cannot_be_asked_about(reason: str) -> None:
    world = World()
    session = await opened(world)
    world.authority.granted.clear()
    world.authority.reason, world.authority.conditional = reason, True
    assert await world.standing.look() == 0
    # A role that ran out: what there is to know is known.
    world.authority.conditional = False
    assert await world.standing.look() == 1
    assert now(world, session).status(world.clock.now()) == "revoked"


async def test_a_session_ends_with_the_key_that_signed_it() -> None:
    world = World()
    session = await opened(world)
    world.authority.granted.add((world.operator.reference, "manage", f"domain:{world.domain}"))
    before = world.doubt.count
    await world.keys.revoke(world.operator, world.domain, session.kid)
    other = await opened(world)
    # At once, wherever it is looked at, before anything was written about it.
    with pytest.raises(SessionAlreadyRevoked):
        await world.activity.report(world.agent(), world.node, session.id, "ssh", {})
    shown = await world.access.get(world.operator, world.project, session.id)
    assert (shown.status(world.clock.now()), shown.revoke_reason) == ("revoked", "policy_violation")
    listed = await world.access.page(viewer(world, "read"), world.project, "active", "", None, "", 9)
    assert [row.id for row in listed.rows] == [other.id]
    # And then whoever hosts it hears of it.
    assert world.doubt.count == before + 1
    assert await world.standing.look() == 1
    assert (world.store.events[-1][0], world.store.denied) == ("session_revoked", {session.id})
    assert world.audit.rows[-1].context == {"revoked": ["policy_violation"], "key": ["revoked"]}
    assert await world.standing.look() == 0


async def test_a_node_that_makes_up_sessions_has_one_row() -> None:
    world = World()
    world.authority.granted.clear()
    for _ in range(5):
        with pytest.raises(Forbidden):
            await world.activity.report(world.agent(), world.node, uuid7(), "ssh", {})
        with pytest.raises(NskNodeMismatch):
            await world.activity.report(world.agent(), uuid7(), uuid7(), "ssh", {})
    assert [(row.object_type, row.context["session"]) for row in world.audit.rows] == [
        ("node", ["permission_denied"]), ("node", ["nsk_node_mismatch"]),
    ]  # fmt: skip


async def test_nothing_is_taken_without_a_row_or_while_relations_cannot_be_asked() -> None:
    world = World()
    session = await opened(world)
    world.authority.refusal = AuthzUnavailable()
    with pytest.raises(AuthzUnavailable):
        await world.standing.look()
    world.authority.refusal, world.authority.granted = None, set()
    world.audit.refusal = AuditUnavailable()
    with pytest.raises(AuditUnavailable):
        await world.standing.look()
    assert now(world, session).status(world.clock.now()) == "active"
    world.audit.refusal = None
    assert await world.standing.look() == 1
