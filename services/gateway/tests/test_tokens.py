"""What the handlers of tokens ask identity, and how they write what it answers."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs import errors
from plexsphere.identity.v1 import tokens_pb2 as pb
from services.gateway.tests.fakes import BROWSER, OPERATOR, OTHER, Client, FakePeer, problem

pytestmark = pytest.mark.unit

PLAINTEXT = "psk_dev_" + "x" * 36
WHOSE = f"user:{OTHER}"
WANTED = {"identity_ref": WHOSE, "env_prefix": "dev"}
# 2026-05-01T12:00:00Z, a Friday, and a day later.
MADE, ENDS = Timestamp(seconds=1777636800), Timestamp(seconds=1777723200)
SUNSET = "Sat, 02 May 2026 12:00:00 GMT"
PATHS = [("/v1/auth/tokens", False), ("/v1/admin/tokens", True)]
CLIENT = {"grant_type": "client_credentials", "client_id": OTHER, "client_secret": PLAINTEXT}


def a_token(**more: Any) -> pb.ApiToken:
    return pb.ApiToken(id=OTHER, env_prefix="dev", created_at=MADE, expires_at=ENDS, **more)


@pytest.mark.parametrize(("path", "as_admin"), PATHS)
async def test_a_new_token_is_shown_with_its_end(edge: Client, peer: FakePeer, path: str, as_admin: bool) -> None:  # noqa: FBT001 — read beside its name
    peer.answers["IssueApiToken"] = lambda _: pb.IssueApiTokenResponse(metadata=a_token(), plaintext=PLAINTEXT)
    answer = await edge.post(path, json=WANTED | {"identity_ref": WHOSE.replace("0a", "0A")}, headers=OPERATOR)
    assert (answer.status, answer.headers["Sunset"]) == (201, SUNSET)
    assert await answer.json() == {
        "id": OTHER, "plaintext": PLAINTEXT, "env_prefix": "dev", "expires_at": "2026-05-02T12:00:00Z",
    }  # fmt: skip
    asked, metadata = peer.last("IssueApiToken")
    assert (asked.identity_ref, asked.ttl_seconds, list(asked.scope), asked.as_admin) == (WHOSE, 0, [], as_admin)
    assert metadata["x-plexsphere-principal"]


async def test_a_scope_is_passed_on_and_told(edge: Client, peer: FakePeer) -> None:
    narrow = a_token(scope=["read"], narrowed=True)
    peer.answers["IssueApiToken"] = lambda _: pb.IssueApiTokenResponse(metadata=narrow, plaintext=PLAINTEXT)
    body = WANTED | {"scope": ["read"], "ttl_seconds": 60}
    answer = await edge.post("/v1/auth/tokens", json=body, headers=OPERATOR)
    assert (await answer.json())["scope"] == ["read"]
    asked, _ = peer.last("IssueApiToken")
    assert (asked.ttl_seconds, list(asked.scope)) == (60, ["read"])


@pytest.mark.parametrize(
    "wrong",
    [{"identity_ref": f"node:{OTHER}"}, {"identity_ref": "user:me"}, {"env_prefix": "test"}, {"ttl_seconds": 0},
     {"ttl_seconds": 31_536_001}, {"scope": []}, {"scope": ["root"]}],
)  # fmt: skip
async def test_what_is_no_token_is_not_asked_for(edge: Client, peer: FakePeer, wrong: dict[str, Any]) -> None:
    answer = await edge.post("/v1/auth/tokens", json=WANTED | wrong, headers=OPERATOR)
    assert await problem(answer) == (400, "invalid_body")
    assert "IssueApiToken" not in [name for name, *_ in peer.asked]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (errors.StepUpRequired(max_age_s=900), (401, "step_up_required")),
        (errors.ApiTokenLimit(), (409, "api_token_limit")),
        (errors.FederationKindMismatch(), (403, "federation_kind_mismatch")),
        (errors.NotFound(), (404, "not_found")),
    ],
)
async def test_a_refusal_is_told_as_it_is(
    edge: Client, peer: FakePeer, refusal: errors.PlexError, said: tuple[int, str]
) -> None:
    def refuse(_: Any) -> Any:
        raise refusal

    peer.answers["IssueApiToken"] = refuse
    answer = await edge.post("/v1/auth/tokens", json=WANTED, headers=OPERATOR)
    assert await problem(answer) == said
    assert ("max_age" in answer.headers.get("WWW-Authenticate", "")) is (said[0] == 401)


async def test_ones_own_are_listed_without_their_texts(edge: Client, peer: FakePeer) -> None:
    rows = [a_token(), a_token(scope=["read"], narrowed=True, last_used_at=MADE, rotated_at=MADE)]
    peer.answers["ListApiTokens"] = lambda _: pb.ListApiTokensResponse(tokens=rows)
    plain = {"id": OTHER, "env_prefix": "dev", "created_at": "2026-05-01T12:00:00Z",
             "expires_at": "2026-05-02T12:00:00Z"}  # fmt: skip
    used = {"scope": ["read"], "last_used_at": "2026-05-01T12:00:00Z", "rotated_at": "2026-05-01T12:00:00Z"}
    answer = await edge.get("/v1/auth/tokens", headers=OPERATOR)
    assert await answer.json() == [plain, plain | used]
    assert peer.last("ListApiTokens")[0].identity_ref == ""
    await edge.get(f"/v1/admin/tokens?identity_ref={WHOSE}", headers=OPERATOR)
    assert peer.last("ListApiTokens")[0].identity_ref == WHOSE
    for query in ("", "?identity_ref=user:me"):
        assert (await edge.get(f"/v1/admin/tokens{query}", headers=OPERATOR)).status == 400


@pytest.mark.parametrize(("path", "as_admin"), PATHS)
async def test_a_token_is_ended_and_replaced(edge: Client, peer: FakePeer, path: str, as_admin: bool) -> None:  # noqa: FBT001 — as above
    peer.answers["RevokeApiToken"] = lambda _: pb.RevokeApiTokenResponse()
    successor = pb.RotateApiTokenResponse(metadata=a_token(), plaintext=PLAINTEXT, rotation_deadline=ENDS)
    peer.answers["RotateApiToken"] = lambda _: successor
    answer = await edge.delete(f"{path}/{OTHER}", headers=BROWSER)
    assert (answer.status, await answer.read()) == (204, b"")
    answer = await edge.post(f"{path}/{OTHER}/rotate", headers=BROWSER)
    assert (answer.status, answer.headers["Sunset"]) == (200, SUNSET)
    body = await answer.json()
    assert (body["plaintext"], body["rotation_deadline"]) == (PLAINTEXT, "2026-05-02T12:00:00Z")
    for name in ("RevokeApiToken", "RotateApiToken"):
        assert (peer.last(name)[0].token_id, peer.last(name)[0].as_admin) == (OTHER, as_admin)


async def test_a_machine_gets_a_token_for_its_secret(edge: Client, peer: FakePeer) -> None:
    text = "pst_dev_" + "y" * 36
    granted = pb.IssueServiceTokenResponse(access_token=text, expires_in_s=900, scope=["read", "deploy"])
    peer.answers["IssueServiceToken"] = lambda _: granted
    answer = await edge.post("/v1/auth/service/token", json=CLIENT | {"scope": " read  deploy "})
    assert await answer.json() == {
        "access_token": text, "token_type": "Bearer", "expires_in": 900, "scope": "read deploy",
    }  # fmt: skip
    asked, metadata = peer.last("IssueServiceToken")
    assert (asked.client_id, asked.client_secret, list(asked.scope)) == (OTHER, PLAINTEXT, ["read", "deploy"])
    assert "x-plexsphere-principal" not in metadata
    del granted.scope[:]
    assert "scope" not in await (await edge.post("/v1/auth/service/token", json=CLIENT)).json()


async def test_what_verifies_no_jwt_says_so(edge: Client, peer: FakePeer) -> None:
    bearer = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "client_assertion": "x"}
    answer = await edge.post("/v1/auth/service/token", json=bearer)
    assert await problem(answer) == (501, "not_provisioned")
    assert await problem(await edge.post("/v1/auth/service/token", json={"grant_type": "password"})) == (
        400,
        "invalid_body",
    )
    assert peer.asked == []


@pytest.mark.parametrize("verb", ["approve", "deny"])
async def test_no_bearer_decides_about_a_device(edge: Client, peer: FakePeer, verb: str) -> None:
    # The contract has the cookie as the only credential here, and 403 for a cookie without its CSRF token.
    body, bearer = {"user_code": "ABCD-EFGH"}, {"Authorization": f"Bearer {PLAINTEXT}"}
    answer = await edge.post(f"/v1/auth/device/{verb}", json=body, headers=bearer)
    assert await problem(answer) == (401, "unauthenticated")
    assert {name for name, *_ in peer.asked} <= {"Authenticate"}
