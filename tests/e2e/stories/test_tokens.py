"""API tokens, service identities and who is in a Domain, as their users see them."""

import json
import re
import uuid
import zlib
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.outside import JSON, Answer, Edge, Login

pytestmark = pytest.mark.e2e

PSK = re.compile(r"psk_dev_[0-9A-Za-z]{36}")
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def checksum(text: str) -> str:
    """Compute what a scanner would, without our code."""
    number = zlib.crc32(text.encode())
    return "".join(BASE62[number // 62**place % 62] for place in range(5, -1, -1))


def rows_of(answer: Answer) -> list[JSON]:
    rows: list[JSON] = json.loads(answer.body)
    return rows


async def dead(edge: Edge) -> None:
    """Wait for the notice to reach the edge, which forgets what it kept for seconds."""

    async def refused() -> bool:
        return (await edge.call("GET", "/v1/auth/whoami")).status == 401

    await eventually(refused, 3)


async def me(edge: Edge) -> str:
    who = (await edge.call("GET", "/v1/auth/whoami")).json
    return f"{who['principal_type']}:{who['subject']}"


async def issue(edge: Edge, owner: str, *, admin: bool = False, **more: Any) -> Answer:
    path = "/v1/admin/tokens" if admin else "/v1/auth/tokens"
    return await edge.call("POST", path, {"identity_ref": owner, "env_prefix": "dev", **more})


async def machine(scene: Scene, domain_id: str = "", kind: str = "api_token") -> JSON:
    body = {"display_name": "CI", "subject": uuid.uuid4().hex, "audience": "plexsphere", "federation_kind": kind}
    path = f"/v1/domains/{domain_id or scene.story.domain_id}/service-identities"
    created = await scene.operator.call("POST", path, body)
    assert created.status == 201, created.body
    return created.json


async def exchange(scene: Scene, client_id: str, secret: str, **more: Any) -> Answer:
    body = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret, **more}
    return await scene.edge.call("POST", "/v1/auth/service/token", body)


async def test_a_token_is_shown_once_used_and_revoked(scene: Scene) -> None:
    issued = await issue(scene.operator, await me(scene.operator))
    assert issued.status == 201, issued.body
    text = issued.json["plaintext"]
    assert PSK.fullmatch(text)
    assert text.endswith(checksum(text[:-6]))
    assert "Sunset" in issued.headers
    bearer = scene.edge.as_bearer(text)
    who = await bearer.call("GET", "/v1/auth/whoami")
    assert who.status == 200
    assert not {"acr", "amr", "auth_time"} & set(who.json)
    assert (await bearer.call("GET", f"/v1/domains/{scene.story.domain_id}")).status == 200
    listed = await scene.operator.call("GET", "/v1/auth/tokens")
    assert text not in listed.body.decode()
    (row,) = [row for row in rows_of(listed) if row["id"] == issued.json["id"]]
    assert {"last_used_at", "created_at", "expires_at", "env_prefix"} <= set(row)
    path = f"/v1/auth/tokens/{row['id']}"
    assert (await scene.operator.call("DELETE", path)).status == 204
    await dead(bearer)
    assert (await scene.operator.call("DELETE", path)).status == 404


async def test_a_rotated_token_lives_until_its_sunset(scene: Scene) -> None:
    issued = (await issue(scene.operator, await me(scene.operator), ttl_seconds=3600, scope=["read"])).json
    path = f"/v1/auth/tokens/{issued['id']}/rotate"
    rotated = await scene.operator.call("POST", path)
    assert rotated.status == 200, rotated.body
    assert parsedate_to_datetime(rotated.headers["Sunset"]).isoformat()[:19] == rotated.json["rotation_deadline"][:19]
    assert rotated.json["rotation_deadline"][:19] == issued["expires_at"][:19], "never beyond its own end"
    assert rotated.json["scope"] == ["read"]
    for text in (issued["plaintext"], rotated.json["plaintext"]):
        assert (await scene.edge.as_bearer(text).call("GET", "/v1/auth/whoami")).status == 200
    assert str(await scene.operator.call("POST", path)) == "409 api_token_rotated"
    again = await scene.operator.call("POST", f"/v1/auth/tokens/{rotated.json['id']}/rotate")
    assert again.status == 200


async def test_one_serves_oneself_and_no_other(scene: Scene) -> None:
    mine = (await issue(scene.operator, await me(scene.operator))).json
    stranger = await scene.outside.sign_in(Login("stranger"))
    assert str(await issue(stranger, await me(scene.operator))) == "403 permission_denied"
    assert (await issue(stranger, await me(stranger))).status == 201
    for method, path in (("DELETE", f"/v1/auth/tokens/{mine['id']}"), ("POST", f"/v1/auth/tokens/{mine['id']}/rotate")):
        assert (await stranger.call(method, path)).status == 404
        assert (await stranger.call(method, path.replace(mine["id"], str(uuid.uuid4())))).status == 404
        assert (await stranger.call(method, path.replace("auth", "admin"))).status == 403
    owner = await me(scene.operator)
    assert (await stranger.call("GET", f"/v1/admin/tokens?identity_ref={owner}")).status == 403
    assert (await issue(stranger, owner, admin=True)).status == 403
    assert str(await issue(scene.operator, owner, env_prefix="prod")) == "400 invalid_body"
    assert str(await issue(scene.operator, owner, ttl_seconds=31_536_001)) == "400 invalid_body"
    assert (await scene.edge.as_bearer(mine["plaintext"]).call("GET", "/v1/auth/whoami")).status == 200


async def test_an_administrator_serves_the_domains_people_and_machines(scene: Scene) -> None:
    domain = scene.story.domain_id
    person = await scene.outside.sign_in(Login("member"), domain)
    owner = await me(person)
    issued = await issue(scene.operator, owner, admin=True)
    assert issued.status == 201, issued.body
    assert await me(scene.edge.as_bearer(issued.json["plaintext"])) == owner
    listed = rows_of(await scene.operator.call("GET", f"/v1/admin/tokens?identity_ref={owner}"))
    assert [row["id"] for row in listed] == [issued.json["id"]]
    rotated = await scene.operator.call("POST", f"/v1/admin/tokens/{issued.json['id']}/rotate")
    assert "Sunset" in rotated.headers
    for row in (issued.json, rotated.json):
        assert (await scene.operator.call("DELETE", f"/v1/admin/tokens/{row['id']}")).status == 204
        await dead(scene.edge.as_bearer(row["plaintext"]))
    assert (await scene.operator.call("DELETE", f"/v1/admin/tokens/{uuid.uuid4()}")).status == 404


async def test_a_machine_comes_in_within_its_secret_and_dies_with_it(scene: Scene) -> None:
    client = await machine(scene)
    secret = (await issue(scene.operator, f"service:{client['id']}", admin=True, scope=["read", "deploy"])).json
    answer = await exchange(scene, client["id"], secret["plaintext"], scope="read")
    assert answer.status == 200, answer.body
    assert (answer.json["token_type"], answer.json["expires_in"], answer.json["scope"]) == ("Bearer", 900, "read")
    bearer = scene.edge.as_bearer(answer.json["access_token"])
    who = await bearer.call("GET", "/v1/auth/whoami")
    assert (who.json["principal_type"], who.json["subject"]) == ("service", client["id"])
    assert "acr" not in who.json
    assert str(await exchange(scene, client["id"], secret["plaintext"], scope="manage")) == "400 invalid_scope"
    assert (await scene.operator.call("DELETE", f"/v1/admin/tokens/{secret['id']}")).status == 204
    await dead(bearer)
    assert str(await exchange(scene, client["id"], secret["plaintext"])) == "401 invalid_client"


async def test_who_is_not_let_in_as_a_machine(scene: Scene) -> None:
    client, other = await machine(scene), await machine(scene)
    secret = (await issue(scene.operator, f"service:{client['id']}", admin=True)).json["plaintext"]
    personal = (await issue(scene.operator, await me(scene.operator))).json["plaintext"]
    flipped = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for client_id, text in (
        (other["id"], secret), (client["id"], personal), (client["id"], flipped), (client["id"], "x"),
        (str(uuid.uuid4()), secret), ("nobody", secret),
    ):  # fmt: skip
        assert str(await exchange(scene, client_id, text)) == "401 invalid_client"
    federated = await machine(scene, kind="spiffe_svid")
    assert str(await exchange(scene, federated["id"], secret)) == "403 federation_kind_mismatch"
    refused = await issue(scene.operator, f"service:{federated['id']}", admin=True)
    assert str(refused) == "403 federation_kind_mismatch"
    assert str(await exchange(scene, "", "")) == "400 invalid_body"
    jwt = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "client_assertion": "x"}
    assert str(await scene.edge.call("POST", "/v1/auth/service/token", jwt)) == "501 not_provisioned"


async def test_who_is_in_a_domain(scene: Scene) -> None:
    domain = scene.story.domain_id
    person = await scene.outside.sign_in(Login("member"), domain)
    client = await machine(scene)
    path = f"/v1/domains/{domain}/identities"
    people = (await scene.operator.call("GET", f"{path}?kind=user")).json["items"]
    assert {row["kind"] for row in people} == {"user"}
    machines = (await scene.operator.call("GET", f"{path}?kind=service-identity&limit=200")).json["items"]
    assert client["id"] in {row["id"] for row in machines}
    assert not {"email", "external_subject"} & set().union(*people, *machines)
    seen, cursor = [], ""
    while True:
        answer = (await scene.operator.call("GET", f"{path}?limit=1{cursor}")).json
        seen += [row["id"] for row in answer["items"]]
        if not answer.get("next_cursor"):
            break
        cursor = f"&cursor={answer['next_cursor']}"
    assert sorted(seen) == seen
    assert {client["id"], *(row["id"] for row in people)} <= set(seen)
    subject = (await me(person)).removeprefix("user:")
    detail = (await scene.operator.call("GET", f"{path}/{subject}")).json
    assert (detail["external_subject"], detail["email"]) == ("member", "member@example.test")
    assert re.fullmatch("[0-9a-f]{64}", detail["external_subject_pseudonym"])
    assert (await person.call("GET", path)).status == 403
    assert (await scene.operator.call("GET", f"{path}/{uuid.uuid4()}")).status == 404
    body = {"display_name": "CI", "subject": "s", "audience": "a", "federation_kind": "oidc_cc"}
    first = await scene.operator.call("POST", f"/v1/domains/{domain}/service-identities", body)
    assert first.headers["Location"] == f"{path}/{first.json['id']}"
    again = await scene.operator.call("POST", f"/v1/domains/{domain}/service-identities", body)
    assert str(again) == "409 already_exists"
    gone = f"/v1/domains/{domain}/service-identities/{first.json['id']}"
    assert (await scene.operator.call("DELETE", gone)).status == 204
    assert (await scene.operator.call("DELETE", gone)).status == 404
