"""The nodes' state, endpoints and mesh keys at the edge: what services are asked, and what callers get."""

import base64
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from libs import errors
from plexsphere.identity.v1 import enrolment_pb2 as pb
from services.gateway.document import FOLDER
from services.gateway.tests.fakes import (
    BEAT,
    BROWSER,
    COOKIES,
    HEARTBEAT,
    NODE,
    NODE_ID,
    OPERATOR,
    OTHER,
    Client,
    FakePeer,
    problem,
)

pytestmark = pytest.mark.unit

PUBLISHED = json.loads((FOLDER / "published.json").read_text())
KEY = base64.b64encode(b"k" * 32).decode()
STATE, ENDPOINT = f"/v1/nodes/{NODE_ID}/state", f"/v1/nodes/{NODE_ID}/endpoint"
ROTATE, PREVIEW = f"/v1/nodes/{NODE_ID}/keys/rotate", f"/v1/nodes/{NODE_ID}/keys/rotate/preview"
REPORT = {"endpoint": "203.0.113.7:443", "nat_type": "symmetric", "reported_at": "2026-05-01T12:00:00Z"}


def conforms(body: Any, schema: str) -> None:
    Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": PUBLISHED["components"]}).validate(
        body
    )


def refusing(error: errors.PlexError) -> Any:
    def refuse(_: Any) -> Any:
        raise error

    return refuse


def snapshot() -> pb.GetStateResponse:
    answer = pb.GetStateResponse(
        peers=[
            pb.Peer(node_id=OTHER, mesh_ip="10.1.0.2", public_key=b"k" * 32),
            pb.Peer(node_id=NODE_ID, mesh_ip="10.1.0.3", public_key=b"l" * 32, fallback_endpoint="203.0.113.7:443"),
        ],
        policy=pb.Policy(revision_id=OTHER, fingerprint=b"f" * 32),
        reachability=pb.Reachability(state=pb.REACHABILITY_STATE_STALE),
    )
    answer.reachability.changed_at.FromSeconds(1_800_000_000)
    return answer


async def test_a_state_has_every_block_and_is_the_same_bytes_again(edge: Client, peer: FakePeer) -> None:
    peer.answers["GetState"] = lambda _: snapshot()
    answers = [await edge.get(STATE, headers=NODE) for _ in range(2)]
    first, again = [await answer.read() for answer in answers]
    assert (answers[0].status, first) == (200, again)
    body = json.loads(first)
    conforms(body, "NodeStateSnapshot")
    assert body == {
        "peers": [
            {"node_id": OTHER, "mesh_ip": "10.1.0.2", "public_key": KEY},
            {
                "node_id": NODE_ID, "mesh_ip": "10.1.0.3", "public_key": base64.b64encode(b"l" * 32).decode(),
                "fallback_endpoint": "203.0.113.7:443",
            },
        ],
        "policy": {"revision_id": OTHER, "fingerprint": base64.b64encode(b"f" * 32).decode(), "rules": []},
        "bridge": {},
        "state": {"metadata": [], "data": [], "reports": []},
        "reports": {"metadata": [], "data": [], "reports": []},
        "reachability": {"state": "stale", "changed_at": "2027-01-15T08:00:00Z"},
    }  # fmt: skip
    request, metadata = peer.last("GetState")
    assert request.node_id == NODE_ID
    assert metadata["x-plexsphere-principal"]
    assert peer.last("Authenticate")[0].audience == "identity"


async def test_a_node_alone_has_an_empty_list_of_peers(edge: Client, peer: FakePeer) -> None:
    alone = snapshot()
    del alone.peers[:]
    peer.answers["GetState"] = lambda _: alone
    assert (await (await edge.get(STATE, headers=NODE)).json())["peers"] == []


async def test_a_state_does_not_need_the_five_ports(edge: Client, peer: FakePeer) -> None:
    peer.answers["GetState"] = lambda _: snapshot()
    events = await edge.get(f"/v1/nodes/{NODE_ID}/events", headers=NODE)
    assert await problem(events) == (501, "signed_event_bus_not_provisioned")
    assert (await edge.get(STATE, headers=NODE)).status == 200


@pytest.mark.parametrize(
    ("path", "headers", "refusal"),
    [
        (STATE, {}, (401, "unauthorized")),
        (STATE, OPERATOR, (401, "unauthorized")),
        (STATE, COOKIES, (401, "unauthorized")),
        (f"/v1/nodes/{OTHER}/state", NODE, (403, "node_id_mismatch")),
    ],
)
async def test_a_state_is_the_nodes_own(
    edge: Client, path: str, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    assert await problem(await edge.get(path, headers=headers)) == refusal


@pytest.mark.parametrize(
    ("raised", "refusal"),
    [
        (errors.Forbidden(reason="out_of_scope"), (403, "permission_denied")),
        (errors.NotFound(), (404, "not_found")),
        (errors.AuthzUnavailable(), (503, "authz_unavailable")),
    ],
)
async def test_what_identity_refuses_a_state_with(
    edge: Client, peer: FakePeer, raised: errors.PlexError, refusal: tuple[int, str]
) -> None:
    peer.answers["GetState"] = refusing(raised)
    answer = await edge.get(STATE, headers=NODE)
    assert await problem(answer) == refusal
    # A node is told nothing about relations here.
    assert "reason" not in await answer.json(content_type=None)


async def test_a_heartbeat_says_whether_a_key_is_asked_for(edge: Client, peer: FakePeer) -> None:
    peer.answers["Heartbeat"] = lambda _: pb.HeartbeatResponse(rotate_keys=True)
    assert (await (await edge.post(HEARTBEAT, headers=NODE, json=BEAT)).json())["rotate_keys"] is True


async def test_an_endpoint_is_reported(edge: Client, peer: FakePeer) -> None:
    def take(request: pb.ReportEndpointRequest) -> pb.ReportEndpointResponse:
        answer = pb.ReportEndpointResponse(accepted_at=request.reported_at)
        answer.stale_after.FromSeconds(request.reported_at.seconds + 300)
        return answer

    peer.answers["ReportEndpoint"] = take
    answer = await edge.put(ENDPOINT, headers=NODE, json=REPORT)
    body = await answer.json()
    assert (answer.status, body) == (
        200, {"accepted_at": "2026-05-01T12:00:00Z", "stale_after": "2026-05-01T12:05:00Z"},
    )  # fmt: skip
    conforms(body, "EndpointResponse")
    request, _ = peer.last("ReportEndpoint")
    assert (request.node_id, request.endpoint, request.nat_type) == (NODE_ID, "203.0.113.7:443", "symmetric")


@pytest.mark.parametrize(
    ("path", "headers", "body", "refusal"),
    [
        (ENDPOINT, OPERATOR, REPORT, (401, "unauthorized")),
        (f"/v1/nodes/{OTHER}/endpoint", NODE, REPORT, (403, "node_id_mismatch")),
        (ENDPOINT, NODE, REPORT | {"surprise": 1}, (400, "invalid_body")),
        (ENDPOINT, NODE, REPORT | {"nat_type": "wide_open"}, (400, "invalid_body")),
        (ENDPOINT, NODE, REPORT | {"reported_at": "now"}, (400, "invalid_body")),
        (ENDPOINT, NODE, REPORT | {"endpoint": "x" * 4000}, (413, "endpoint_body_too_large")),
    ],
)
async def test_reports_that_are_refused_at_the_edge(
    edge: Client, path: str, headers: dict[str, str], body: dict[str, Any], refusal: tuple[int, str]
) -> None:
    padded = json.dumps(body) + " " * (100 if refusal[0] == 413 else 0)
    sent = headers | {"Content-Type": "application/json"}
    assert await problem(await edge.put(path, headers=sent, data=padded)) == refusal


@pytest.mark.parametrize(
    "raised",
    [
        errors.EndpointClockSkew(),
        errors.EndpointUnparseable(),
        errors.EndpointPeerNotFound(),
        errors.EndpointPeerGone(),
    ],
)
async def test_what_identity_refuses_a_report_with(edge: Client, peer: FakePeer, raised: errors.PlexError) -> None:
    peer.answers["ReportEndpoint"] = refusing(raised)
    assert await problem(await edge.put(ENDPOINT, headers=NODE, json=REPORT)) == (raised.http, raised.code)


async def test_a_node_brings_its_new_key(edge: Client, peer: FakePeer) -> None:
    receipt = pb.CompleteKeyRotationResponse(rotation_id=OTHER, kid="nsk_" + "0" * 32, wrap_key_version=3)
    peer.answers["CompleteKeyRotation"] = lambda _: receipt
    answer = await edge.post("/v1/keys/rotate", headers=NODE, json={"new_public_key": KEY})
    body = await answer.json()
    assert (answer.status, body) == (
        200, {"rotation_id": OTHER, "kid": "nsk_" + "0" * 32, "wrap_key_version": 3},
    )  # fmt: skip
    conforms(body, "KeysRotateResponse")
    assert peer.last("CompleteKeyRotation")[0].new_public_key == b"k" * 32


@pytest.mark.parametrize(
    ("headers", "body", "refusal"),
    [
        (OPERATOR, {"new_public_key": KEY}, (401, "unauthorized")),
        (COOKIES, {"new_public_key": KEY}, (401, "unauthorized")),
        (NODE, {}, (400, "invalid_body")),
        (NODE, {"new_public_key": KEY, "surprise": 1}, (400, "invalid_body")),
        (NODE, {"new_public_key": "not base64"}, (422, "keys_rotate_public_key_invalid")),
        (NODE, {"new_public_key": KEY[:-1]}, (422, "keys_rotate_public_key_invalid")),
        (NODE, {"new_public_key": "\u00e9" * 44}, (422, "keys_rotate_public_key_invalid")),
        (NODE, {"new_public_key": KEY * 100}, (413, "keys_rotate_body_too_large")),
    ],
)
async def test_keys_that_are_refused_at_the_edge(
    edge: Client, headers: dict[str, str], body: dict[str, Any], refusal: tuple[int, str]
) -> None:
    assert await problem(await edge.post("/v1/keys/rotate", headers=headers, json=body)) == refusal


@pytest.mark.parametrize(
    "raised",
    [
        errors.KeysRotateKeyInvalid(), errors.KeysRotateKeyUnchanged(), errors.KeysRotatePeerNotFound(),
        errors.KeysRotateNoPending(),
    ],
)  # fmt: skip
async def test_what_identity_refuses_a_key_with(edge: Client, peer: FakePeer, raised: errors.PlexError) -> None:
    peer.answers["CompleteKeyRotation"] = refusing(raised)
    answer = await edge.post("/v1/keys/rotate", headers=NODE, json={"new_public_key": KEY})
    assert await problem(answer) == (raised.http, raised.code)


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("headers", [OPERATOR, BROWSER])
async def test_an_operator_asks_for_a_key(
    edge: Client, peer: FakePeer, headers: dict[str, str], *, pending: bool
) -> None:
    answer_with = pb.RequestKeyRotationResponse(rotation_id=OTHER, already_pending=pending)
    peer.answers["RequestKeyRotation"] = lambda _: answer_with
    answer = await edge.post(ROTATE, headers=headers)
    body = await answer.json()
    assert (answer.status, body) == (200, {"rotation_id": OTHER, "peer_id": NODE_ID, "already_pending": pending})
    conforms(body, "RotationTriggerResponse")


async def test_an_operator_sees_whom_it_would_affect(edge: Client, peer: FakePeer) -> None:
    impact = pb.PreviewKeyRotationResponse(
        peers=[pb.AffectedPeer(node_id=OTHER, kid="nsk_1", wrap_key_version=2)], already_pending=True
    )
    impact.estimated_duration.FromMilliseconds(29_001)
    peer.answers["PreviewKeyRotation"] = lambda _: impact
    body = await (await edge.get(PREVIEW, headers=OPERATOR)).json()
    conforms(body, "RotationImpactPreview")
    assert body == {
        "node_id": NODE_ID,
        "peer_id": NODE_ID,
        "affected_peer_count": 1,
        "affected_edges": [{"peer_node_id": OTHER, "current_kid": "nsk_1", "current_wrap_key_version": 2}],
        "already_pending": True,
        "estimated_duration_seconds": 30,
    }


async def test_an_operator_sees_whether_a_node_is_heard_of(edge: Client, peer: FakePeer) -> None:
    row = pb.Reachability(state=pb.REACHABILITY_STATE_HEALTHY)
    row.changed_at.FromSeconds(1_800_000_000)
    row.last_heartbeat_at.FromSeconds(1_800_000_060)
    peer.answers["GetReachability"] = lambda _: pb.GetReachabilityResponse(reachability=row)
    body = await (await edge.get(f"/v1/nodes/{NODE_ID}/reachability", headers=OPERATOR)).json()
    conforms(body, "Reachability")
    assert body == {
        "state": "healthy", "last_heartbeat_at": "2027-01-15T08:01:00Z", "changed_at": "2027-01-15T08:00:00Z",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "headers", "refusal"),
    [
        ("POST", ROTATE, NODE, (401, "unauthenticated")),
        ("POST", ROTATE, COOKIES, (403, "csrf_token_mismatch")),
        ("GET", PREVIEW, NODE, (401, "unauthenticated")),
        ("GET", f"/v1/nodes/{NODE_ID}/reachability", NODE, (401, "unauthenticated")),
        ("GET", "/v1/nodes/nope/reachability", OPERATOR, (404, "not_found")),
        ("POST", "/v1/nodes/nope/keys/rotate", OPERATOR, (404, "not_found")),
    ],
)
async def test_operators_operations_are_theirs(
    edge: Client, method: str, path: str, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    assert await problem(await edge.request(method, path, headers=headers)) == refusal
