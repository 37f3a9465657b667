"""Sessions at the edge: what is asked of access, how it is written, and what is refused before or after."""

import base64
import datetime
from typing import Any

import pytest

from libs import errors
from plexsphere.access.v1 import access_pb2 as pb
from plexsphere.mesh.v1 import mesh_pb2
from services.gateway.tests.fakes import NODE, NODE_ID, OPERATOR, OTHER, Client, FakePeer, problem

pytestmark = pytest.mark.unit

SESSION = "01900000-0000-7000-8000-000000000003"
SESSIONS = f"/v1/projects/{OTHER}/sessions"
ONE = f"{SESSIONS}/{SESSION}"
CALLBACK = f"/v1/nodes/{NODE_ID}/sessions/{SESSION}"
KID = "sek_" + "0" * 32
AT = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
SSH = {"ssh": {"user": "root", "allowed_commands": ["uptime"]}}
WISH: dict[str, Any] = {"resource_id": OTHER, "kind": "ssh", "target": SSH}
SHOWN = {
    "id": SESSION,
    "project_id": OTHER,
    "domain_id": OTHER,
    "resource_id": OTHER,
    "identity_id": OTHER,
    "kind": "ssh",
    "status": "active",
    "issued_at": "2026-05-01T12:00:00Z",
    "expires_at": "2026-05-01T12:15:00Z",
    "last_active_at": "2026-05-01T12:00:00Z",
    "target": SSH,
}
UPGRADE = {"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"}


def row(**more: Any) -> pb.Session:
    plain: dict[str, Any] = dict.fromkeys(("project_id", "domain_id", "resource_id", "identity_id"), OTHER)
    target = pb.Target(ssh=pb.SshTarget(user="root", allowed_commands=["uptime"]))
    made = pb.Session(**(plain | {"id": SESSION, "kind": "ssh", "status": "active", "target": target} | more))
    made.issued_at.FromDatetime(AT)
    made.last_active_at.FromDatetime(AT)
    made.expires_at.FromDatetime(AT + datetime.timedelta(minutes=15))
    return made


def refuse(error: errors.PlexError) -> Any:
    def answer(_: Any) -> Any:
        raise error

    return answer


async def test_a_session_is_issued_with_its_place_and_token(edge: Client, peer: FakePeer) -> None:
    peer.answers["IssueSession"] = lambda _: pb.IssueSessionResponse(session=row(), token="t.o.k")
    wish = WISH | {"requested_ttl_seconds": 2**40, "idempotency_key": "k"}
    answer = await edge.post(SESSIONS, json=wish, headers=OPERATOR)
    assert (answer.status, answer.headers["Location"], answer.headers["Cache-Control"]) == (201, ONE, "no-store")
    wanted = {"session_id": SESSION, "token": "t.o.k", "expires_at": SHOWN["expires_at"], "session": SHOWN}
    assert await answer.json() == wanted
    request, _ = peer.last("IssueSession")
    assert (request.project_id, request.requested_ttl_seconds, request.idempotency_key) == (OTHER, 2**31 - 1, "k")
    assert peer.last("Authenticate")[0].audience == "access"


@pytest.mark.parametrize(
    ("kind", "target"),
    [("k8s", {"k8s": {"user": "a", "impersonate_groups": ["g"]}}), ("tcp", {"tcp": {"host": "db", "port": 22}})],
)
async def test_a_target_there_and_back(edge: Client, peer: FakePeer, kind: str, target: Any) -> None:
    peer.answers["IssueSession"] = lambda request: pb.IssueSessionResponse(
        session=row(kind=request.kind, target=request.target), token="t"
    )
    answer = await edge.post(SESSIONS, json={"resource_id": OTHER, "kind": kind, "target": target}, headers=OPERATOR)
    assert (await answer.json())["session"]["target"] == target


@pytest.mark.parametrize("target", [{}, SSH | {"tcp": {"host": "a", "port": 1}}, {"rdp": {}}])
async def test_a_target_has_exactly_one_variant(edge: Client, target: Any) -> None:
    assert await problem(await edge.post(SESSIONS, json=WISH | {"target": target}, headers=OPERATOR)) == (
        400,
        "invalid_target",
    )


@pytest.mark.parametrize(
    ("extra", "challenge"),
    [
        ({"acr_values": ["urn:mfa", "urn:phr"], "max_age_s": None}, ', acr_values="urn:mfa urn:phr"'),
        ({"acr_values": [], "max_age_s": 300}, ', max_age="300"'),
        ({"acr_values": ["urn:mfa"], "max_age_s": 0}, ', acr_values="urn:mfa", max_age="0"'),
        ({"acr_values": [], "max_age_s": None}, ""),
    ],
)
async def test_a_step_up_refusal_carries_the_challenge_that_helps(
    edge: Client, peer: FakePeer, extra: dict[str, Any], challenge: str
) -> None:
    peer.answers["IssueSession"] = refuse(errors.StepUpRequired(missing=["amr_missing"], **extra))
    answer = await edge.post(SESSIONS, json=WISH, headers=OPERATOR)
    assert await problem(answer) == (401, "step_up_required")
    assert answer.headers["WWW-Authenticate"] == f'Bearer error="insufficient_user_authentication"{challenge}'


async def test_a_limit_names_its_dimension_and_no_time(edge: Client, peer: FakePeer) -> None:
    peer.answers["IssueSession"] = refuse(errors.SessionLimitExceeded("too many sessions: node", dimension="node"))
    answer = await edge.post(SESSIONS, json=WISH, headers=OPERATOR)
    body = await answer.json(content_type=None)
    assert (answer.status, body["code"], body["dimension"]) == (429, "session_limit_exceeded", "node")
    assert "node" in body["detail"]
    assert "Retry-After" not in answer.headers


async def test_sessions_are_listed_shown_and_revoked(edge: Client, peer: FakePeer) -> None:
    peer.answers["ListSessions"] = lambda _: pb.ListSessionsResponse(sessions=[row()], next_cursor="c")
    query = {"status": "active", "kind": "ssh", "identity_id": OTHER, "limit": "1"}
    listed = await edge.get(SESSIONS, params=query, headers=OPERATOR)
    assert await listed.json() == {"items": [SHOWN], "next_cursor": "c"}
    request, _ = peer.last("ListSessions")
    assert (request.status, request.kind, request.identity_id, request.limit) == ("active", "ssh", OTHER, 1)
    revoked = row(status="revoked", revoke_reason="operator_request")
    revoked.revoked_at.FromDatetime(AT)
    peer.answers["GetSession"] = lambda _: pb.GetSessionResponse(session=revoked)
    shown = await (await edge.get(ONE, headers=OPERATOR)).json()
    assert (shown["status"], shown["revoked_at"], shown["revoke_reason"]) == (
        "revoked", "2026-05-01T12:00:00Z", "operator_request",
    )  # fmt: skip
    peer.answers["RevokeSession"] = lambda _: pb.RevokeSessionResponse()
    done = await edge.post(f"{ONE}/revoke", json={"revoke_reason": "policy_violation"}, headers=OPERATOR)
    assert (done.status, await done.read()) == (204, b"")
    assert peer.last("RevokeSession")[0].reason == "policy_violation"
    wrong = await edge.post(f"{ONE}/revoke", json={"revoke_reason": "ttl_expired"}, headers=OPERATOR)
    assert await problem(wrong) == (400, "invalid_body")


async def test_attaching_needs_a_websocket_and_then_access_says_no(edge: Client, peer: FakePeer) -> None:
    plain = await edge.get(f"{ONE}/attach", headers=OPERATOR)
    assert await problem(plain) == (426, "upgrade_required")
    assert plain.headers["Upgrade"] == "websocket"
    for error in (errors.SessionNotActive(), errors.SessionNotSsh(), errors.AttachNotProvisioned()):
        peer.answers["AttachSession"] = refuse(error)
        answer = await edge.get(f"{ONE}/attach", headers=OPERATOR | UPGRADE)
        assert await problem(answer) == (error.http, error.code)


async def test_a_node_reports_one_kind(edge: Client, peer: FakePeer) -> None:
    peer.answers["ReportActivity"] = lambda _: pb.ReportActivityResponse()
    done = await edge.post(CALLBACK, json={"ssh": {"command": "uptime"}}, headers=NODE)
    assert (done.status, await done.read()) == (204, b"")
    request, _ = peer.last("ReportActivity")
    assert (request.node_id, request.session_id, request.kind) == (NODE_ID, SESSION, "ssh")
    assert request.report == '{"command": "uptime"}'
    wrong: list[dict[str, Any]] = [{}, {"ssh": {"command": "a"}, "k8s": {"verb": "get"}}, {"rdp": {}}]
    for body in wrong:
        assert await problem(await edge.post(CALLBACK, json=body, headers=NODE)) == (400, "invalid_body")
    elsewhere = await edge.post(f"/v1/nodes/{OTHER}/sessions/{SESSION}", json={}, headers=NODE)
    assert await problem(elsewhere) == (403, "nsk_node_mismatch")
    assert peer.last("Append")[0].action == "node.session"


def session_key(kid: str = KID) -> pb.SessionKey:
    made = pb.SessionKey(kid=kid, public_key=b"\xff" * 32)
    made.created_at.FromDatetime(AT)
    return made


async def test_verifying_keys_are_published_to_everybody(edge: Client, peer: FakePeer) -> None:
    peer.answers["ListVerifyingKeys"] = lambda _: pb.ListVerifyingKeysResponse(keys=[session_key()])
    answer = await edge.get(f"/v1/domains/{OTHER}/jwks.json")
    x = base64.urlsafe_b64encode(b"\xff" * 32).decode().rstrip("=")
    known = {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": KID, "alg": "EdDSA", "use": "sig"}
    assert (answer.status, await answer.json()) == (200, {"keys": [known]})
    peer.answers["ListVerifyingKeys"] = refuse(errors.NotFound())
    assert await problem(await edge.get(f"/v1/domains/{OTHER}/jwks.json")) == (404, "not_found")


async def test_session_keys_stand_beside_event_keys_each_asked_of_its_own_service(edge: Client, peer: FakePeer) -> None:
    path = f"/v1/domains/{OTHER}/signing-keys"
    event = mesh_pb2.SigningKey(kid="evk_" + "1" * 32, public_key=b"k" * 32)
    peer.answers["ListSigningKeys"] = lambda _: mesh_pb2.ListSigningKeysResponse(keys=[event])
    peer.answers["ListSessionKeys"] = lambda _: pb.ListSessionKeysResponse(keys=[session_key()])
    items = (await (await edge.get(path, headers=OPERATOR)).json())["items"]
    assert [(item["use"], item["key_id"][:4]) for item in items] == [("event", "evk_"), ("session", "sek_")]
    audiences = [request.audience for name, request, _ in peer.asked if name == "Authenticate"]
    assert audiences == ["mesh", "access"]
    peer.answers["RotateSessionKey"] = lambda _: pb.RotateSessionKeyResponse(key=session_key())
    rotated = await edge.post(f"{path}/rotate", json={"use": "session", "transition_seconds": 60}, headers=OPERATOR)
    assert ((await rotated.json())["use"], peer.last("RotateSessionKey")[0].transition_seconds) == ("session", 60)
    answer = pb.RevokeSessionKeyResponse(revoked=session_key(), current=session_key("sek_" + "2" * 32))
    peer.answers["RevokeSessionKey"] = lambda _: answer
    revoked = await edge.post(f"{path}/{KID}/revoke", headers=OPERATOR)
    assert (await revoked.json())["current"]["key_id"] == "sek_" + "2" * 32
    assert peer.last("RevokeSessionKey")[0].kid == KID
