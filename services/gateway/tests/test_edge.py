"""Requests through the whole edge over HTTP, in front of fake services; the real ones are in tests/e2e."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from libs import errors
from plexsphere.identity.v1 import enrolment_pb2
from services.gateway.credentials import AssertionCache
from services.gateway.settings import Rate
from services.gateway.tests.fakes import (
    BEAT,
    BROWSER,
    COOKIES,
    DOMAIN,
    ENROL,
    HEARTBEAT,
    NODE,
    NODE_BEARER,
    NODE_ID,
    OPERATOR,
    ORIGIN,
    OTHER,
    Client,
    FakePeer,
    problem,
    start,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("method", "path", "headers", "refusal"),
    [
        ("GET", "/nowhere", {}, (404, "not_found")),
        ("PATCH", "/v1/health", {}, (405, "method_not_allowed")),
        ("HEAD", f"/v1/nodes/{NODE_ID}/secrets/a", NODE, (405, "")),
        ("GET", "/v1/domains", {}, (401, "unauthenticated")),
        ("GET", "/v1/domains", {"Authorization": "Basic eA=="}, (401, "unauthenticated")),
        ("GET", "/v1/domains", NODE, (401, "unauthenticated")),
        ("GET", f"/v1/projects/{OTHER}/secrets", COOKIES, (401, "unauthenticated")),
        ("GET", "/v1/domains?limit=0", OPERATOR, (400, "invalid_limit")),
        ("GET", "/v1/domains?limit=201", OPERATOR, (400, "invalid_limit")),
        ("GET", "/v1/domains?limit=1&limit=2", OPERATOR, (400, "invalid_query_parameter")),
        ("GET", "/v1/domains?limit=x", OPERATOR, (400, "invalid_limit")),
        ("GET", "/v1/domains/nope", OPERATOR, (400, "invalid_path_parameter")),
        ("GET", "/v1/resources/nope", OPERATOR, (404, "not_found")),
        ("GET", "/v1/platform/audit/entries?reason=bad", OPERATOR, (400, "invalid_query_parameter")),
        ("GET", "/v1/platform/audit/entries?from=yesterday", OPERATOR, (400, "invalid_query_parameter")),
        ("GET", "/v1/platform/audit/entries/0", OPERATOR, (400, "invalid_path_parameter")),
        ("GET", f"/v1/nodes/{NODE_ID}/secrets/a?version=0", NODE, (400, "invalid_query_parameter")),
        ("GET", f"/v1/nodes/{NODE_ID}/secrets/a?version=2147483648", NODE, (400, "invalid_query_parameter")),
        ("GET", f"/v1/nodes/{NODE_ID}/secrets/a?version=-1", NODE, (400, "invalid_query_parameter")),
        ("GET", f"/v1/nodes/{NODE_ID}/secrets/a?version=1&version=1", NODE, (400, "invalid_query_parameter")),
        ("GET", f"/v1/nodes/{NODE_ID}/secrets/a?version=one", NODE, (400, "invalid_query_parameter")),
        ("GET", f"/v1/nodes/{NODE_ID}/secrets/a?version=", NODE, (400, "invalid_query_parameter")),
        ("GET", f"/v1/nodes/{NODE_ID}/events", {}, (401, "unauthorized")),
        ("GET", f"/v1/nodes/{NODE_ID}/events", OPERATOR, (401, "unauthorized")),
        ("GET", f"/v1/nodes/{OTHER}/events", NODE, (403, "node_id_mismatch")),
        ("GET", f"/v1/nodes/{OTHER}/secrets/a", NODE, (403, "node_id_mismatch")),
        ("POST", f"/v1/nodes/{OTHER}/sessions/{OTHER}", NODE, (403, "nsk_node_mismatch")),
        ("GET", f"/v1/nodes/{NODE_ID}/events", NODE, (501, "signed_event_bus_not_provisioned")),
        ("POST", "/v1/auth/tokens", {}, (401, "unauthenticated")),
        ("POST", "/v1/auth/tokens", OPERATOR, (400, "invalid_body")),
        ("POST", "/v1/auth/sign-out/global", {"Cookie": "plexsphere_session=psk_dev_x"}, (403, "permission_denied")),
        ("POST", f"/v1/projects/{OTHER}/sessions", OPERATOR, (400, "invalid_body")),
        ("GET", f"/v1/domains/{OTHER}/audit/proof?seq=1", OPERATOR, (400, "invalid_query_parameter")),
        ("POST", "/v1/auth/service/token", {"Authorization": "garbage"}, (400, "invalid_body")),
        ("POST", "/v1/auth/device/approve", OPERATOR, (400, "invalid_body")),
    ],
)
async def test_refusals(
    edge: Client, method: str, path: str, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    answer = await edge.request(method, path, headers=headers)
    if method == "HEAD":
        assert (answer.status, await answer.read()) == (refusal[0], b"")
    else:
        assert await problem(answer) == refusal
    assert ("WWW-Authenticate" in answer.headers) == (answer.status == 401)


@pytest.mark.parametrize(
    ("body", "headers", "refusal"),
    [
        (b"{", {}, (400, "invalid_body")),
        (b'{"name":"a","name":"b"}', {}, (400, "invalid_body")),
        (b'{"name":"\xff"}', {}, (400, "invalid_body")),
        (b"[]", {}, (400, "invalid_body")),
        (json.dumps(DOMAIN | {"name": 7}).encode(), {}, (400, "invalid_body")),
        (json.dumps(DOMAIN | {"slug": "UP"}).encode(), {}, (400, "invalid_body")),
        (
            json.dumps(DOMAIN | {"reachability": {"stale_after": "1s"}}).encode(),
            {},
            (400, "invalid_reachability_policy"),
        ),
        (json.dumps(DOMAIN).encode(), {"Content-Type": "text/plain"}, (400, "invalid_body")),
        (json.dumps(DOMAIN).encode(), {"Content-Encoding": "br"}, (400, "invalid_body")),
        (json.dumps(DOMAIN).encode(), {"Content-Encoding": "gzip"}, (400, "invalid_body")),
        (gzip.compress(json.dumps(DOMAIN).encode(), mtime=0)[:-4], {"Content-Encoding": "gzip"}, (400, "invalid_body")),
        (b" " * 8193, {}, (413, "request_body_too_large")),
        (gzip.compress(b" " * 2_000_000, mtime=0), {"Content-Encoding": "gzip"}, (413, "request_body_too_large")),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_bad_bodies(edge: Client, body: bytes, headers: dict[str, str], refusal: tuple[int, str]) -> None:
    sent = OPERATOR | {"Content-Type": "application/json"} | headers
    assert await problem(await edge.post("/v1/domains", data=body, headers=sent)) == refusal


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "refusal"),
    [
        ("POST", "/v1/register", {}, ENROL | {"public_key": "short"}, (400, "public_key_invalid")),
        ("POST", "/v1/register", {}, ENROL | {"public_key": "x", "nonce": ""}, (400, "public_key_invalid")),
        ("POST", "/v1/register", {}, ENROL | {"project_id": "x"}, (422, "unprocessable")),
        ("POST", "/v1/register", {}, ENROL | {"extra": 1}, (400, "invalid_body")),
        ("POST", HEARTBEAT, NODE, BEAT | {"x": 1}, (400, "malformed_heartbeat_request")),
        ("POST", HEARTBEAT, NODE, BEAT | {"client_now": "x"}, (400, "malformed_heartbeat_request")),
        ("POST", HEARTBEAT, NODE, BEAT | {"binary_checksum": ""}, (400, "binary_checksum_empty")),
        ("POST", HEARTBEAT, NODE, BEAT | {"binary_checksum": "x" * 44}, (400, "binary_checksum_empty")),
        ("POST", HEARTBEAT, NODE, BEAT | {"binary_version": ""}, (400, "binary_version_empty")),
        ("PATCH", f"/v1/domains/{OTHER}", OPERATOR, {}, (400, "empty_patch")),
        ("PATCH", f"/v1/domains/{OTHER}", OPERATOR, {"slug": "acme"}, (400, "slug_immutable")),
        ("PATCH", f"/v1/projects/{OTHER}", OPERATOR, {"colour": "red"}, (400, "invalid_body")),
    ],
)  # fmt: skip
async def test_bodies_that_break_a_rule(
    edge: Client, method: str, path: str, headers: dict[str, str], body: Any, refusal: tuple[int, str]
) -> None:
    assert await problem(await edge.request(method, path, headers=headers, json=body)) == refusal


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        (COOKIES, "csrf_token_mismatch"),
        (COOKIES | {"X-Plexsphere-CSRF": "u", "Origin": ORIGIN}, "csrf_token_mismatch"),
        (COOKIES | {"X-Plexsphere-CSRF": "t"}, "csrf_origin_mismatch"),
        (COOKIES | {"X-Plexsphere-CSRF": "t", "Origin": "https://evil.test"}, "csrf_origin_mismatch"),
    ],
)
async def test_a_browser_must_show_that_our_page_asks(edge: Client, headers: dict[str, str], refusal: str) -> None:
    answer = await edge.post("/v1/domains", json=DOMAIN, headers=headers)
    body = await answer.json()
    assert (answer.status, body["code"], body["reason"]) == (403, refusal, "caveat_violation")


async def test_without_allowed_origins_no_browser_changes_anything(peer: FakePeer, tmp_path: Path) -> None:
    client = await start(peer, tmp_path, origins=[])
    assert await problem(await client.post("/v1/domains", json=DOMAIN, headers=BROWSER)) == (
        403,
        "csrf_origin_not_configured",
    )
    await client.close()


@pytest.mark.parametrize(
    ("raised", "status", "header"),
    [
        (errors.PerNodeRateLimited(retry_after_s=9), (429, "per_node_rate_limited"), {"Retry-After": "9"}),
        (errors.AuditUnavailable(), (503, "audit_unavailable"), {"Retry-After": "1"}),
        (ZeroDivisionError("value"), (500, "internal"), {}),
    ],
)
async def test_what_services_refuse_reaches_the_caller(
    edge: Client, peer: FakePeer, raised: Exception, status: tuple[int, str], header: dict[str, str]
) -> None:
    def refuse(_: Any) -> Any:
        raise raised

    peer.answers["FetchNodeSecret"] = refuse
    answer = await edge.get(f"/v1/nodes/{NODE_ID}/secrets/db", headers=NODE)
    assert await problem(answer) == status
    assert header.items() <= dict(answer.headers).items()


async def test_bad_credentials_of_every_kind_are_one_limit_and_a_row_a_reason(peer: FakePeer, tmp_path: Path) -> None:
    def unknown(_: Any) -> Any:
        raise errors.TokenUnknown

    peer.answers["Register"] = unknown
    client = await start(peer, tmp_path, rate=Rate(per_minute=1, burst=4))
    seen = [(await client.post("/v1/register", json=ENROL)).status for _ in range(2)]
    malformed = ({"Authorization": "Bearer nsk_x"}, {"Cookie": "plexsphere_session=x@y"})
    seen += [(await client.get("/v1/domains", headers=headers)).status for headers in malformed]
    assert seen == [403, 403, 401, 401]
    # Nothing presented is no guess.
    assert (await client.get("/v1/domains")).status == 401
    assert [(await client.get("/v1/domains", headers=OPERATOR)).status for _ in range(2)] == [429, 429]
    rows = [request for name, request, _ in peer.asked if name == "Append"]
    assert [(row.action, row.caveat_context[row.object_id].names[0]) for row in rows] == [
        ("edge.credential_refused", "token_unknown"),
        ("edge.credential_refused", "unauthenticated"),
        ("edge.limit_refused", "rate_limited"),
    ]
    await client.close()


async def test_an_address_that_guesses_or_floods_is_refused(peer: FakePeer, tmp_path: Path) -> None:
    def refuse(_: Any) -> Any:
        raise errors.Unauthenticated

    peer.answers["Authenticate"] = refuse
    peer.answers["Register"] = lambda _: enrolment_pb2.RegisterResponse(node_id=NODE_ID)
    client = await start(peer, tmp_path, rate=Rate(per_minute=1, burst=2))
    answers = [await client.post("/v1/register", json=ENROL) for _ in range(3)]
    assert [answer.status for answer in answers] == [201, 201, 429]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await answers[0].json())["peer_snapshot"] == []
    seen = [(await client.get("/v1/auth/whoami", headers=OPERATOR)).status for _ in range(3)]
    assert seen == [401, 401, 429]
    await client.close()


def as_cookie(value: str) -> dict[str, str]:
    return {"Cookie": f"plexsphere_session={value}"}


@pytest.mark.parametrize(
    ("path", "believed", "other"),
    [
        ("/v1/auth/whoami", as_cookie("s"), {"Authorization": "Bearer s"}),
        ("/v1/auth/whoami", {"Authorization": "Bearer s"}, as_cookie("s")),
        (f"/v1/nodes/{NODE_ID}/state", NODE, as_cookie(NODE_BEARER)),
    ],
    ids=["a cookie as a bearer", "a bearer as a cookie", "a node bearer as a cookie"],
)
async def test_what_was_believed_is_no_other_kind_even_from_memory(
    peer: FakePeer, tmp_path: Path, path: str, believed: dict[str, str], other: dict[str, str]
) -> None:
    # On a clock that stands: a busy machine must not let the feed fall silent.
    cache = AssertionCache(clock=lambda: 0.0)
    cache.heard()
    client = await start(peer, tmp_path, cache=cache)
    await client.get(path, headers=believed)

    def refuse(_: Any) -> Any:
        raise errors.Unauthenticated

    peer.answers["Authenticate"] = refuse
    assert (await client.get(path, headers=believed)).status != 401, "it is remembered"
    assert (await client.get("/v1/auth/whoami", headers=other)).status == 401
    await client.close()


async def test_the_edge_describes_itself(edge: Client) -> None:
    document = await (await edge.get("/v1/openapi.json")).json()
    assert len(document["paths"]) > 60
    page = await edge.get("/v1/docs")
    assert "script" not in (text := await page.text())
    assert "/v1/nodes/{id}/events" in text
    assert "default-src 'none'; style-src 'sha256-" in page.headers["Content-Security-Policy"]
    assert (await (await edge.get("/v1/version")).json())["commit"] == "abc"
    posture = await (await edge.get("/v1/platform/posture", headers=OPERATOR)).json()
    assert posture["rows"][0]["posture"] == "partial"
    assert posture["rows"][0]["missing"][0] == "port event stream"
    assert (await edge.get("/v1/health")).status == 503
