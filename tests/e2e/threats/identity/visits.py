"""A browser of its own for each sign-in, and what the chain says of a request."""

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import JSON, Answer, Edge, Jar, Login, Outside, own_browser
from tests.e2e.world import World


def kept(answer: Answer) -> dict[str, str]:
    """Return the cookies that a browser keeps of an answer."""
    pairs = [line.partition(";")[0].partition("=") for line in answer.set_cookies]
    return {name: value for name, _, value in pairs if value.strip('"')}


@dataclass
class Visit:
    """A sign-in that is back from the provider and not finished yet."""

    outside: Outside
    started: Answer
    url: str
    jar: Jar

    @property
    def state(self) -> str:
        return str(self.started.json["state"])

    def with_query(self, path: str = "", **changed: str) -> str:
        """Return the way back with other parameters, an empty one left out, or with another path."""
        parts = urlsplit(self.url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()} | changed
        return f"{path or parts.path}?{urlencode({name: value for name, value in query.items() if value})}"

    async def finish(self, url: str = "", *, own: bool = True, accept: str = "application/json") -> Answer:
        """Bring the answer to the edge, by default as the browser that started."""
        headers = {"Accept": accept, **(own_browser(self.started) if own else {})}
        return await self.outside.edge().call("GET", url or self.with_query(), headers=headers)


@dataclass
class Party:
    """Whoever signs in, at whichever of the two providers."""

    scene: Scene

    @property
    def world(self) -> World:
        return self.scene.story.world

    async def visit(
        self, login: Login | None = None, domain_id: str = "", browser: Edge | None = None, **more: Any
    ) -> Visit:
        """Start a sign-in, as a browser that may have a session, and walk it up to the callback."""
        outside, jar = self.scene.outside, dict[str, dict[str, str]]()
        body = {**({"domain_id": domain_id} if domain_id else {}), **more}
        started = await (browser or outside.edge()).call("POST", "/v1/auth/sign-in", body)
        assert started.status == 200, started.body
        login = login or Login("operator")
        url = await login.authorize(outside.http, started.json["authorization_url"], outside.url, jar)
        return Visit(outside, started, url, jar)

    def browser(self, finished: Answer) -> Edge:
        """Return a browser with the cookies that a finished sign-in set."""
        assert finished.status == 303, finished.body
        return Edge(self.scene.outside.url, self.scene.outside.http, cookies=kept(finished))

    async def leave(self, visit: Visit, issuer: str, url: str = "") -> str:
        """Sign out at the provider, as its page does; returns where it leads."""
        site, http = urlsplit(issuer).netloc, self.scene.outside.http
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in visit.jar[site].items())}
        url = url or f"{issuer}/session/end"
        async with http.get(url, headers=headers, allow_redirects=False) as page:
            text = await page.text()
            assert page.status == 200, text
            visit.jar[site] |= {name: morsel.value for name, morsel in page.cookies.items()}
        action, xsrf = re.search(r'action="([^"]+)"', text), re.search(r'name="xsrf" value="([^"]+)"', text)
        assert action is not None
        assert xsrf is not None
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in visit.jar[site].items())}
        form = {"xsrf": xsrf[1], "logout": "yes"}
        async with http.post(action[1], data=form, headers=headers, allow_redirects=False) as answer:
            assert answer.status == 303, await answer.text()
            return urljoin(url, answer.headers["Location"])

    async def rows(self, answer: Answer) -> list[JSON]:
        """Return what the chain says of a request: its reason, chain and context."""
        dba = await self.world.superuser()
        try:
            found = await dba.fetch(
                "SELECT chain, reason, context FROM audit.entries WHERE correlation_id = $1",
                answer.headers["X-Correlation-Id"],
            )
        finally:
            await dba.close()
        return [{**dict(row), "context": json.loads(row["context"])} for row in found]

    async def recorded(self, kind: str) -> set[str]:
        """Return the reasons of a kind that any chain has recorded."""
        dba = await self.world.superuser()
        try:
            found = await dba.fetch("SELECT context -> $1 AS names FROM audit.entries WHERE context ? $1", kind)
        finally:
            await dba.close()
        return {name for row in found for name in json.loads(row["names"])}

    async def reasons(self, answer: Answer) -> list[str]:
        """Return the reasons of a refused request, a text a row."""
        return [
            " ".join(name for kind, names in row["context"].items() if kind in {"id_token", "logout_token", "device"}
                     for name in names)
            for row in await self.rows(answer)
        ]  # fmt: skip


@pytest.fixture
def party(scene: Scene) -> Party:
    """Nobody yet."""
    return Party(scene)
