"""What handlers ask the services, and how they write what these answer."""

import asyncio
import gzip
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from yarl import URL

from libs import errors
from libs.audit import AuditClient
from libs.clock import SystemClock
from libs.rpc.channel import Peer
from plexsphere.audit.v1 import audit_pb2
from plexsphere.identity.v1 import directory_pb2, sign_in_pb2
from plexsphere.secrets.v1 import secrets_pb2
from services.gateway.credentials import AssertionCache, Authenticator, present
from services.gateway.denials import Denials
from services.gateway.document import Operation, load, operations
from services.gateway.edge import Asked, Edge, Route, build
from services.gateway.limits import AddressLimit
from services.gateway.tests.fakes import (
    BROWSER,
    COOKIES,
    DOMAIN,
    NODE,
    NODE_ID,
    OPERATOR,
    ORIGIN,
    OTHER,
    Client,
    FakePeer,
    authenticated,
    problem,
    start,
)
from services.gateway.validation import compile_rules

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("headers", [BROWSER, OPERATOR])
@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_create(edge: Client, peer: FakePeer, headers: dict[str, str], encoding: str) -> None:
    row = directory_pb2.Domain(id=OTHER, name="Acme", slug="acme", mesh_cidr="10.0.0.0/16")
    row.reachability.stale_after.FromSeconds(90)
    peer.answers["CreateDomain"] = lambda _: directory_pb2.CreateDomainResponse(domain=row)
    raw = json.dumps(DOMAIN).encode()
    data = gzip.compress(raw) if encoding else raw
    sent = headers | {"Content-Type": "application/json; charset=utf-8"}
    answer = await edge.post(
        "/v1/domains", data=data, headers=sent | ({"Content-Encoding": encoding} if encoding else {})
    )
    assert (answer.status, answer.headers["Location"]) == (201, f"/v1/domains/{OTHER}")
    assert (await answer.json())["reachability"]["stale_after"] == "1m30s"
    request, metadata = peer.last("CreateDomain")
    assert request.slug == "acme"
    assert metadata["x-plexsphere-principal"]
    assert metadata["correlation"] == answer.headers["X-Correlation-Id"]
    kind = (
        sign_in_pb2.CREDENTIAL_KIND_SESSION_COOKIE
        if "Cookie" in headers
        else sign_in_pb2.CREDENTIAL_KIND_OPERATOR_BEARER
    )
    assert peer.last("Authenticate")[0].kind == kind
    assert peer.last("Authenticate")[0].audience == "identity"


async def test_a_node_reads_a_secret(edge: Client, peer: FakePeer) -> None:
    peer.answers["FetchNodeSecret"] = lambda _: secrets_pb2.FetchNodeSecretResponse(
        body=b"\0sealed", version=3, kid="nsk_1"
    )
    answer = await edge.get(
        f"/v1/nodes/{NODE_ID}/secrets/db", headers=NODE | {"Accept-Encoding": "gzip", "Range": "bytes=0-1"}
    )
    assert (answer.status, await answer.read()) == (200, b"\0sealed")
    raw = {name.decode() for name, _ in answer.raw_headers}
    assert {"X-Plexsphere-Secret-Version", "X-Plexsphere-Secret-KID", "Cache-Control"} <= raw
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.content_type == "application/octet-stream"
    assert "Content-Encoding" not in answer.headers
    request, _ = peer.last("FetchNodeSecret")
    assert (request.node_key, request.version) == (b"k" * 32, 0)
    assert peer.last("Authenticate")[0].audience == "secrets"


@pytest.mark.parametrize("name", ["UPPER", "..a", "a%00", "a%2fb", "db%0a", "%ED%A0%80", "db-p%d0%b0ss", "a" * 2000])
async def test_a_name_that_cannot_be_is_for_the_service_to_refuse(edge: Client, peer: FakePeer, name: str) -> None:
    def refuse(_: Any) -> Any:
        raise errors.SecretNotFound

    peer.answers["FetchNodeSecret"] = refuse
    answer = await edge.get(URL(f"/v1/nodes/{NODE_ID}/secrets/{name}", encoded=True), headers=NODE)
    assert await problem(answer) == (404, "secret_not_found")
    asked = peer.last("FetchNodeSecret")[0].name
    assert not re.fullmatch("[a-z][a-z0-9_-]{0,62}", asked)
    # What is longer would be refused as another kind of mistake.
    assert len(asked) <= 64


async def test_a_nodes_key_is_not_kept_where_it_is_not_needed() -> None:
    operation = Operation("GetNodeSecret", "GET", "/", ("nskBearer",), (), None, False, frozenset())
    credential = present(operation, make_mocked_request("GET", "/", headers=NODE))
    assert credential.node is not None
    assert credential.node.key.reveal() == bytes(32)


@pytest.mark.parametrize("caller", [NODE, {}], ids=["a node", "nobody"])
async def test_without_secrets_every_operation_on_them_says_so(
    peer: FakePeer, tmp_path: Path, caller: dict[str, str]
) -> None:
    edge = await start(peer, tmp_path, without=("secrets",))
    answer = await edge.get(f"/v1/nodes/{NODE_ID}/secrets/db", headers=caller)
    assert await problem(answer) == ((501, "secrets_not_provisioned") if caller else (401, "unauthorized"))
    listed = await edge.get(f"/v1/projects/{OTHER}/secrets", headers=OPERATOR)
    assert await problem(listed) == (501, "secrets_not_provisioned")
    document = await (await edge.get("/v1/openapi.json")).json()
    assert "501" in document["paths"]["/v1/projects/{project_id}/secrets"]["get"]["responses"]
    await edge.close()


@pytest.mark.parametrize("how", [None, errors.Stale(), ValueError("value"), TimeoutError()], ids=repr)
async def test_a_value_is_wiped_however_its_request_ends(peer: FakePeer, how: Exception | None) -> None:
    seen: list[Asked] = []

    async def end(asked: Asked) -> web.Response:
        seen.append(asked)
        if isinstance(how, TimeoutError):
            await asyncio.sleep(60)
        if how:
            raise how
        return web.Response(body=bytes(asked.body))

    service, wide = cast("Peer", peer), AddressLimit(1000, 1000)
    peer.answers["Authenticate"] = authenticated
    authenticator = Authenticator(service, AssertionCache(), wide)
    edge = Edge(authenticator, Denials(AuditClient(service), SystemClock()), {}, frozenset(), 0.3)
    document = load(ORIGIN, {"PutProjectSecret"}, "test")
    app = build(edge, compile_rules(document, operations(document)), {"PutProjectSecret": Route(end)})
    async with TestClient(TestServer(app)) as client:
        octets = OPERATOR | {"Content-Type": "application/octet-stream"}
        answer = await client.put(f"/v1/projects/{OTHER}/secrets/db", data=b"value", headers=octets)
        assert (await answer.read() == b"value") == (how is None)
    assert seen[0].body == bytes(5)


async def test_an_operator_writes_a_secret(edge: Client, peer: FakePeer) -> None:
    path = f"/v1/projects/{OTHER}/secrets/db"
    peer.answers["PutSecret"] = lambda request: secrets_pb2.PutSecretResponse(version=request.expected_version + 1)
    octets = OPERATOR | {"Content-Type": "application/octet-stream"}
    answer = await edge.put(path, data=b"\xff\0", headers=octets | {"If-Match": "0"})
    assert (answer.status, await answer.json()) == (201, {"name": "db", "current_version": 1})
    assert peer.last("PutSecret")[0].value == b"\xff\0"
    assert (await edge.put(path, data=b"x", headers=octets | {"If-Match": '"1"'})).status == 200
    assert await problem(await edge.put(path, data=b"x", headers=octets)) == (412, "precondition_failed")
    assert await problem(await edge.put(path, data=b"x" * 1048549, headers=octets)) == (413, "request_body_too_large")
    assert (await edge.put(path, data=b"x" * 1048548, headers=octets | {"If-Match": "0"})).status == 201


async def test_sign_in_sets_cookies_and_a_failure_is_told_in_the_caller_s_way(edge: Client, peer: FakePeer) -> None:
    begun = sign_in_pb2.StartSignInResponse(authorization_url="https://idp.test", code_verifier_handle="handle")
    peer.answers["StartSignIn"] = lambda _: begun
    started = await edge.post("/v1/auth/sign-in", json={}, headers=COOKIES)
    assert peer.last("StartSignIn")[0].previous_session == "s"
    own = started.headers["Set-Cookie"]
    for attribute in (
        "__Host-plexsphere_sign_in=handle",
        "HttpOnly",
        "Path=/",
        "SameSite=Lax",
        "Secure",
        "Max-Age=600",
    ):
        assert attribute in own
    callback = "/v1/auth/callback?code=c&state=s&iss=https://idp.test"
    done = sign_in_pb2.CompleteSignInResponse(session="sess", csrf_token="tok", return_to="//evil.test")
    peer.answers["CompleteSignIn"] = lambda _: done
    answer = await edge.get(callback, headers={"Cookie": own.partition(";")[0]}, allow_redirects=False)
    assert peer.last("CompleteSignIn")[0].code_verifier_handle == "handle"
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    session, csrf, spent = answer.headers.getall("Set-Cookie")
    assert "Max-Age=0" in spent
    for attribute in ("plexsphere_session=sess", "HttpOnly", "Path=/v1/", "SameSite=Strict", "Secure"):
        assert attribute in session
    assert "HttpOnly" not in csrf

    def refuse(_: Any) -> Any:
        raise errors.SignInRefused("nonce")

    peer.answers["CompleteSignIn"] = refuse
    assert await problem(await edge.get(callback)) == (400, "sign_in_refused")
    answer = await edge.get(callback, headers={"Accept": "text/html"}, allow_redirects=False)
    assert answer.status == 303
    assert "auth_error_kind=sign_in_refused&auth_error_status=400" in answer.headers["Location"]
    assert "Set-Cookie" not in answer.headers


async def test_sign_out_is_always_204_and_takes_the_cookies(edge: Client, peer: FakePeer) -> None:
    peer.answers["SignOut"] = lambda _: sign_in_pb2.SignOutResponse()
    for headers in ({}, {"Authorization": "garbage"}, COOKIES):
        answer = await edge.delete("/v1/auth/whoami", headers=headers)
        assert answer.status == 204
        assert len(answer.headers.getall("Set-Cookie")) == 2
    assert [name for name, _, _ in peer.asked].count("SignOut") == 1


@pytest.mark.parametrize("method", ["Authenticate", "SignOut"])
@pytest.mark.parametrize("refusal", [errors.Unavailable, errors.TooMany, errors.AuditUnavailable, errors.Internal])
async def test_sign_out_is_204_whatever_is_down(
    edge: Client, peer: FakePeer, method: str, refusal: type[errors.PlexError]
) -> None:
    def refuse(_: Any) -> Any:
        raise refusal

    peer.answers[method] = refuse
    answer = await edge.delete("/v1/auth/whoami", headers=COOKIES)
    assert (answer.status, len(answer.headers.getall("Set-Cookie"))) == (204, 2)


async def test_whoever_signed_out_learns_where_the_provider_does(edge: Client, peer: FakePeer) -> None:
    url = "https://idp.test/end"
    peer.answers["SignOut"] = lambda _: sign_in_pb2.SignOutResponse(logout_url=url)
    peer.answers["SignOutEverywhere"] = lambda _: sign_in_pb2.SignOutEverywhereResponse(logout_url=url)
    here = await edge.delete("/v1/auth/whoami", headers=BROWSER)
    everywhere = await edge.post("/v1/auth/sign-out/global", headers=BROWSER)
    assert [one.headers["X-Plexsphere-Logout-Url"] for one in (here, everywhere)] == [url, url]


@pytest.mark.parametrize(
    ("body", "content_type", "refusal"),
    [
        ("logout_token=a&logout_token=b", "application/x-www-form-urlencoded", "invalid_body"),
        ("other=a", "application/x-www-form-urlencoded", "invalid_body"),
        ("logout_token=", "application/x-www-form-urlencoded", "invalid_body"),
        ("logout_token=%00", "application/x-www-form-urlencoded", "invalid_body"),
        ("logout_token=%ff", "application/x-www-form-urlencoded", "invalid_body"),
        ("&".join(f"f{n}=a" for n in range(40)), "application/x-www-form-urlencoded", "invalid_body"),
        ('{"logout_token": "a"}', "application/json", "invalid_body"),
    ],
)
async def test_a_logout_token_comes_in_a_form(
    edge: Client, peer: FakePeer, body: str, content_type: str, refusal: str
) -> None:
    peer.answers["LogOut"] = lambda _: sign_in_pb2.LogOutResponse()
    path = "/v1/auth/backchannel-logout"
    answer = await edge.post(path, data=body, headers={"Content-Type": content_type})
    assert await problem(answer) == (400, refusal)
    answer = await edge.post(path, data={"logout_token": "t"})
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert peer.last("LogOut")[0].logout_token == "t"


async def test_the_audit_chain_is_written_as_the_contract_has_it(edge: Client, peer: FakePeer) -> None:
    row = audit_pb2.Entry(
        seq=1, domain_id="0" * 8, reason=audit_pb2.REASON_GRANTED, object_type="secret", object_id="x"
    )
    row.caveat_context["action"].names.append("secret.read")
    peer.answers["ListEntries"] = lambda _: audit_pb2.ListEntriesResponse(entries=[row], next_cursor="n")
    answer = await edge.get(
        "/v1/platform/audit/entries?reason=granted&from=2026-01-01T00:00:00Z&limit=5", headers=OPERATOR
    )
    body = await answer.json()
    assert body["next_cursor"] == "n"
    assert body["items"][0]["decision"] == {"result": "granted", "caveat_context": {"action": ["secret.read"]}}
    request, _ = peer.last("ListEntries")
    assert (request.limit, request.reason, getattr(request, "from").seconds > 0) == (5, audit_pb2.REASON_GRANTED, True)
    peer.answers["VerifyChain"] = lambda _: audit_pb2.VerifyChainResponse(ok=True, segment_to=4)
    answer = await edge.post("/v1/platform/audit/verify", headers=OPERATOR)
    assert await answer.json() == {"ok": True, "segment_from": 1, "segment_to": 4}
