"""A sign-in through the hostile provider, and all that must be true after it."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from tests.e2e.attacker import ask_vault, refusals
from tests.e2e.conftest import Scene
from tests.e2e.outside import JSON, Edge, Login
from tests.e2e.threats.identity.hostile import DISCOVERY, Door, Genuine, Hostile
from tests.e2e.world import World

MFA = "urn:plexsphere:acr:mfa"
ADA = Login("ada", MFA, ("pwd", "otp"))
OUTWARD = {"sign_in_refused": 400, "provider_failed": 502, "openbao_unavailable": 503}
Query = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One change of something valid, and the reason for which it must be refused; accepted where there is none."""

    reason: str
    token: Callable[[Genuine], Any] = lambda genuine: genuine.token
    # What may be wrong besides the token: the provider's keys, and what this sign-in asks for.
    jwks: Callable[[list[JSON]], Any] = list
    sign_in: JSON = field(default_factory=dict)
    code: str = "sign_in_refused"


@dataclass
class Bound:
    """A Domain of its own, whose binding leads through a door of the hostile provider."""

    domain_id: str
    binding_id: str
    door: Door


@dataclass
class Way:
    """A browser on its way back from the provider: the query and the cookies with which it will come."""

    query: Query
    cookies: Query

    def changed(self, **query: str) -> "Way":
        """Return the same way with another query; a parameter that is empty goes."""
        return Way({name: value for name, value in (self.query | query).items() if value}, self.cookies)


@dataclass
class Finished:
    """What the edge answered to the browser that came back."""

    status: int
    code: str
    cookies: dict[str, str]


BOUND: dict[tuple[str, str], Bound] = {}


@dataclass
class Ring:
    """Where attacks on sign-ins are tried."""

    world: World
    scene: Scene
    hostile: Hostile

    async def bound(self, name: str, jwks: Callable[[list[JSON]], Any] = list, **binding: Any) -> Bound:
        """Return the Domain and binding of this name, made at the first use; its provider is honest but for its keys.

        These are looked at when the binding is made, and believed for a while.
        """
        key = (self.hostile.url, name)
        if key not in BOUND:
            BOUND[key] = await self._bind(name, jwks, binding)
        BOUND[key].door.be_honest()
        return BOUND[key]

    async def _bind(self, name: str, jwks: Callable[[list[JSON]], Any], more: JSON) -> Bound:
        tag = uuid.uuid4()
        octets = ".".join(str(octet) for octet in tag.bytes[:2])
        domain = {"name": name, "slug": f"idp-{tag.hex[:10]}", "mesh_cidr": f"11.{octets}.{tag.bytes[3]}/32"}
        made = await self.scene.operator.call("POST", "/v1/domains", domain)
        assert made.status == 201, made.body
        domain_id, door = made.json["id"], self.hostile.door(tag.hex[:10])
        door.jwks = jwks
        secret = (self.world.state / f"secrets/{self.hostile.provider}.secret").read_text()
        await self.keep(domain_id, {"client_secret": secret})
        binding = {
            "domain_id": domain_id,
            "issuer": door.url,
            "client_id": self.world.env["PLEX_OIDC_A_CLIENT_ID"],
            "client_secret_ref": f"kv/idp/{domain_id}/op",
            "discovery_url": door.url + DISCOVERY,
            "jit_policy": "allow",
            "primary": True,
        }
        bound = await self.scene.operator.call("POST", "/v1/admin/idp", binding | more)
        assert bound.status == 201, bound.body
        return Bound(domain_id, bound.json["id"], door)

    async def keep(self, domain_id: str, secret: JSON) -> None:
        """Write what OpenBao keeps for a Domain's binding."""
        await ask_vault(self.world, f"kv/data/idp/{domain_id}/op", {"data": secret})

    async def begin(self, bound: Bound, sign_in: JSON | None = None, login: Login = ADA) -> Way:
        """Start a sign-in and finish the provider's part of it."""
        url, cookies = await self.start(bound, sign_in)
        return await self.authorize(bound, url, cookies, login)

    async def authorize(self, bound: Bound, url: str, cookies: Query, login: Login = ADA) -> Way:
        """Sign in at the real provider; the door answers in its place."""
        back = await login.authorize(self.scene.outside.http, url, self.world.edge_url)
        query = dict(parse_qsl(urlsplit(back).query))
        assert query["iss"] == self.hostile.issuer
        return Way(query | {"iss": bound.door.url}, cookies)

    async def start(self, bound: Bound, sign_in: JSON | None = None) -> tuple[str, Query]:
        """Start a sign-in; returns where the browser goes, and the cookies it got."""
        edge, body = self.world.edge_url, {"domain_id": bound.domain_id, **(sign_in or {})}
        headers = {"Origin": edge}
        async with self.scene.outside.http.post(f"{edge}/v1/auth/sign-in", json=body, headers=headers) as started:
            assert started.status == 200, await started.text()
            cookies = {name: morsel.value for name, morsel in started.cookies.items()}
            return (await started.json())["authorization_url"], cookies

    async def finish(self, way: Way) -> Finished:
        """Come back to the edge."""
        url = f"{self.world.edge_url}/v1/auth/callback?{urlencode(way.query)}"
        cookie = "; ".join(f"{name}={value}" for name, value in way.cookies.items())
        headers = {"Accept": "application/json", "Cookie": cookie}
        async with self.scene.outside.http.get(url, headers=headers, allow_redirects=False) as answer:
            problem = await answer.json() if "problem+json" in answer.headers.get("Content-Type", "") else {}
            # A cookie that is taken back is none.
            given = {name: morsel.value for name, morsel in answer.cookies.items() if morsel.value}
        return Finished(answer.status, problem.get("code", ""), given)

    async def rows(self, bound: Bound) -> list[JSON]:
        """Return the newest rows about sign-ins at a binding."""
        query = f"relation=sign_in&object_id={bound.binding_id}&limit=200"
        page = await self.scene.operator.call("GET", f"/v1/domains/{bound.domain_id}/audit/entries?{query}")
        assert page.status == 200, page.body
        found: list[JSON] = page.json["items"]
        return found

    def logged(self) -> Counter[str]:
        """Count the reasons of refused sign-ins in identity's log."""
        lines = (self.world.state / "log/identity.log").read_text().splitlines()
        return Counter(json.loads(line)["reason"] for line in lines if '"sign_in.refused"' in line)

    async def sessions(self, bound: Bound) -> int:
        """Count the sessions at a binding, as a DBA."""
        query = (
            "SELECT count(*) FROM identity.sessions s JOIN identity.identities i ON i.id = s.identity_id "
            "WHERE i.binding_id = $1"
        )
        database = await self.world.superuser()
        try:
            return int(await database.fetchval(query, uuid.UUID(bound.binding_id)))
        finally:
            await database.close()

    async def refuses(self, bound: Bound, way: Way, reason: str, code: str = "sign_in_refused") -> None:
        """Come back and be refused: one code outwards; one reason in log, metric and row; and nothing else happens."""
        logged, counted, rows = self.logged(), await refusals(self.world, "identity", "sign_in"), await self.rows(bound)
        before = await self.sessions(bound), bound.door.userinfo_calls
        finished = await self.finish(way)
        assert (finished.status, finished.code, finished.cookies) == (OUTWARD[code], code, {})
        assert await refusals(self.world, "identity", "sign_in") - counted == {reason: 1}
        assert self.logged() - logged == {reason: 1}
        known = {row["seq"] for row in rows}
        new = [row["decision"] for row in await self.rows(bound) if row["seq"] not in known]
        assert [decision["caveat_context"] for decision in new] == [
            {"action": ["session.sign_in"], "id_token": [reason]}
        ]
        assert (await self.sessions(bound), bound.door.userinfo_calls) == before

    async def accepts(self, bound: Bound, way: Way) -> Edge:
        """Come back and be signed in, without which a refusal elsewhere would say nothing."""
        finished = await self.finish(way)
        assert (finished.status, finished.code) == (303, ""), await self.rows(bound)
        browser = Edge(self.world.edge_url, self.scene.outside.http, cookies=finished.cookies)
        assert (await browser.call("GET", "/v1/auth/whoami")).json["domain_id"] == bound.domain_id
        return browser

    async def attempt(self, bound: Bound, case: Case) -> None:
        """Try a case from the first click to its end."""
        bound.door.token, bound.door.jwks = case.token, case.jwks
        way = await self.begin(bound, case.sign_in)
        if case.reason:
            await self.refuses(bound, way, case.reason, case.code)
        else:
            await self.accepts(bound, way)


@pytest.fixture(scope="session")
def hostile(world: World) -> Iterator[Hostile]:
    with Hostile(world).running() as one:
        yield one


@pytest.fixture
def ring(world: World, scene: Scene, hostile: Hostile) -> Ring:
    return Ring(world, scene, hostile)
