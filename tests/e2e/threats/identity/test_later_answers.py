"""What a hostile provider says after the id_token: at a refresh, and at its userinfo endpoint."""

import uuid
from collections.abc import Callable

import pytest

from tests.e2e.attacker import eventually
from tests.e2e.threats.identity.conftest import Ring
from tests.e2e.threats.identity.hostile import Genuine

pytestmark = pytest.mark.e2e

SCOPES = ["openid", "email", "profile", "offline_access"]
SAYS: dict[str, tuple[Callable[[Genuine], str], str]] = {
    "refresh-token-invalid-issuer": (lambda g: g.says(iss="https://evil.example"), "iss"),
    "refresh-token-invalid-sub": (lambda g: g.says(sub="mallory"), "sub"),
    "another audience": (lambda g: g.says(aud="other-client"), "aud"),
    "a fresher login": (lambda g: g.says(auth_time=g.claims["auth_time"] + 1), "auth_time"),
    "nonce of another sign-in": (lambda g: g.says(nonce="other"), "nonce"),
    "key of the attacker": (lambda g: g.forged(), "signature"),
}


async def ask_now(ring: Ring, binding_id: str) -> list[uuid.UUID]:
    """Make it time to ask about the sessions of a binding; returns their ids."""
    dba = await ring.world.superuser()
    try:
        rows = await dba.fetch(
            "UPDATE identity.sessions s SET refresh_at = now() FROM identity.identities i "
            "WHERE i.id = s.identity_id AND i.binding_id = $1 RETURNING s.id",
            uuid.UUID(binding_id),
        )
    finally:
        await dba.close()
    return [row["id"] for row in rows]


@pytest.mark.parametrize("name", SAYS)
async def test_a_refresh_that_says_something_else_ends_the_session(ring: Ring, name: str) -> None:
    says, reason = SAYS[name]
    bound = await ring.bound("refresh", scopes=SCOPES)
    browser = await ring.accepts(bound, await ring.begin(bound))
    bound.door.token = says
    (session_id,) = await ask_now(ring, bound.binding_id)

    async def out() -> bool:
        return (await browser.call("GET", "/v1/auth/whoami")).status == 401

    await eventually(out)
    query = f"object_id={session_id}&limit=200"
    page = await ring.scene.operator.call("GET", f"/v1/domains/{bound.domain_id}/audit/entries?{query}")
    contexts = [row["decision"]["caveat_context"] for row in page.json["items"]]
    assert contexts == [{"action": ["session.end"], "refresh": [reason]}]


async def test_names_come_from_userinfo_of_the_same_subject_only(ring: Ring) -> None:
    bound = await ring.bound("userinfo", claim_mappings={"email": "upn"})
    bound.door.userinfo = lambda found: found | {"upn": "ada@corp.example"}
    browser = await ring.accepts(bound, await ring.begin(bound))
    assert (await browser.call("GET", "/v1/auth/whoami")).json["email"] == "ada@corp.example"
    assert bound.door.userinfo_calls == 1
    # userinfo-invalid-sub
    bound.door.userinfo = lambda found: found | {"sub": "mallory"}
    finished = await ring.finish(await ring.begin(bound))
    assert (finished.status, finished.code, finished.cookies) == (400, "sign_in_refused", {})
    assert "userinfo_sub" in {
        reason for row in await ring.rows(bound) for reason in row["decision"]["caveat_context"].get("id_token", [])
    }
    # What is refused before asks nothing.
    bound.door.token = lambda genuine: genuine.says(aud="other-client")
    await ring.refuses(bound, await ring.begin(bound), "aud")
