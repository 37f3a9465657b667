"""Who is no longer known at the provider is out, although the session and its tokens have time left."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.e2e.attacker import eventually
from tests.e2e.outside import Edge, Login
from tests.e2e.threats.identity.visits import Party, party

pytestmark = pytest.mark.e2e

__all__ = ["party"]


@pytest.fixture
async def dba(party: Party) -> AsyncIterator[asyncpg.Connection]:
    """The superuser; the Domain's binding asks for refresh tokens meanwhile."""
    connection = await party.world.superuser()
    sql = "UPDATE identity.idp_bindings SET scopes = $2 WHERE domain_id = $1"
    scopes = ["openid", "email", "profile"]
    await connection.execute(sql, party.scene.story.domain_id, [*scopes, "offline_access"])
    yield connection
    await connection.execute(sql, party.scene.story.domain_id, scopes)
    await connection.close()


async def signed_in(party: Party, dba: asyncpg.Connection, subject: str) -> tuple[Edge, str]:
    """Return a browser, and the id of its session."""
    visit = await party.visit(Login(subject), party.scene.story.domain_id)
    browser = party.browser(await visit.finish())
    session_id = await dba.fetchval(
        "SELECT s.id FROM identity.sessions s JOIN identity.identities i ON i.id = s.identity_id WHERE i.subject = $1",
        subject,
    )
    return browser, session_id


async def ask_now(dba: asyncpg.Connection, session_id: str) -> str:
    """Make it time to ask, and return the ciphertext that was there."""
    sql = "UPDATE identity.sessions SET refresh_at = now() WHERE id = $1 RETURNING refresh_token"
    return str(await dba.fetchval(sql, session_id))


async def test_the_provider_is_asked_again_with_each_new_token(party: Party, dba: asyncpg.Connection) -> None:
    browser, session_id = await signed_in(party, dba, "keeper")
    for _ in range(2):
        before = await ask_now(dba, session_id)
        assert before.startswith("vault:v")

        async def rotated(before: str = before) -> bool:
            sql = "SELECT refresh_token FROM identity.sessions WHERE id = $1"
            return bool(await dba.fetchval(sql, session_id) != before)

        await eventually(rotated)
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 200


async def test_who_is_no_longer_known_loses_session_and_token(party: Party, dba: asyncpg.Connection) -> None:
    browser, session_id = await signed_in(party, dba, "dismissed")
    token = await party.scene.outside.access_token(browser, domain_id=party.scene.story.domain_id)
    bearer = party.scene.edge.as_bearer(token)
    assert (await bearer.call("GET", "/v1/auth/whoami")).status == 200
    url = party.world.env["PLEX_OIDC_B_ISSUER"] + "/development/disable"
    async with party.scene.outside.http.post(url, data={"subject": "dismissed"}) as answer:
        assert answer.status == 204
    await ask_now(dba, session_id)

    async def out() -> bool:
        return [(await edge.call("GET", "/v1/auth/whoami")).status for edge in (browser, bearer)] == [401, 401]

    await eventually(out)
    rows = await dba.fetch("SELECT chain, context FROM audit.entries WHERE object_id = $1", str(session_id))
    assert [(row["chain"], "invalid_grant" in row["context"]) for row in rows] == [(party.scene.story.domain_id, True)]


async def test_a_provider_that_was_not_asked_for_half_an_hour_is_not_believed(
    party: Party, dba: asyncpg.Connection
) -> None:
    browser, session_id = await signed_in(party, dba, "forgotten")
    await dba.execute("UPDATE identity.sessions SET confirmed_until = now() WHERE id = $1", session_id)
    assert (await browser.call("GET", "/v1/auth/whoami")).status == 401
