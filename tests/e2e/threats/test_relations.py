"""Relations over the wire: who may not give them, who learns nothing, what becomes of a grant that nobody gave."""

import uuid
from typing import Any

import pytest
from authzed.api.v1 import (
    AsyncClient,
    ObjectReference,
    Relationship,
    RelationshipUpdate,
    SubjectReference,
    WriteRelationshipsRequest,
)
from grpc import access_token_call_credentials, composite_channel_credentials, ssl_channel_credentials

from devstack.layout import State
from libs.errors import Forbidden
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs
from tests.e2e.attacker import peer
from tests.e2e.conftest import Scene
from tests.e2e.outside import Edge, Login
from tests.e2e.stories.main_job import entries

pytestmark = pytest.mark.e2e

TUPLES = "/v1/authz/relation-tuples"
RECONCILE = "/v1/platform/relations/reconcile"


@pytest.mark.parametrize("caller", ["gateway", "access", "mesh", "audit"])
async def test_a_gateway_in_the_wrong_hands_grants_nothing(scene: Scene, caller: str) -> None:
    """Nor does any other process but the one that decides who reads a secret, and that one nothing else."""
    node, secret = f"node:{scene.story.node_b.node_id}", f"secret:{uuid.uuid4()}"
    async with peer(scene.story.world, "identity", caller) as opened:
        stub: Any = stubs.RelationsAdminServiceStub(opened)
        for attempt in (
            stub.WriteRelation(pb.WriteRelationRequest(subject=node, relation="reader", resource=secret)),
            stub.DeleteRelation(pb.DeleteRelationRequest(resource=secret)),
            stub.ListSubjects(pb.ListSubjectsRequest(resource=secret, relation="reader")),
        ):
            with pytest.raises(Forbidden):
                await attempt


async def someone(scene: Scene, name: str) -> tuple[Edge, str]:
    browser = await scene.outside.sign_in(Login(name))
    subject = (await browser.call("GET", "/v1/auth/whoami")).json["subject"]
    return scene.edge.as_bearer(await scene.outside.access_token(browser)), f"user:{subject}"


async def test_a_role_is_given_checked_changed_and_taken_away(scene: Scene) -> None:
    member, subject = await someone(scene, "role-member")
    project = f"project:{scene.story.project_id}"
    path, wanted = f"{TUPLES}?project_id={scene.story.project_id}", {"subject": subject, "resource": project}
    given = await scene.operator.call("POST", path, {**wanted, "relation": "operator"})
    assert given.status == 201, given.body
    assert given.headers["Location"] == f"{TUPLES}/{given.json['id']}"

    async def check(permission: str, **more: Any) -> Any:
        body = {"subject": subject, "relation": permission, "resource": project, **more}
        answer = await member.call("POST", "/v1/authz/check", body)
        assert answer.status == 200, answer.body
        assert answer.json["correlation_id"] == answer.headers["X-Correlation-Id"]
        return answer.json["decision"], answer.json.get("reason")

    assert await check("node-operate") == ("allowed", None)
    assert await check("manage") == ("denied", "insufficient_relation")
    until = {"caveat_name": "expires", "caveat_context": {"until": "2099-01-01T00:00:00Z"}}
    this = f"{TUPLES}/{given.json['id']}"
    changed = await scene.operator.call("PATCH", this, {**wanted, "relation": "viewer", **until})
    assert (changed.status, changed.json["id"]) == (200, given.json["id"]), changed.body
    assert changed.json["caveat_context"] == until["caveat_context"]
    assert await check("node-operate") == ("denied", "caveat_violation")
    assert await check("read") == ("allowed", None)
    assert await check("read", caveat_context={"now": "2100-01-01T00:00:00Z"}) == ("denied", "caveat_violation")
    body = {"subject": subject, "relation": "read", "resource_type": "project"}
    assert (await member.call("POST", "/v1/authz/lookup-resources", body)).json["items"] == [project]
    body = {"subject_type": "user", "relation": "read", "resource": project}
    assert subject in (await scene.operator.call("POST", "/v1/authz/lookup-subjects", body)).json["items"]
    # A condition decides for what is done as well, and not only for who asks.
    assert (await member.call("GET", f"/v1/projects/{scene.story.project_id}")).status == 200
    gone = await scene.operator.call("DELETE", this)
    again = await scene.operator.call("DELETE", this)
    assert (gone.status, str(again)) == (204, "404 relation_tuple_not_found")
    assert str(await member.call("GET", f"/v1/projects/{scene.story.project_id}")) == "403 permission_denied"
    scene.story.operator = scene.operator
    rows = [row for row in await entries(scene.story) if row["correlation_id"] == changed.headers["X-Correlation-Id"]]
    assert [row["decision"]["caveat_context"]["caveat"] for row in rows] == [["expires"]]
    assert "2099" not in str(rows)


async def test_a_role_whose_end_is_misspelt_is_not_given(scene: Scene) -> None:
    _, subject = await someone(scene, "role-misspelt")
    path = f"{TUPLES}?project_id={scene.story.project_id}"
    wanted = {"subject": subject, "relation": "viewer", "resource": f"project:{scene.story.project_id}"}
    for slip in ({"caveat": "expires"}, {"caveat_contxt": {"until": "2099-01-01T00:00:00Z"}}):
        refused = await scene.operator.call("POST", path, wanted | slip)
        assert (str(refused), refused.json["detail"]) == ("400 invalid_body", f"{next(iter(slip))} is not known here")
    listed = await scene.operator.call("GET", f"{path}&limit=200")
    assert subject not in {row["subject"] for row in listed.json["items"]}


async def test_a_stranger_gets_the_answers_of_what_does_not_exist(scene: Scene) -> None:
    stranger, _ = await someone(scene, "role-stranger")
    _, subject = await someone(scene, "role-subject")
    path = f"{TUPLES}?project_id={scene.story.project_id}"
    wanted = {"subject": subject, "relation": "viewer", "resource": f"project:{scene.story.project_id}"}
    given = await scene.operator.call("POST", path, wanted)
    nothing = str(uuid.uuid4())
    for method, there, not_there, body in (
        ("GET", path, f"{TUPLES}?project_id={nothing}", None),
        ("POST", path, f"{TUPLES}?project_id={nothing}", wanted),
        ("PATCH", f"{TUPLES}/{given.json['id']}", f"{TUPLES}/{nothing}", wanted),
        ("DELETE", f"{TUPLES}/{given.json['id']}", f"{TUPLES}/{nothing}", None),
    ):
        seen = [await stranger.call(method, where, body) for where in (there, not_there)]
        bare = [{**answer.json, "instance": "", "correlation_id": ""} for answer in seen]
        assert bare[0] == bare[1]
        assert seen[0].status in {403, 404}
    for resource in (wanted["resource"], f"project:{nothing}"):
        answer = await stranger.call("POST", "/v1/authz/check", {**wanted, "relation": "read", "resource": resource})
        assert (answer.json["decision"], answer.json["reason"]) == ("denied", "out_of_scope")
        body = {"subject_type": "user", "relation": "read", "resource": resource}
        assert (await stranger.call("POST", "/v1/authz/lookup-subjects", body)).json["items"] == []
    body = {"subject": subject, "relation": "read", "resource_type": "project"}
    assert (await stranger.call("POST", "/v1/authz/lookup-resources", body)).json["items"] == []
    # Nor does he see, or pay for, what others have.
    for listed in ("/v1/domains", "/v1/projects"):
        seen_list = await stranger.call("GET", listed)
        assert seen_list.json == {"items": [], "empty_reason": "no_rebac_membership"}
    assert (await stranger.call("GET", "/v1/nodes")).json == {"items": []}
    assert str(await stranger.call("POST", RECONCILE, {"repair": True})) == "403 permission_denied"
    await scene.operator.call("DELETE", f"{TUPLES}/{given.json['id']}")


async def test_a_grant_that_was_written_into_spicedb_is_found_and_taken_away(scene: Scene) -> None:
    """The attacker has SpiceDB's key; the truth is elsewhere."""
    intruder, subject = await someone(scene, "role-intruder")
    stack = State(scene.story.world.state)
    credentials = composite_channel_credentials(
        ssl_channel_credentials((stack / "pki/ca.crt").read_bytes()),
        access_token_call_credentials(stack.secret("spicedb.key")),
    )
    spicedb = AsyncClient(f"127.0.0.1:{stack.port('spicedb')}", credentials)
    forged = Relationship(
        resource=ObjectReference(object_type="project", object_id=scene.story.project_id),
        relation="admin",
        subject=SubjectReference(object=ObjectReference(object_type="user", object_id=subject.removeprefix("user:"))),
    )
    touch = RelationshipUpdate(operation=RelationshipUpdate.OPERATION_TOUCH, relationship=forged)
    await spicedb.WriteRelationships(WriteRelationshipsRequest(updates=[touch]))
    path = f"/v1/projects/{scene.story.project_id}"
    assert (await intruder.call("GET", path)).status == 200
    name = f"project:{scene.story.project_id}#admin@{subject}"
    shown = await scene.operator.call("POST", RECONCILE, {})
    assert name in shown.json["surplus"]
    assert (await intruder.call("GET", path)).status == 200
    repaired = await scene.operator.call("POST", RECONCILE, {"repair": True})
    assert (repaired.status, name in repaired.json["surplus"]) == (200, True)
    assert (await intruder.call("GET", path)).status == 403
    assert name not in (await scene.operator.call("POST", RECONCILE, {})).json["surplus"]
    rows = await scene.operator.call("GET", "/v1/platform/audit/entries?limit=200")
    modes = [row["decision"]["caveat_context"].get("mode") for row in rows.json["items"]]
    assert ["repair"] in modes
