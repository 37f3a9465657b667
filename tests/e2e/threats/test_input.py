"""Bad input: each a problem with a code of the contract, and nothing half-done."""

import gzip
import json

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import Answer

pytestmark = pytest.mark.e2e

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "correlation_id"}
DOMAIN = {"name": "Bad", "slug": "bad-input", "mesh_cidr": "10.255.0.0/24"}


def is_problem(answer: Answer, *expected: str) -> None:
    assert answer.headers["Content-Type"].startswith("application/problem+json"), answer.body
    problem = answer.json
    assert set(problem) >= MEMBERS
    assert problem["status"] == answer.status
    assert problem["correlation_id"] == answer.headers["X-Correlation-Id"]
    assert str(answer) in expected


async def post(scene: Scene, body: bytes, **headers: str) -> Answer:
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await scene.operator.call("POST", "/v1/domains", body, headers=sent)


BODIES: dict[str, tuple[bytes, str]] = {
    "unreadable": (b"{", "400 invalid_body"),
    "empty": (b"", "400 invalid_body"),
    "not an object": (b"[]", "400 invalid_body"),
    "not UTF-8": (b'{"name": "\xff"}', "400 invalid_body"),
    "duplicate member": (b'{"name": "a", "name": "b"}', "400 invalid_body"),
    "NaN": (b'{"name": NaN}', "400 invalid_body"),
    "deep": (b"[" * 4000 + b"]" * 4000, "400 invalid_body"),
    "wrong type": (json.dumps(DOMAIN | {"name": 7}).encode(), "400 invalid_body"),
    "missing member": (b'{"name": "a"}', "400 invalid_body"),
    "pattern": (json.dumps(DOMAIN | {"slug": "Bad Slug"}).encode(), "400 invalid_body"),
    "no network": (json.dumps(DOMAIN | {"mesh_cidr": "999.1.1.1/8"}).encode(), "400 invalid_body"),
    "over the limit": (json.dumps(DOMAIN | {"description": "x" * 9000}).encode(), "413 request_body_too_large"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_bad_body_is_a_clear_refusal(scene: Scene, name: str) -> None:
    body, expected = BODIES[name]
    is_problem(await post(scene, body), expected)


async def test_a_gzip_bomb_is_refused_before_it_is_whole(scene: Scene) -> None:
    is_problem(
        await post(scene, gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"), "413 request_body_too_large"
    )
    is_problem(await post(scene, b"not gzip", Content_Encoding="gzip"), "400 invalid_body")
    honest = json.dumps({"name": "a"}).encode()
    is_problem(await post(scene, gzip.compress(honest), Content_Encoding="gzip"), "400 invalid_body")


async def test_another_content_type_is_refused(scene: Scene) -> None:
    answer = await scene.operator.call("POST", "/v1/domains", b"a=b", headers={"Content-Type": "text/plain"})
    is_problem(answer, "415 unsupported_media_type", "400 invalid_body")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/nowhere", "404 not_found"),
        ("PUT", "/v1/domains", "405 method_not_allowed"),
        ("GET", "/v1/domains/not-a-uuid", "400 invalid_path_parameter"),
        ("GET", "/v1/domains?limit=0", "400 invalid_limit"),
        ("GET", "/v1/domains?limit=many", "400 invalid_limit"),
        ("GET", "/v1/domains?cursor=forged", "400 invalid_cursor"),
        ("GET", "/v1/domains/01990000-0000-7000-8000-000000000000", "403 permission_denied"),
        ("POST", "/v1/projects/01990000-0000-7000-8000-000000000000/sessions", "400 invalid_body"),
    ],
)
async def test_a_bad_request_is_a_clear_refusal(scene: Scene, method: str, path: str, expected: str) -> None:
    answer = await scene.operator.call(method, path)
    is_problem(answer, expected)


async def test_a_node_body_with_an_unknown_member_is_refused(scene: Scene) -> None:
    node = scene.story.node_a
    body = {"client_now": "2026-01-01T00:00:00Z", "binary_checksum": "A" * 43 + "=", "binary_version": "1",
            "nat_summary": {}, "surprise": 1}  # fmt: skip
    answer = await scene.edge.as_bearer(node.bearer).call("POST", f"/v1/nodes/{node.node_id}/heartbeat", body)
    is_problem(answer, "400 invalid_body", "400 malformed_heartbeat_request")


async def test_nobody_and_garbage_are_401_and_ignored_where_no_security_is(scene: Scene) -> None:
    is_problem(await scene.edge.call("GET", "/v1/domains"), "401 unauthenticated")
    is_problem(await scene.edge.as_bearer("garbage").call("GET", "/v1/domains"), "401 unauthenticated")
    node = scene.story.node_a.node_id
    is_problem(await scene.edge.as_bearer("nsk_x_y").call("GET", f"/v1/nodes/{node}/secrets/a"), "401 unauthorized")
    assert (await scene.edge.as_bearer("garbage").call("GET", "/v1/version")).status == 200


async def test_a_cookie_needs_the_csrf_header_and_the_right_origin(scene: Scene) -> None:
    from tests.e2e.outside import Login

    browser = await scene.outside.sign_in(Login("operator"))
    wrong = {"X-Plexsphere-CSRF": "wrong"}
    is_problem(await browser.call("POST", "/v1/domains", DOMAIN, headers=wrong), "403 csrf_token_mismatch")
    evil = {"Origin": "https://evil.example"}
    is_problem(await browser.call("POST", "/v1/domains", DOMAIN, headers=evil), "403 csrf_origin_mismatch")
