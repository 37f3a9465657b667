"""Who is believed and who may what is decided by people who signed in; what leaks makes nobody an administrator."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.outside import Answer, Edge, Login
from tests.e2e.sessions import MFA, PHR

pytestmark = pytest.mark.e2e

TUPLES = "/v1/authz/relation-tuples"
NOBODY = str(uuid.uuid4())
KEYS = "/v1/domains/{domain}/signing-keys"
EVIL = {
    "issuer": "https://evil.example", "client_id": "c", "client_secret_ref": "kv/idp/{domain}/op",
    "discovery_url": "https://evil.example/.well-known/openid-configuration", "jit_policy": "allow", "primary": False,
}  # fmt: skip
TOKEN = {"identity_ref": "user:{member}", "env_prefix": "dev"}
ROLE = {"subject": "user:{member}", "relation": "admin", "resource": "domain:{domain}"}
# What decides who is believed or who may what.
DECISIONS: dict[str, tuple[str, str, Any]] = {
    "a provider of one's own": ("POST", "/v1/admin/idp", {"domain_id": "{domain}", **EVIL}),
    "a provider elsewhere": ("PATCH", "/v1/admin/idp/{binding}", {"discovery_url": "https://evil.example/.well-known/openid-configuration"}),
    "no provider any more": ("PATCH", "/v1/admin/idp/{binding}/status", {"status": "deactivated"}),
    "a provider less": ("DELETE", "/v1/admin/idp/{binding}", None),
    "the platform's provider elsewhere": (
        "PATCH", "/v1/admin/idp/{platform}", {"discovery_url": "https://evil.example/.well-known/openid-configuration"},
    ),
    "a role": ("POST", TUPLES + "?project_id={project}", ROLE),
    "another role": ("PATCH", TUPLES + "/{tuple}", ROLE),
    "a role less": ("DELETE", TUPLES + "/{tuple}", None),
    "a laxer policy": ("PUT", "/v1/domains/{domain}/access-policy", {"max_auth_age_seconds": 86400}),
    "a machine": (
        "POST", "/v1/domains/{domain}/service-identities",
        {"display_name": "m", "subject": "{random}", "audience": "a", "federation_kind": "api_token"},
    ),
    "a machine less": ("DELETE", "/v1/domains/{domain}/service-identities/{nobody}", None),
    "a token": ("POST", "/v1/admin/tokens", TOKEN),
    "a token in place of another": ("POST", "/v1/admin/tokens/{token}/rotate", None),
    "a token less": ("DELETE", "/v1/admin/tokens/{token}", None),
}  # fmt: skip


def filled(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: filled(inner, places) for key, inner in value.items()}
    return value.format(**places) if isinstance(value, str) else value


async def subject_of(edge: Edge) -> str:
    subject: str = (await edge.call("GET", "/v1/auth/whoami")).json["subject"]
    return subject


async def issue(edge: Edge, **more: Any) -> Answer:
    body = {"identity_ref": f"user:{await subject_of(edge)}", "env_prefix": "dev", **more}
    return await edge.call("POST", "/v1/auth/tokens", body)


async def role(scene: Scene, member: str, name: str, **more: Any) -> str:
    story = scene.story
    body = {"subject": f"user:{member}", "relation": name, "resource": f"domain:{story.domain_id}", **more}
    given = await scene.operator.call("POST", f"{TUPLES}?project_id={story.project_id}", body)
    assert given.status == 201, given.body
    identifier: str = given.json["id"]
    return identifier


def first(answer: Answer) -> str:
    identifier: str = json.loads(answer.body)[0]["id"]
    return identifier


@pytest.mark.parametrize("name", DECISIONS)
async def test_a_leaked_token_decides_nothing(scene: Scene, name: str) -> None:
    story, operator = scene.story, scene.operator
    member = await subject_of(await scene.outside.sign_in(Login(f"in-person-{uuid.uuid4().hex}"), story.domain_id))
    leaked, other = (await issue(operator, scope=["manage"], ttl_seconds=600)).json, (await issue(operator)).json
    places = {
        "domain": story.domain_id, "project": story.project_id, "member": member, "nobody": NOBODY,
        "binding": first(await operator.call("GET", f"/v1/admin/idp?domain_id={story.domain_id}")),
        "platform": first(await operator.call("GET", "/v1/admin/platform-idp")),
        "tuple": await role(scene, member, "member"), "token": other["id"], "random": uuid.uuid4().hex,
    }  # fmt: skip
    method, path, body = DECISIONS[name]
    refused = await scene.edge.as_bearer(leaked["plaintext"]).call(method, path.format(**places), filled(body, places))
    assert (str(refused), refused.json["reason"]) == ("403 permission_denied", "caveat_violation")
    wanted = f"correlation_id={refused.headers['X-Correlation-Id']}"
    chains = [f"/v1/domains/{story.domain_id}", "/v1/platform"]
    found = [await operator.call("GET", f"{chain}/audit/entries?{wanted}") for chain in chains]
    (row,) = [row for answer in found for row in answer.json["items"]]
    assert (row["reason"], row["decision"]["caveat_context"]["token"]) == ("caveat_violation", ["credential"])


# As services other than identity decide them, or as nobody but people ever does.
MORE: dict[str, tuple[str, str, Any]] = {
    "another session key": (
        "POST",
        "/v1/domains/{domain}/signing-keys/rotate",
        {"use": "session", "transition_seconds": 60},
    ),
    "no session key any more": ("POST", KEYS + "/{session_key}/revoke", None),
    "a node without its keys": ("POST", "/v1/nodes/{node}/secret-key/revoke", None),
}
# To end a token needs no strength: whoever found it has ended nothing but his own way in.
TAKES_STRENGTH = {name: one for name, one in (DECISIONS | MORE).items() if name != "a token less"}


@pytest.mark.parametrize("name", TAKES_STRENGTH)
async def test_an_old_login_decides_nothing(scene: Scene, name: str) -> None:
    story, operator = scene.story, scene.operator
    member = await subject_of(await scene.outside.sign_in(Login(f"in-person-{uuid.uuid4().hex}"), story.domain_id))
    places = {
        "domain": story.domain_id, "project": story.project_id, "member": member, "nobody": NOBODY,
        "binding": first(await operator.call("GET", f"/v1/admin/idp?domain_id={story.domain_id}")),
        "platform": first(await operator.call("GET", "/v1/admin/platform-idp")),
        "tuple": await role(scene, member, "member"), "token": (await issue(operator)).json["id"],
        "random": uuid.uuid4().hex, "session_key": await session_key(scene), "node": story.node_a.node_id,
    }  # fmt: skip
    browser = await scene.outside.sign_in(Login("operator", auth_age_s=960))
    method, path, body = TAKES_STRENGTH[name]
    for old in (browser, scene.edge.as_bearer(await scene.outside.access_token(browser))):
        refused = await old.call(method, path.format(**places), filled(body, places))
        assert str(refused) == "401 step_up_required"
        assert refused.headers["WWW-Authenticate"] == 'Bearer error="insufficient_user_authentication", max_age="900"'
        wanted = f"correlation_id={refused.headers['X-Correlation-Id']}"
        chains = [f"/v1/domains/{story.domain_id}", "/v1/platform"]
        found = [await operator.call("GET", f"{chain}/audit/entries?{wanted}") for chain in chains]
        (row,) = [row for answer in found for row in answer.json["items"]]
        named = row["decision"]["caveat_context"]["step_up"]
        assert (row["reason"], named) == ("caveat_violation", ["auth_time_stale"])


async def session_key(scene: Scene) -> str:
    keys = f"/v1/domains/{scene.story.domain_id}/signing-keys"
    rotated = await scene.operator.call("POST", f"{keys}/rotate", {"use": "session", "transition_seconds": 60})
    if rotated.status == 404:
        # Made with the first session, by somebody whom nobody lets in here.
        return "sek_" + "0" * 32
    assert rotated.status == 200, rotated.body
    identifier: str = rotated.json["key_id"]
    return identifier


WEAKENING: dict[str, tuple[str, str, Any]] = {
    "a laxer policy": DECISIONS["a laxer policy"],
    "a policy without a class": ("PUT", "/v1/domains/{domain}/access-policy", {}),
    "a provider of one's own": DECISIONS["a provider of one's own"],
    "no provider any more": DECISIONS["no provider any more"],
    "a provider less": DECISIONS["a provider less"],
    "a role for an accomplice": DECISIONS["a role"],
    "another role": DECISIONS["another role"],
}


async def test_a_weak_login_opens_nothing_that_it_cannot_enter(scene: Scene) -> None:
    story, operator = scene.story, scene.operator
    policy = f"/v1/domains/{story.domain_id}/access-policy"
    assert (await operator.call("PUT", policy, {"required_acr": [PHR]})).status == 200
    who = f"in-person-{uuid.uuid4().hex}"
    weak = await scene.outside.sign_in(Login(who, acr=MFA), story.domain_id)
    given = await role(scene, await subject_of(weak), "admin")
    places = {
        "domain": story.domain_id, "project": story.project_id, "member": NOBODY, "tuple": given,
        "binding": first(await operator.call("GET", f"/v1/admin/idp?domain_id={story.domain_id}")),
    }  # fmt: skip
    for method, path, body in WEAKENING.values():
        refused = await weak.call(method, path.format(**places), filled(body, places))
        assert str(refused) == "401 step_up_required", path
        assert f'acr_values="{PHR}"' in refused.headers["WWW-Authenticate"]
    assert (await operator.call("GET", policy)).json["required_acr"] == [PHR]
    # What the challenge asks for opens it.
    strong = await scene.outside.sign_in(Login(who, acr=PHR), story.domain_id)
    assert (await strong.call("PUT", policy, {"required_acr": [PHR, MFA]})).status == 200
    assert (await operator.call("PUT", policy, {})).status == 200


async def test_what_is_sent_before_a_sign_out_and_ends_after_it_does_nothing(scene: Scene) -> None:
    story = scene.story
    who = f"in-person-{uuid.uuid4().hex}"
    browser = await scene.outside.sign_in(Login(who), story.domain_id)
    await role(scene, await subject_of(browser), "admin")
    policy, signed_out = f"/v1/domains/{story.domain_id}/access-policy", asyncio.Event()

    async def held_back() -> AsyncIterator[bytes]:
        yield b'{"max_ttl_seconds": '
        await signed_out.wait()
        yield b"61}"

    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    headers = {
        "Cookie": cookies, "Content-Type": "application/json", "Origin": browser.url,
        "X-Plexsphere-CSRF": browser.cookies["plexsphere_csrf"],
    }  # fmt: skip
    putting = asyncio.create_task(put(scene, policy, held_back(), headers))
    await asyncio.sleep(0.5)
    assert (await browser.call("DELETE", "/v1/auth/whoami")).status == 204
    await asyncio.sleep(1)
    signed_out.set()
    assert await putting == 401
    assert (await scene.operator.call("GET", policy)).json["max_ttl_seconds"] != 61


async def put(scene: Scene, path: str, body: AsyncIterator[bytes], headers: dict[str, str]) -> int:
    async with scene.outside.http.put(scene.outside.url + path, data=body, headers=headers) as answer:
        return answer.status


async def test_an_old_login_issues_no_token(scene: Scene) -> None:
    old = await scene.outside.sign_in(Login("in-person-old", auth_age_s=3600))
    refused = await issue(old)
    assert str(refused) == "401 step_up_required"
    assert (
        'max_age="900"' in refused.headers["WWW-Authenticate"] or "max_age=900" in refused.headers["WWW-Authenticate"]
    )
    phished = scene.edge.as_bearer(await scene.outside.access_token(old))
    assert str(await issue(phished)) == "401 step_up_required"
    fresh = await scene.outside.sign_in(Login("in-person-old"))
    issued = await issue(fresh)
    assert issued.status == 201, issued.body
    assert str(await old.call("POST", f"/v1/auth/tokens/{issued.json['id']}/rotate")) == "401 step_up_required"
    # To take something away needs no strength.
    assert (await old.call("DELETE", f"/v1/auth/tokens/{issued.json['id']}")).status == 204


async def test_signing_out_ends_what_the_session_approved(scene: Scene) -> None:
    browser, other = [await scene.outside.sign_in(Login("in-person-out")) for _ in range(2)]
    phished, kept = [scene.edge.as_bearer(await scene.outside.access_token(one)) for one in (browser, other)]
    assert (await phished.call("GET", "/v1/auth/whoami")).status == 200
    assert (await browser.call("DELETE", "/v1/auth/whoami")).status == 204

    async def ended() -> bool:
        return (await phished.call("GET", "/v1/auth/whoami")).status == 401

    await eventually(ended, 3)
    assert (await kept.call("GET", "/v1/auth/whoami")).status == 200


async def test_a_role_for_a_while_does_not_make_itself_last(scene: Scene) -> None:
    story = scene.story
    ada = await scene.outside.sign_in(Login("in-person-ada"), story.domain_id)
    member = await subject_of(ada)
    until = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = await role(scene, member, "admin", caveat_name="expires", caveat_context={"until": until})
    body = {"subject": f"user:{member}", "relation": "admin", "resource": f"domain:{story.domain_id}"}
    assert (await ada.call("PATCH", f"/v1/domains/{story.domain_id}", {"description": "hers"})).status == 200
    for method, path in (("PATCH", f"{TUPLES}/{given}"), ("POST", f"{TUPLES}?project_id={story.project_id}")):
        refused = await ada.call(method, path, body)
        assert (str(refused), refused.json["reason"]) == ("403 permission_denied", "caveat_violation")
