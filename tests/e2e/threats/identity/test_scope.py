"""A token for less than its owner may, in every service: nothing beyond its scope, and the row says so."""

import uuid
from typing import Any

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import Answer, Edge

pytestmark = pytest.mark.e2e

ALL = ("read", "observe", "deploy", "act", "node-operate", "manage", "audit")
# An operation of each service with the permission that it asks for, and what it answers when it is there.
OPERATIONS: dict[str, tuple[str, str, str, Any, str]] = {
    "identity reads": ("read", "GET", "/v1/domains/{domain}", None, "200"),
    "identity writes": ("manage", "PATCH", "/v1/projects/{project}", {"description": "d"}, "200"),
    "identity deploys": (
        "deploy", "POST", "/v1/projects/{project}/resources", {"origin": "adopted", "kind": "k"}, "201",
    ),
    "identity lists": ("manage", "GET", "/v1/projects/{project}/bootstrap-tokens", None, "200"),
    "identity operates nodes": ("node-operate", "POST", "/v1/nodes/{node}/keys/rotate", None, "200"),
    "secrets lists": ("read", "GET", "/v1/projects/{project}/secrets", None, "200"),
    "secrets destroys": ("manage", "DELETE", "/v1/projects/{project}/secrets/none", None, "404 secret_not_found"),
    "mesh reads": ("read", "GET", "/v1/domains/{domain}/signing-keys", None, "200"),
    "mesh publishes": (
        "manage", "POST", "/v1/domains/{domain}/events",
        {"type": "action_request", "scope": "domain:{domain}", "payload": {}}, "202",
    ),
    "mesh publishes to a node": (
        "node-operate", "POST", "/v1/domains/{domain}/events",
        {"type": "action_request", "scope": "node:{node}", "payload": {}}, "202",
    ),
    "audit reads": ("audit", "GET", "/v1/domains/{domain}/audit/entries?limit=1", None, "200"),
}  # fmt: skip


async def narrowed(scene: Scene, *scope: str) -> Edge:
    who = (await scene.operator.call("GET", "/v1/auth/whoami")).json["subject"]
    body = {"identity_ref": f"user:{who}", "env_prefix": "dev", "scope": list(scope), "ttl_seconds": 600}
    issued = await scene.operator.call("POST", "/v1/auth/tokens", body)
    assert issued.status == 201, issued.body
    return scene.edge.as_bearer(issued.json["plaintext"])


async def do(scene: Scene, edge: Edge, name: str) -> Answer:
    _, method, path, body, _ = OPERATIONS[name]
    story = scene.story
    places = {"domain": story.domain_id, "project": story.project_id, "node": story.node_a.node_id}
    if isinstance(body, dict):
        body = {key: value.format(**places) if isinstance(value, str) else value for key, value in body.items()}
        if path.endswith("/resources"):
            body["external_ref"] = uuid.uuid4().hex
    return await edge.call(method, path.format(**places), body)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_nothing_is_done_beyond_the_scope(scene: Scene, name: str) -> None:
    permission, _, _, _, done = OPERATIONS[name]
    refused = await do(scene, await narrowed(scene, *(one for one in ALL if one != permission)), name)
    assert (str(refused), refused.json["reason"]) == ("403 permission_denied", "insufficient_relation")
    assert str(await do(scene, await narrowed(scene, permission), name)) == done


@pytest.mark.parametrize("name", ["identity writes", "secrets destroys", "mesh publishes", "audit reads"])
async def test_the_row_of_the_refusal_names_the_scope(scene: Scene, name: str) -> None:
    refused = await do(scene, await narrowed(scene, "observe"), name)
    wanted = f"correlation_id={refused.headers['X-Correlation-Id']}"
    found = await scene.operator.call("GET", f"/v1/domains/{scene.story.domain_id}/audit/entries?{wanted}")
    (row,) = found.json["items"]
    assert row["reason"] == "insufficient_relation"
    assert row["decision"]["caveat_context"]["token"] == ["scope"]


async def test_lists_leave_out_what_is_beyond(scene: Scene) -> None:
    everything, nothing = await narrowed(scene, "read"), await narrowed(scene, "deploy")
    assert (await everything.call("GET", "/v1/domains")).json["items"]
    assert (await nothing.call("GET", "/v1/domains")).json["items"] == []
