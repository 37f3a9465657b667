"""Who may bind a provider to what: another Domain's client secret, addresses inside, and people that were let go."""

import asyncio
import contextlib
import ssl
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from aiohttp import web

from tests.e2e.conftest import Scene
from tests.e2e.outside import JSON, Answer, Edge, Login, own_browser
from tests.e2e.stories.main_job import Story, action, entries
from tests.e2e.threats.identity.hostile import DISCOVERY

pytestmark = pytest.mark.e2e

IDP = "/v1/admin/idp"
GRANT = """
INSERT INTO identity.relation_tuples (id, resource_type, resource_id, relation, subject_type, subject_id, state)
VALUES (gen_random_uuid(), 'domain', $1, $3, 'user', $2, 'pending')
"""


async def a_domain(scene: Scene) -> str:
    """Create a Domain of this test's own."""
    tag = uuid.uuid4().hex
    cidr = f"fd{tag[:2]}:{tag[2:6]}:{tag[6:10]}:{tag[10:14]}::/64"
    made = await scene.operator.call("POST", "/v1/domains", {"name": "B", "slug": f"b-{tag[:12]}", "mesh_cidr": cidr})
    assert made.status == 201, made.body
    return str(made.json["id"])


async def bind(scene: Scene, domain_id: str, issuer: str, reference: str, **more: Any) -> Answer:
    """Ask for a binding of a Domain."""
    body = {
        "domain_id": domain_id,
        "issuer": issuer,
        "client_id": "plexsphere",
        "client_secret_ref": reference,
        "discovery_url": f"{issuer}/.well-known/openid-configuration",
        "jit_policy": "allow",
        "primary": True,
    }
    return await scene.operator.call("POST", IDP, body | more)


@dataclass
class Bound:
    """A Domain of a test's own with the real provider, and how people come in there."""

    scene: Scene
    domain_id: str
    binding: JSON

    @property
    def path(self) -> str:
        return f"{IDP}/{self.binding['id']}"

    async def patch(self, **changes: Any) -> Answer:
        return await self.scene.operator.call("PATCH", self.path, changes)

    async def status(self, status: str) -> Answer:
        return await self.scene.operator.call("PATCH", f"{self.path}/status", {"status": status})

    async def sign_in(self, login: Login) -> Edge:
        return await self.scene.outside.sign_in(login, self.domain_id)

    async def callback(self, login: Login) -> tuple[str, dict[str, str]]:
        """Walk a sign-in up to the callback, at a provider that does not care how old a login is.

        Returns where it comes back, and what the browser sends along.
        """
        started = await self.scene.edge.call("POST", "/v1/auth/sign-in", {"domain_id": self.domain_id})
        assert started.status == 200, started.body
        parts = urlsplit(started.json["authorization_url"])
        query = {name: values[0] for name, values in parse_qs(parts.query).items() if name != "max_age"}
        url = parts._replace(query=urlencode(query)).geturl()
        back = await login.authorize(self.scene.outside.http, url, self.scene.story.world.edge_url)
        return back, {"Accept": "application/json", **own_browser(started)}

    async def refused(self, login: Login) -> bool:
        back, headers = await self.callback(login)
        async with self.scene.outside.http.get(back, headers=headers, allow_redirects=False) as answer:
            problem = await answer.json() if answer.status == 400 else {}
            # Cookies that are taken back are none.
            given = any(morsel.value for morsel in answer.cookies.values())
        assert given == (not problem)
        return problem.get("code") == "sign_in_refused"


@pytest.fixture
async def bound(scene: Scene) -> Bound:
    domain_id = await a_domain(scene)
    reference = await scene.story.world.lend_client_secret(domain_id)
    made = await bind(scene, domain_id, scene.story.world.env["PLEX_OIDC_B_ISSUER"], reference)
    assert made.status == 201, made.body
    return Bound(scene, domain_id, made.json)


# The secret of another one -------------------------------------------------------------------------------------------


@dataclass
class Thief:
    """A provider on TLS that identity would trust, and what it is sent."""

    issuer: str = ""
    document: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    caught: list[str] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if "Authorization" in request.headers:
            self.caught.append(request.headers["Authorization"])
        if request.path == "/jwks":
            return web.json_response({"keys": []})
        return web.json_response(self.document)


@pytest.fixture
async def thief(scene: Scene) -> AsyncIterator[Thief]:
    one, application, pki = Thief(), web.Application(), scene.story.world.state / "pki"
    application.router.add_route("*", "/{path:.*}", one.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki / "oidc-b.crt", pki / "oidc-b.key")
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    one.issuer = f"https://127.0.0.1:{runner.addresses[0][1]}"
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    paths = dict(zip(names, ("/auth", "/token", "/jwks"), strict=True))
    one.document = {"issuer": one.issuer} | {name: one.issuer + path for name, path in paths.items()}
    yield one
    await runner.cleanup()


async def come_back(scene: Scene, domain_id: str) -> Answer:
    """Start a sign-in and bring a made-up code, so that identity asks the token endpoint."""
    started = await scene.edge.call("POST", "/v1/auth/sign-in", {"domain_id": domain_id})
    assert started.status == 200, started.body
    asked = parse_qs(urlsplit(started.json["authorization_url"]).query)
    back, query = urlsplit(asked["redirect_uri"][0]).path, urlencode({"code": "c", "state": started.json["state"]})
    headers = {"Accept": "application/json", **own_browser(started)}
    return await scene.edge.call("GET", f"{back}?{query}", headers=headers)


async def test_a_domain_cannot_have_anothers_client_secret_sent_to_itself(scene: Scene, thief: Thief) -> None:
    own, theirs = await a_domain(scene), scene.story.domain_id
    references = (
        f"kv/idp/{theirs}/oidc-b",
        "kv/idp/platform/oidc-b",
        f"kv/idp/{own}/../{theirs}/oidc-b",
        "kv/idp/oidc-b",
    )
    for reference in references:
        bound = await bind(scene, own, thief.issuer, reference)
        if bound.status == 201:
            await come_back(scene, own)
        assert (bound.status, thief.caught) == (400, []), reference
    # With a secret of its own the way is open: it was the owner that was refused, not the attack that was broken.
    assert (await bind(scene, own, thief.issuer, await scene.story.world.lend_client_secret(own))).status == 201
    await come_back(scene, own)
    assert len(thief.caught) == 1


async def test_who_owns_the_database_cannot_write_it_either(scene: Scene, bound: Bound) -> None:
    dba = await scene.story.world.superuser()
    try:
        for column, value, rule in (
            ("client_secret_ref", f"kv/idp/{scene.story.domain_id}/oidc-b", "client_secret_is_its_owners"),
            ("client_secret_ref", "kv/idp/platform/oidc-b", "client_secret_is_its_owners"),
            ("discovery_url", f"https://evil.example{DISCOVERY}", "discovery_is_the_issuers"),
        ):
            with pytest.raises(Exception, match=rule):
                await dba.execute(
                    f"UPDATE identity.idp_bindings SET {column} = $2 WHERE id = $1",
                    uuid.UUID(bound.binding["id"]),
                    value,
                )
    finally:
        await dba.close()


# The network around identity -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def inside(host: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Listen at an address that the operator did not list; who connects is noted."""
    seen: list[str] = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(str(writer.get_extra_info("peername")))
        writer.close()

    server = await asyncio.start_server(connected, host, 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"https://{f'[{host}]' if ':' in host else host}:{port}", seen


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
async def test_a_provider_cannot_be_inside(scene: Scene, thief: Thief, host: str) -> None:
    own = await a_domain(scene)
    reference = await scene.story.world.lend_client_secret(own)
    async with inside(host) as (url, seen):
        direct = await bind(scene, own, url, reference)
        thief.document["jwks_uri"] = f"{url}/jwks"
        keys = await bind(scene, own, thief.issuer, reference)
        assert [str(one) for one in (direct, keys)] == ["502 provider_failed"] * 2
        thief.document |= {"jwks_uri": f"{thief.issuer}/jwks", "token_endpoint": f"{url}/token"}
        assert (await bind(scene, own, thief.issuer, reference)).status == 201
        assert str(await come_back(scene, own)) == "502 provider_failed"
        assert seen == []


async def test_a_providers_url_holds_no_credentials_and_an_issuer_no_query(scene: Scene, thief: Thief) -> None:
    own = await a_domain(scene)
    reference = await scene.story.world.lend_client_secret(own)
    with_word = thief.issuer.replace("https://", "https://user:word@")
    for issuer in (with_word, f"{thief.issuer}?a", f"{thief.issuer}#a", thief.issuer.replace("https", "http")):
        assert (await bind(scene, own, issuer, reference)).status == 400
    for name in ("token_endpoint", "jwks_uri", "authorization_endpoint"):
        good = thief.document[name]
        thief.document[name] = good.replace("https://", "https://user:word@")
        assert (await bind(scene, own, thief.issuer, reference)).status == 502
        thief.document[name] = good
    assert thief.caught == []


# The accounts of a binding --------------------------------------------------------------------------------------------


async def test_whoever_manages_a_binding_cannot_be_its_people(scene: Scene, thief: Thief, bound: Bound) -> None:
    """A document elsewhere that names the real issuer, with keys of its own, would say who anybody is."""
    issuer = bound.binding["issuer"]
    thief.document["issuer"] = issuer
    elsewhere = f"{thief.issuer}{DISCOVERY}"
    own = await a_domain(scene)
    reference = await scene.story.world.lend_client_secret(own)
    for answer in (
        await bound.patch(discovery_url=elsewhere),
        await bound.patch(discovery_url=f"{bound.binding['discovery_url']}?a"),
        await bind(scene, own, issuer, reference, discovery_url=elsewhere),
    ):
        assert str(answer) == "400 invalid_body"
        assert "discovery_url must be" in answer.json["detail"]
    assert (await scene.operator.call("GET", bound.path)).json == bound.binding
    await come_back(scene, bound.domain_id)
    assert (thief.asked, thief.caught) == ([], [])


# What a binding says holds -------------------------------------------------------------------------------------------


async def test_what_a_binding_asks_of_a_login_holds(bound: Bound) -> None:
    login = Login("grace", amr=("pwd", "otp"), auth_age_s=120)
    assert not await bound.refused(login)
    for changes, back in (
        ({"max_auth_age_seconds": 60}, {"max_auth_age_seconds": 0}),
        ({"accepted_amr": ["pwd"]}, {"accepted_amr": []}),
        ({"required_amr": ["fpt"]}, {"required_amr": []}),
        ({"id_token_algorithms": ["ES256"]}, {"id_token_algorithms": []}),
    ):
        assert (await bound.patch(**changes)).status == 200
        assert await bound.refused(login), changes
        assert (await bound.patch(**back)).status == 200
        assert not await bound.refused(login), changes


async def test_who_never_was_is_not_let_in_by_a_binding_that_is_closed(bound: Bound) -> None:
    assert not await bound.refused(Login("early"))
    assert (await bound.patch(jit_policy="deny")).status == 200
    assert await bound.refused(Login("late"))
    assert not await bound.refused(Login("early"))


async def test_a_patch_is_whole_or_nothing(scene: Scene, bound: Bound) -> None:
    before = bound.binding
    assert str(await bound.patch()) == "400 empty_patch"
    assert str(await bound.patch(updated_at=before["updated_at"])) == "400 empty_patch"
    for wrong in (
        {"issuer": "https://x.example"},
        {"client_secret_ref": "kv/idp/platform/oidc-a"},
        {"primary": None},
        {"clock_leeway_seconds": 61},
        {"max_auth_age_seconds": -1},
        {"id_token_algorithms": ["HS256"]},
        {"id_token_algorithms": ["none"]},
        {"jit_policy": "maybe"},
        {"required_amr": ["a"], "accepted_amr": ["b"]},
    ):
        assert (await bound.patch(alias="new", **wrong)).status == 400, wrong
    assert (await scene.operator.call("GET", bound.path)).json == before
    first = await bound.patch(alias="one", updated_at=before["updated_at"])
    assert (first.status, first.json["alias"]) == (200, "one")
    assert str(await bound.patch(alias="two", updated_at=before["updated_at"])) == "409 binding_conflict"
    reference, other = before["client_secret_ref"], scene.story.world.env["PLEX_OIDC_A_ISSUER"]
    assert str(await bind(scene, bound.domain_id, before["issuer"], reference, primary=False)) == "409 binding_conflict"
    assert str(await bind(scene, bound.domain_id, other, reference)) == "409 binding_conflict"
    second = await bind(scene, bound.domain_id, other, reference, primary=False)
    made = await scene.operator.call("PATCH", f"{IDP}/{second.json['id']}", {"primary": True})
    assert str(made) == "409 binding_conflict"


# People that were let go ---------------------------------------------------------------------------------------------


async def ends(caller: Edge) -> None:
    """Wait until nobody believes a credential; the feed is far quicker than what the edge remembers for 5 s."""
    async with asyncio.timeout(3):
        answer = await caller.call("GET", "/v1/auth/whoami")
        while answer.status != 401:
            assert answer.status == 200
            answer = await caller.call("GET", "/v1/auth/whoami")


async def test_a_deactivated_binding_ends_everything_at_once(scene: Scene, bound: Bound) -> None:
    browser = await bound.sign_in(Login("ada"))
    token = await scene.outside.access_token(browser, domain_id=bound.domain_id)
    held = [browser, scene.edge.as_bearer(token)]
    waiting = await scene.edge.call("POST", "/v1/auth/device-code", {"client_id": "cli", "domain_id": bound.domain_id})
    approved = await browser.call("POST", "/v1/auth/device/approve", {"user_code": waiting.json["user_code"]})
    assert approved.status == 200
    under_way, headers = await bound.callback(Login("bob"))
    for caller in held:
        # Once more, so that the edge remembers who it is.
        assert (await caller.call("GET", "/v1/auth/whoami")).status == 200
    assert (await bound.status("deactivated")).json["status"] == "deactivated"
    for caller in held:
        await ends(caller)
    poll = {"device_code": waiting.json["device_code"], "client_id": "cli"}
    assert (await scene.edge.call("POST", "/v1/auth/device-token", poll)).status == 400
    parts = urlsplit(under_way)
    late = await scene.edge.call("GET", f"{parts.path}?{parts.query}", headers=headers)
    assert str(late) == "400 sign_in_refused"
    started = await scene.edge.call("POST", "/v1/auth/sign-in", {"domain_id": bound.domain_id})
    assert str(started) == "404 idp_binding_not_found"
    assert (await bound.status("active")).status == 200
    for caller in held:
        await ends(caller)
    await bound.sign_in(Login("ada"))


async def test_a_deleted_binding_takes_people_and_rights(scene: Scene, bound: Bound) -> None:
    browser = await bound.sign_in(Login("ada"))
    person = (await browser.call("GET", "/v1/auth/whoami")).json["subject"]
    dba = await scene.story.world.superuser()
    try:
        await dba.execute(GRANT, bound.domain_id, person, "member")
        assert (await scene.operator.call("DELETE", bound.path)).status == 204
        await ends(browser)
        for method in ("GET", "DELETE"):
            assert (await scene.operator.call(method, bound.path)).status == 404
        people = "SELECT count(*) FROM identity.identities WHERE id = $1"
        assert await dba.fetchval(people, uuid.UUID(person)) == 0
        rows = "SELECT count(*) FROM identity.relation_tuples WHERE subject_id = $1"
        assert await dba.fetchval(rows, person) == 0
    finally:
        await dba.close()
    # The Domain is as one that never had a binding, and can go.
    assert (await scene.operator.call("DELETE", f"/v1/domains/{bound.domain_id}")).status == 204


async def test_nobody_else_changes_a_binding_and_each_deed_has_one_row(scene: Scene, bound: Bound) -> None:
    theirs = scene.story.domain_id
    neighbour = await scene.outside.sign_in(Login("neighbour"), theirs)
    person = (await neighbour.call("GET", "/v1/auth/whoami")).json["subject"]
    dba = await scene.story.world.superuser()
    await dba.execute(GRANT, theirs, person, "admin")
    await dba.close()
    for _ in range(100):
        # Relations reach SpiceDB from the table within a second.
        if (await neighbour.call("GET", f"{IDP}?domain_id={theirs}")).status == 200:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("the neighbour does not administer")
    unknown = f"{IDP}/{uuid.uuid4()}"
    for caller, expected in ((neighbour, 403), (scene.edge, 401)):
        for method, tail, body in (
            ("GET", "", None),
            ("PATCH", "", {"alias": "mine"}),
            ("PATCH", "/status", {"status": "deactivated"}),
            ("DELETE", "", None),
        ):
            answers = [await caller.call(method, path + tail, body) for path in (bound.path, unknown)]
            assert [answer.status for answer in answers] == [expected] * 2
            assert answers[0].code == answers[1].code
    assert (await scene.operator.call("GET", bound.path)).json == bound.binding
    await bound.patch(alias="new")
    await bound.status("deactivated")
    await scene.operator.call("DELETE", bound.path)
    home = Story(scene.story.world, scene.outside, scene.operator, domain_id=theirs)
    there = replace(home, domain_id=bound.domain_id)
    rows = [(action(row), row["reason"]) for row in await entries(there)]
    for verb in ("create", "update", "deactivate", "delete"):
        assert rows.count((f"idp_binding.{verb}", "granted")) == 1, verb
    assert {reason for _, reason in rows} == {"granted"}
    # Whoever has no binding to it is refused in his own Domain's chain, and one that is not there like one that is.
    for path in (bound.path, unknown):
        refused = [row for row in await entries(home) if row["object"]["id"] == path.rpartition("/")[2]]
        assert sorted(map(action, refused)) == [f"idp_binding.{verb}" for verb in ("deactivate", "delete", "update")]
        assert {row["reason"] for row in refused} == {"out_of_scope"}


async def test_an_unknown_domain_offers_what_one_without_bindings_does(scene: Scene) -> None:
    own = await a_domain(scene)
    seen = []
    for domain_id in (own, str(uuid.uuid4())):
        answer = await scene.edge.call("GET", f"/v1/auth/idp-bindings?domain_id={domain_id}")
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
        seen.append(answer.body)
    assert seen[0] == seen[1]
