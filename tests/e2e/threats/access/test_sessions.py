"""F-4: what a session may be for, how it ends, who attaches, and where its token opens nothing."""

import asyncio
import time
import uuid

import pytest

from tests.e2e.outside import JSON, Login
from tests.e2e.sessions import Person, claims
from tests.e2e.threats.access.conftest import STRONG, Stage, no_token

pytestmark = pytest.mark.e2e

SSH, K8S, TCP = {"user": "root"}, {"user": "admin"}, {"host": "127.0.0.1", "port": 5432}
LONG = "x" * 1025
TARGETS: dict[str, tuple[str, JSON]] = {
    "none": ("ssh", {}),
    "two at once": ("ssh", {"ssh": SSH, "tcp": TCP}),
    "of another kind": ("ssh", {"tcp": TCP}),
    "of another kind, too": ("tcp", {"k8s": K8S}),
    "user that is an option": ("ssh", {"ssh": {"user": "-oProxyCommand=id"}}),
    "user with a space": ("ssh", {"ssh": {"user": "root x"}}),
    "user with a line end": ("ssh", {"ssh": {"user": "root\n"}}),
    "user that is a command": ("ssh", {"ssh": {"user": "$(id)"}}),
    "no user": ("ssh", {"ssh": {"user": ""}}),
    "command with a line end": ("ssh", {"ssh": {"user": "root", "allowed_commands": ["ls\nrm"]}}),
    "command with a NUL": ("ssh", {"ssh": {"user": "root", "allowed_commands": ["ls\0"]}}),
    "command that is empty": ("ssh", {"ssh": {"user": "root", "allowed_commands": [""]}}),
    "command without end": ("ssh", {"ssh": {"user": "root", "allowed_commands": [LONG]}}),
    "too many commands": ("ssh", {"ssh": {"user": "root", "allowed_commands": ["id"] * 65}}),
    "cluster user that is blank": ("k8s", {"k8s": {"user": "\u2003"}}),
    "cluster user with a bidirectional mark": ("k8s", {"k8s": {"user": "admin\u202e"}}),
    "group with a line end": ("k8s", {"k8s": {"user": "a", "impersonate_groups": ["x\r\nImpersonate-User: root"]}}),
    "too many groups": ("k8s", {"k8s": {"user": "a", "impersonate_groups": ["g"] * 33}}),
    "cloud metadata": ("tcp", {"tcp": {"host": "169.254.169.254", "port": 80}}),
    "cloud metadata as IPv6": ("tcp", {"tcp": {"host": "::ffff:169.254.169.254", "port": 80}}),
    "cloud metadata as a number": ("tcp", {"tcp": {"host": "2852039166", "port": 80}}),
    "cloud metadata in hex": ("tcp", {"tcp": {"host": "0xa9fea9fe", "port": 80}}),
    "any address": ("tcp", {"tcp": {"host": "0.0.0.0", "port": 80}}),
    "multicast": ("tcp", {"tcp": {"host": "224.0.0.1", "port": 80}}),
    "a zone": ("tcp", {"tcp": {"host": "fe80::1%eth0", "port": 80}}),
    "host with a path": ("tcp", {"tcp": {"host": "db/../x", "port": 80}}),
    "host that is empty": ("tcp", {"tcp": {"host": "", "port": 80}}),
    "port 0": ("tcp", {"tcp": {"host": "db", "port": 0}}),
    "port beyond the last": ("tcp", {"tcp": {"host": "db", "port": 65536}}),
}  # fmt: skip


async def test_a_target_that_a_node_could_misread_is_refused_before_anything_else(stage: Stage) -> None:
    person = await stage.person()
    async with stage.nothing_issued():
        for name, (kind, target) in TARGETS.items():
            answer = await stage.issue(person.edge, kind=kind, target=target)
            assert str(answer) in {"400 invalid_target", "400 invalid_body"}, f"{name}: {answer} {answer.body!r}"
            no_token(answer)
            # What is no request was not decided about.
            assert await stage.rows(answer) == []


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("ssh", {"ssh": {"user": "root", "allowed_commands": ["uptime -p"]}}),
        ("k8s", {"k8s": {"user": "system:admin", "impersonate_groups": ["ops", "a:b"]}}),
        ("tcp", {"tcp": {"host": "db.internal", "port": 5432}}),
    ],
)
async def test_a_target_of_each_kind_is_in_token_event_and_record(stage: Stage, kind: str, target: JSON) -> None:
    person = await stage.person()
    async with stage.listen() as node:
        issued = await stage.issue(person.edge, kind=kind, target=target)
        assert issued.status == 201, issued.body
        said = await claims(stage.story, issued.json["token"])
        assert (said["kind"], said["target"], said["aud"]) == (kind, target, f"node:{stage.story.node_a.node_id}")
        event = (await node.hears("session_setup")).envelope["payload"]
    assert (event["kind"], event["target"], event["session_id"]) == (kind, target, said["jti"])
    assert (await stage.row(issued))["context"]["session"] == [kind, said["jti"]]
    shown = await person.edge.call("GET", stage.path(said["jti"]))
    no_token(shown)
    assert shown.json["target"] == target


async def test_a_session_runs_out_by_itself(stage: Stage) -> None:
    person = await stage.person()
    issued = await stage.issue(person.edge, requested_ttl_seconds=4)
    session_id, said = issued.json["session_id"], await claims(stage.story, issued.json["token"])
    assert said["exp"] - said["iat"] == 4
    assert (await stage.report(session_id)).status == 204
    await asyncio.sleep(said["exp"] - time.time() + 0.1)
    for _turn in range(2):
        refused = await stage.report(session_id)
        assert str(refused) == "409 session_expired"
    assert [row["context"]["session"] for row in await stage.rows(refused)] in ([], [["session_expired"]])
    assert (await person.edge.call("GET", stage.path(session_id))).json["status"] == "expired"
    revoked = await person.edge.call("POST", stage.path(session_id, "/revoke"), {"revoke_reason": "operator_request"})
    assert (revoked.status, str(await stage.report(session_id))) == (204, "409 session_expired")


async def test_nobody_asks_for_more_time_than_the_policy_gives(stage: Stage) -> None:
    await stage.policy(max_ttl_seconds=120, default_ttl_seconds=60)
    person = await stage.person()
    for asked, given in (({"requested_ttl_seconds": 2**40}, 120), ({"requested_ttl_seconds": 121}, 120), ({}, 60)):
        said = await claims(stage.story, (await stage.issue(person.edge, **asked)).json["token"])
        assert said["exp"] - said["iat"] == given


async def test_signing_out_ends_the_stepped_up_session_and_its_token_at_the_node(stage: Stage) -> None:
    weak = await stage.person(Login("", "", ("hwk",)))
    strong = await weak.step_up(await stage.issue(weak.edge), STRONG)
    session_id = await stage.granted_once(await stage.issue(strong.edge))
    assert (await stage.report(session_id)).status == 204
    async with stage.listen() as node:
        assert (await strong.browser.call("DELETE", "/v1/auth/whoami")).status == 204
        heard = await node.hears("session_revoked")
    assert heard.envelope["payload"]["session_id"] == session_id
    assert str(await stage.report(session_id)) == "409 session_already_revoked"
    # The weaker login that is still there is no way back to it.
    answer = await stage.issue(weak.edge)
    await stage.refused(answer, "401 step_up_required", session=["ssh"], step_up=["acr_missing"])


async def test_attaching_is_for_the_owner_of_an_active_shell_and_not_provisioned(stage: Stage) -> None:
    person, other = await stage.person(), await stage.person()
    shell = (await stage.issue(person.edge)).json["session_id"]
    tunnel = (await stage.issue(person.edge, kind="tcp", target={"tcp": TCP})).json["session_id"]
    ended = await stage.issue(person.edge)
    await stage.revoke(person.edge, ended)
    over = ended.json["session_id"]
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="

    async def attach(who: Person, session_id: str, headers: dict[str, str] = upgrade) -> str:
        answer = await who.edge.call("GET", stage.path(session_id, "/attach"), headers=headers)
        no_token(answer)
        return str(answer)

    assert await attach(person, shell, {}) == "426 upgrade_required"
    assert await attach(other, shell) == "403 permission_denied"
    assert await attach(person, str(uuid.uuid4())) in {"404 not_found", "404 session_not_found"}
    assert await attach(person, over) == "409 session_not_active"
    assert await attach(person, tunnel) == "409 session_not_ssh"
    assert await attach(person, shell) == "501 access_attach_not_provisioned"


async def test_the_token_of_a_session_opens_nothing_of_the_control_plane(stage: Stage) -> None:
    issued = await stage.issue((await stage.person()).edge)
    session_id, node = issued.json["session_id"], f"/v1/nodes/{stage.story.node_a.node_id}"
    bearer = stage.scene.edge.as_bearer(issued.json["token"])
    project, reason = f"/v1/projects/{stage.story.project_id}", {"revoke_reason": "operator_request"}
    asked: list[tuple[str, str, JSON | None]] = [
        ("GET", "/v1/auth/whoami", None),
        ("GET", f"{project}/sessions", None),
        ("GET", stage.path(session_id), None),
        ("GET", stage.path(session_id, "/attach"), None),
        ("POST", stage.path(session_id, "/revoke"), reason),
        ("POST", f"{node}/sessions/{session_id}", {"ssh": {"command": "id"}}),
        ("GET", f"{node}/state", None),
        ("GET", f"{node}/events", None),
        ("PUT", f"/v1/domains/{stage.story.domain_id}/access-policy", {}),
        ("POST", "/v1/auth/sign-out/global", None),
    ]
    async with stage.nothing_issued():
        for method, path, body in asked:
            answer = await bearer.call(method, path, body)
            assert answer.status == 401, f"{method} {path}: {answer}"
        assert (await stage.issue(bearer)).status == 401
    assert (await stage.report(session_id)).status == 204
