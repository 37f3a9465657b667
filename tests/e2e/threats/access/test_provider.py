"""F-4, F-5: whoever stands before the provider and changes what it says of a login, or says what it said earlier."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from tests.e2e.outside import Edge, Login
from tests.e2e.sessions import MFA, PHR, claims
from tests.e2e.threats.access.conftest import POLICY, Stage
from tests.e2e.threats.access.test_logins import ACR, AGE, ERROR
from tests.e2e.threats.identity.conftest import Bound, Ring, hostile, ring
from tests.e2e.threats.identity.hostile import DISCOVERY, Genuine

pytestmark = pytest.mark.e2e

__all__ = ["hostile", "ring"]

Said = Callable[[Genuine], str]
STRONG_ADA = Login("ada", PHR, ("hwk",))
WEAK, STRONG = Login("", MFA, ("hwk",)), Login("", PHR, ("hwk",))


async def door_of(stage: Stage, ring: Ring) -> Bound:
    """Let the Domain believe a provider that does what its door says, beside its own."""
    name = uuid.uuid4().hex[:10]
    door, domain = ring.hostile.door(name), stage.story.domain_id
    await ring.keep(
        domain, {"client_secret": (stage.world.state / f"secrets/{ring.hostile.provider}.secret").read_text()}
    )
    binding = {
        "domain_id": domain, "issuer": door.url, "client_id": stage.world.env["PLEX_OIDC_A_CLIENT_ID"],
        "client_secret_ref": f"kv/idp/{domain}/op", "discovery_url": door.url + DISCOVERY, "jit_policy": "allow",
        "primary": False,
    }  # fmt: skip
    bound = await stage.story.operator.call("POST", "/v1/admin/idp", binding)
    assert bound.status == 201, bound.body
    return Bound(domain, bound.json["id"], door)


async def through(stage: Stage, ring: Ring, bound: Bound, login: Login) -> Edge:
    """Sign in by a door; returns the edge by access token, of whoever may act now."""
    browser = await ring.accepts(bound, await ring.begin(bound, {"idp_binding_id": bound.binding_id}, login))
    subject = (await browser.call("GET", "/v1/auth/whoami")).json["subject"]
    body = {"subject": f"user:{subject}", "relation": "operator", "resource": f"project:{stage.story.project_id}"}
    given = await stage.story.operator.call(
        "POST", f"/v1/authz/relation-tuples?project_id={stage.story.project_id}", body
    )
    assert given.status in {201, 409}, given.body
    return stage.scene.edge.as_bearer(await stage.scene.outside.access_token(browser, domain_id=bound.domain_id))


# What the provider does not do: it signs, and the login is believed, but there is no session for it.
UNSAID: dict[str, tuple[Said, list[str], str]] = {
    "no auth_time": (lambda g: g.says(auth_time=...), ["auth_time_missing"], AGE),
    "no acr": (lambda g: g.says(acr=...), ["acr_missing"], ACR),
    "no amr": (lambda g: g.says(amr=...), ["amr_missing"], ""),
    "acr that is nothing": (lambda g: g.says(acr=None), ["acr_missing"], ACR),
    "acr that is empty": (lambda g: g.says(acr=""), ["acr_missing"], ACR),
    "auth_time of the beginning": (lambda g: g.says(auth_time=0), ["auth_time_stale"], AGE),
    "auth_time a fraction past": (lambda g: g.says(auth_time=g.now - 300.5), ["auth_time_stale"], AGE),
    "acr as a method": (lambda g: g.says(acr=..., amr=["hwk", PHR]), ["acr_missing"], ACR),
    "acr under another name": (lambda g: g.says(acr=..., acr_values=PHR, acrs=[PHR]), ["acr_missing"], ACR),
}
# What is no claim in its form is not even a login.
UNFORMED: dict[str, tuple[Said, str]] = {
    "acr as a list": (lambda g: g.says(acr=[PHR]), "acr_form"),
    "acr as an object": (lambda g: g.says(acr={"value": PHR}), "acr_form"),
    "amr as text": (lambda g: g.says(amr="hwk"), "amr_form"),
    "auth_time as text": (lambda g: g.says(auth_time=str(g.now)), "auth_time_form"),
    "auth_time that is true": (lambda g: g.says(auth_time=True), "auth_time_form"),
    "auth_time without end": (lambda g: g.says(auth_time=1e300), "auth_time_form"),
}


async def test_what_the_provider_left_unsaid_is_not_so(stage: Stage, ring: Ring) -> None:
    bound = await door_of(stage, ring)
    async with stage.nothing_issued():
        for name, (said, names, challenge) in UNSAID.items():
            bound.door.token = said
            edge = await through(stage, ring, bound, replace(STRONG, subject=f"unsaid-{uuid.uuid4().hex[:8]}"))
            answer = await stage.issue(edge)
            assert str(answer) == "401 step_up_required", name
            await stage.refused(answer, "401 step_up_required", session=["ssh"], step_up=names)
            assert answer.headers["WWW-Authenticate"] == ERROR + challenge, name


async def test_a_claim_in_another_form_makes_no_login(stage: Stage, ring: Ring) -> None:
    bound = await door_of(stage, ring)
    for said, reason in UNFORMED.values():
        bound.door.token = said
        await ring.refuses(bound, await ring.begin(bound, {"idp_binding_id": bound.binding_id}, STRONG_ADA), reason)


def answered(older: str, _: Genuine) -> str:
    return older


async def test_an_older_id_token_replayed_at_a_step_up_makes_no_login(stage: Stage, ring: Ring) -> None:
    """Whoever stands before the provider answers with what it said earlier: of a weak login, or of a strong one."""
    bound, seen, name = await door_of(stage, ring), list[str](), f"replay-{uuid.uuid4().hex[:8]}"
    asked = {"idp_binding_id": bound.binding_id}
    weak, strong = replace(WEAK, subject=name), replace(STRONG, subject=name)

    def kept(genuine: Genuine) -> str:
        seen.append(genuine.token)
        return genuine.token

    bound.door.token = kept
    edges = [await through(stage, ring, bound, login) for login in (weak, strong)]
    issued = await stage.issue(edges[1])
    await stage.granted_once(issued)
    assert (await claims(stage.story, issued.json["token"]))["acr"] == PHR
    step_up = asked | {"acr_values": POLICY["required_acr"], "max_age": POLICY["max_auth_age_seconds"]}
    for older, login, wanted in ((seen[0], strong, step_up), (seen[1], weak, step_up), (seen[1], weak, asked)):
        bound.door.token = partial(answered, older)
        await ring.refuses(bound, await ring.begin(bound, wanted, login), "nonce")
    async with stage.nothing_issued():
        answer = await stage.issue(edges[0])
        await stage.refused(answer, "401 step_up_required", session=["ssh"], step_up=["acr_insufficient"])
