"""F-4: without whom it takes to decide, to record or to sign, there is no session; without the bus it is told later."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.faults.test_legs import gone
from tests.e2e.freeze import frozen
from tests.e2e.outside import Answer, Edge
from tests.e2e.threats.access.conftest import Stage, no_token
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

Away = Callable[[World, str], AbstractAsyncContextManager[None]]
# What the caller hears, and what the chain holds: a decision that was granted before somebody was missed stands.
LEGS: dict[str, tuple[set[str], list[str]]] = {
    "spicedb": ({"authz_unavailable"}, []),
    "identity": ({"authz_unavailable", "unavailable"}, []),
    "audit": ({"audit_unavailable"}, []),
    "openbao": ({"signing_unavailable"}, ["granted"]),
    "postgres": ({"authz_unavailable", "datastore_unavailable", "unavailable"}, []),
    "access": ({"unavailable"}, []),
}
CASES: list[tuple[str, Away]] = [*((leg, gone) for leg in LEGS), ("audit", frozen), ("openbao", frozen)]


async def comes_back(stage: Stage, edge: Edge) -> None:
    """Ask until a session is issued: what comes back must never look like a denial."""
    answers: list[Answer] = []

    async def issued() -> bool:
        answers.append(await stage.issue(edge))
        assert answers[-1].status in {201, 503}, answers[-1].body
        return answers[-1].status == 201

    await eventually(issued)
    await stage.granted_once(answers[-1])


@pytest.mark.parametrize(("leg", "away"), CASES)
async def test_without_a_leg_nothing_is_issued(stage: Stage, leg: str, away: Away) -> None:
    codes, rows = LEGS[leg]
    person = await stage.person()
    # The edge remembers her, so that the request gets as far as it can.
    await stage.granted_once(await stage.issue(person.edge))
    before = await stage.traces()
    async with away(stage.world, leg):
        answer = await stage.issue(person.edge)
    await stage.reconnect()
    assert (answer.status, answer.code in codes) == (503, True), answer.body
    no_token(answer)
    await comes_back(stage, person.edge)
    after = await stage.traces()
    assert (len(after.sessions), after.places) == (len(before.sessions) + 1, 0)
    assert [row["reason"] for row in await stage.rows(answer)] == rows
    await stage.consistent()


@pytest.mark.parametrize("leg", ["mesh", "nats"])
async def test_without_the_bus_a_session_is_issued_and_the_node_told_later(stage: Stage, leg: str) -> None:
    person = await stage.person()
    async with stage.listen() as node:
        async with gone(stage.world, leg):
            issued = await stage.issue(person.edge)
            session_id = await stage.granted_once(issued)
            await stage.revoke(person.edge, issued)
            # Nobody has to be told for it to be true.
            assert str(await stage.report(session_id)) == "409 session_already_revoked"

        def told() -> list[str]:
            about = [one.envelope for one in node.heard if one.envelope["payload"].get("session_id") == session_id]
            return list(dict.fromkeys(envelope["type"] for envelope in about))

        async def both() -> bool:
            return len(told()) == 2

        await eventually(both)
    assert told() == ["session_setup", "session_revoked"]


async def test_without_a_row_nothing_is_revoked(stage: Stage) -> None:
    person = await stage.person()
    session_id = await stage.granted_once(await stage.issue(person.edge))
    path, body = stage.path(session_id, "/revoke"), {"revoke_reason": "operator_request"}
    async with gone(stage.world, "audit"):
        assert str(await person.edge.call("POST", path, body)) == "503 audit_unavailable"
    assert (await stage.report(session_id)).status == 204
    revoked: list[Answer] = []

    async def done() -> bool:
        revoked.append(await person.edge.call("POST", path, body))
        return revoked[-1].status == 204

    await eventually(done)
    assert (await stage.row(revoked[-1]))["context"]["revoked"] == ["operator_request"]
    assert str(await stage.report(session_id)) == "409 session_already_revoked"
