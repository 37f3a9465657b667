"""What the gate and the edge refuse on its way into the chain: never unrecorded, and never as often as it is asked."""

from typing import Any

import pytest

from libs.errors import AuditUnavailable, NskInvalid, NskRevoked
from libs.ids import uuid7
from plexsphere.audit.v1 import audit_pb2
from services.gateway.gate import Refusal
from services.gateway.refusals import MOST_WAITING
from services.gateway.tests.desk import NODE, OTHER, Desk, bearer
from services.gateway.tests.fakes import BEAT, problem
from services.gateway.tests.five import Bench

pytestmark = pytest.mark.unit


async def test_refusals_are_counted_and_recorded_once_a_minute(desk: Desk) -> None:
    bench = desk.bench
    subject = f"events.{bench.mesh.domain}.domain.{bench.mesh.domain}.action_request"
    for _ in range(1000):
        bench.mesh.put(b"{", subject, logged=False)
    bench.mesh.put(b"{", f"events.{uuid7()}.domain.{uuid7()}.action_request", logged=False)
    bench.mesh.put(b"{", f"events.{uuid7()}.domain.{uuid7()}.action_request", logged=False)
    bench.mesh.put(b"{", "events.nonsense", logged=False)
    await bench.read()
    await bench.refusals.report()
    rows = {(row.domain_id, *row.context["mesh"]) for row in bench.audit.rows.values()}
    assert rows == {(str(bench.mesh.domain), "parse"), ("", "parse"), ("", "subject")}
    assert len(bench.audit.rows) == 3
    assert {row.reason for row in bench.audit.rows.values()} == {"caveat_violation"}


async def test_a_refusal_that_cannot_be_recorded_waits(desk: Desk) -> None:
    bench = desk.bench
    bench.mesh.put(b"{", "events.nonsense", logged=False)
    await bench.read()
    bench.audit.down = True
    with pytest.raises(AuditUnavailable):
        await bench.refusals.report()
    bench.audit.down = False
    await bench.refusals.report()
    assert len(bench.audit.rows) == 1


async def test_a_flood_of_made_up_domains_hides_no_reason() -> None:
    bench, quiet = Bench(), Bench().mesh
    bench.mesh.trusts |= quiet.trusts
    bench.refusals.learn(bench.mesh.domain)
    for sequence in range(2 * MOST_WAITING):
        bench.refusals.add(Refusal(sequence, uuid7(), "parse"))
    bench.refusals.add(Refusal(1, bench.mesh.domain, "nonce_replayed"))
    # Of this one nobody has heard yet; the platform's row has its reason at least.
    bench.refusals.add(Refusal(2, quiet.domain, "signature"))
    await bench.refusals.report()
    rows = {(row.domain_id, *row.context["mesh"]) for row in bench.audit.rows.values()}
    assert rows == {("", "parse"), (str(bench.mesh.domain), "nonce_replayed"), ("", "signature")}


# Denials of nodes -----------------------------------------------------------------------------------------------------


def rows(desk: Desk) -> list[audit_pb2.AppendRequest]:
    return [request for name, request, _ in desk.peer.asked if name == "Append"]


def row_of(request: audit_pb2.AppendRequest) -> tuple[str, str, str, str, str]:
    (code,) = request.caveat_context[request.action.removeprefix("node.")].names
    return (request.domain_id, request.action, request.subject_id, request.object_id, code)


OPERATIONS = [
    ("GET", "events", None, "node.events"),
    ("GET", "state", None, "node.state"),
    ("POST", "heartbeat", BEAT, "node.heartbeat"),
    ("PUT", "endpoint", {"endpoint": "192.0.2.1:1", "nat_type": "none"}, "node.endpoint"),
]


@pytest.mark.parametrize(("method", "what", "body", "action"), OPERATIONS)
async def test_another_nodes_path_is_recorded_once_a_minute_however_often(
    desk: Desk, method: str, what: str, body: Any, action: str
) -> None:
    for _ in range(20):
        answer = await desk.client.request(method, f"/v1/nodes/{OTHER}/{what}", headers=bearer(NODE), json=body)
        assert await problem(answer) == (403, "node_id_mismatch")
    assert {row_of(row) for row in rows(desk)} == {
        (str(desk.bench.mesh.domain), action, str(NODE), str(OTHER), "node_id_mismatch")
    }
    # A minute may have ended meanwhile.
    assert len(rows(desk)) <= 2


async def test_no_relation_and_no_node_are_recorded(desk: Desk) -> None:
    desk.bench.fleet.refused = {NODE}
    await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    desk.bench.fleet.refused, desk.bench.fleet.places = set(), {}
    await desk.client.get(f"/v1/nodes/{NODE}/events", headers=bearer(NODE))
    about = (str(desk.bench.mesh.domain), "node.events", str(NODE), str(NODE))
    assert [row_of(row) for row in rows(desk)] == [(*about, "permission_denied"), (*about, "not_found")]


async def test_a_bearer_that_is_none_any_more_is_recorded_in_its_domain_and_a_made_up_one_in_the_platforms(
    desk: Desk,
) -> None:
    domain = str(uuid7())
    for error in (NskRevoked(domain_id=domain), NskInvalid()):

        def authenticate(_: Any, error: Exception = error) -> Any:
            raise error

        desk.peer.answers["Authenticate"] = authenticate
        for node in (NODE, OTHER):
            answer = await desk.client.get(f"/v1/nodes/{node}/events", headers=bearer(node))
            assert answer.status == 401
    found = [row_of(row) for row in rows(desk)]
    assert found[:2] == [(domain, "node.events", str(node), str(node), "nsk_revoked") for node in (NODE, OTHER)]
    # Anybody can make up bearers: one row for all.
    assert found[2:3] == [("", "node.events", "", str(NODE), "nsk_invalid")]
    assert len(found) <= 4


async def test_a_denial_that_cannot_be_recorded_does_not_leave(desk: Desk) -> None:
    desk.peer.answers["Append"] = lambda _: (_ for _ in ()).throw(AuditUnavailable())
    answer = await desk.client.get(f"/v1/nodes/{OTHER}/events", headers=bearer(NODE))
    assert await problem(answer) == (503, "event_stream_unavailable")
    answer = await desk.client.get(f"/v1/nodes/{OTHER}/state", headers=bearer(NODE))
    assert await problem(answer) == (503, "audit_unavailable")
