"""Members that a body's schema does not name: refused by name wherever they could change what is meant."""

from typing import Any

import pytest

from services.gateway.document import JSON_BODY, load, operations
from services.gateway.tests.fakes import OPERATOR, OTHER, Client, FakePeer
from services.gateway.validation import OPEN_BODIES, compile_rules

pytestmark = pytest.mark.unit

DOCUMENT = load("https://plexsphere.test", (), "1")
WITH_BODY = {one.id: one for one in operations(DOCUMENT) if one.media == JSON_BODY}
TUPLES = f"/v1/authz/relation-tuples?project_id={OTHER}"
ROLE = {"subject": f"user:{OTHER}", "relation": "viewer", "resource": f"project:{OTHER}"}
SESSION = {"resource_id": OTHER, "kind": "ssh"}


@pytest.mark.parametrize("operation", sorted(WITH_BODY))
def test_every_operation_but_those_of_oauth_knows_its_members(operation: str) -> None:
    (compiled,) = compile_rules(DOCUMENT, [WITH_BODY[operation]])
    assert compiled.body is not None
    rules = {error.validator for error in compiled.body.iter_errors({"surprise": 1})}
    assert ("additionalProperties" in rules) == (operation not in OPEN_BODIES)


@pytest.mark.parametrize(
    ("path", "body", "code", "member"),
    [
        (TUPLES, ROLE | {"caveat": "expires"}, "invalid_body", "caveat"),
        (TUPLES, ROLE | {"expires_at": "2027-01-01T00:00:00Z"}, "invalid_body", "expires_at"),
        (f"/v1/projects/{OTHER}/sessions", SESSION | {"target": {"ssh": {"user": "a", "allowed_command": ["id"]}}},
         "invalid_body", "target.ssh.allowed_command"),
        (f"/v1/projects/{OTHER}/sessions", SESSION | {"target": {"rdp": {}}}, "invalid_target", "target.rdp"),
        (TUPLES, ROLE | {"x" * 500: 1}, "invalid_body", "x" * 64),
    ],
)  # fmt: skip
async def test_the_refusal_names_the_member(
    edge: Client, peer: FakePeer, path: str, body: Any, code: str, member: str
) -> None:
    answer = await edge.post(path, json=body, headers=OPERATOR)
    told = await answer.json(content_type=None)
    assert (answer.status, told["code"], told["detail"]) == (400, code, f"{member} is not known here")
    assert not {"CreateRelationTuple", "IssueSession"} & {name for name, _, _ in peer.asked}


async def test_a_bag_stays_a_bag(edge: Client, peer: FakePeer) -> None:
    await edge.post(TUPLES, json=ROLE | {"caveat_name": "expires", "caveat_context": {"until": "x"}}, headers=OPERATOR)
    request, _ = peer.last("CreateRelationTuple")
    assert request.tuple.caveat_context["until"] == "x"
