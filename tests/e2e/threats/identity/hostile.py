"""A hostile OpenID provider: a TLS proxy before the real one, which changes its answers on their way.

Every binding has a `Door` of its own, a path at the proxy, which is an issuer: its discovery document names itself and
the token, jwks and userinfo endpoints of the proxy, and id_tokens are signed once more in its name, by the provider's
key. People still sign in at the real provider; who brings its answer back says that the door answered (`Ring.begin`). A
test puts into the door what changes:

- `token` makes an id_token of the `Genuine` answer; also of a refresh, where `Genuine.form["grant_type"]` says so;
- `asked` changes the form that goes to the token endpoint;
- `jwks`, `document` and `userinfo` change those answers.

Each but `asked` may return a `web.Response`, which is the whole answer then, or raise `Broken`, which ends the
connection without one. The provider's own keys are in the stack's state folder, so that a change can be signed as the
provider signs.
"""

import asyncio
import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
from aiohttp import web

from tests.e2e.outside import JSON
from tests.e2e.threats.identity.signing import ATTACKER, RsaKey, Signer, compact
from tests.e2e.world import World

DISCOVERY = "/.well-known/openid-configuration"


class Broken(Exception):
    """Ends the connection without an answer."""


@dataclass
class Genuine:
    """What the provider answered at its token endpoint, taken apart."""

    answer: JSON
    form: dict[str, str]
    keys: list[JSON]
    now: int = field(default_factory=lambda: int(time.time()))

    @property
    def token(self) -> str:
        return str(self.answer["id_token"])

    @property
    def header(self) -> JSON:
        return _json_of(self.token.split(".")[0])

    @property
    def claims(self) -> JSON:
        return _json_of(self.token.split(".")[1])

    @property
    def key(self) -> RsaKey:
        """The provider's own key."""
        return RsaKey(next(key for key in self.keys if key["kid"] == self.header["kid"]))

    def says(self, **claims: Any) -> str:
        """Sign other claims as the provider does; one that is `...` goes."""
        return self.signed(self.key, **claims)

    def signed(self, key: Signer, header: JSON | None = None, **claims: Any) -> str:
        """Sign other claims with another key, or under another header; a member that is `...` goes."""
        return self.raw(json.dumps(_changed(self.claims, claims)).encode(), key, header)

    def raw(self, payload: bytes, key: Signer | None = None, header: JSON | None = None) -> str:
        """Sign these bytes."""
        return compact(json.dumps(_changed(self.header, header or {})).encode(), payload, key or self.key)

    def forged(self, **claims: Any) -> str:
        """Sign with the attacker's key under the provider's kid."""
        return self.signed(ATTACKER, **claims)

    def headed(self, **header: Any) -> str:
        """Sign as the provider does, under another header."""
        return self.signed(self.key, header)


def _json_of(segment: str) -> JSON:
    value: JSON = json.loads(base64.urlsafe_b64decode(segment + "=="))
    return value


def _changed(value: JSON, changes: JSON) -> JSON:
    return {name: inner for name, inner in (value | changes).items() if inner is not ...}


def _answered(made: Any, status: int = 200) -> web.Response:
    return made if isinstance(made, web.Response) else web.json_response(made, status=status)


@dataclass
class Door:
    """One binding's way through the proxy, and what went through it."""

    url: str
    token: Callable[[Genuine], Any] = lambda genuine: genuine.token
    asked: Callable[[dict[str, str]], dict[str, str]] = dict
    jwks: Callable[[list[JSON]], Any] = list
    document: Callable[[JSON], Any] = dict
    userinfo: Callable[[JSON], Any] = dict
    userinfo_calls: int = 0
    jwks_calls: int = 0

    def be_honest(self) -> None:
        """Change nothing from now on."""
        plain = Door(self.url)
        self.token, self.asked, self.jwks = plain.token, plain.asked, plain.jwks
        self.document, self.userinfo = plain.document, plain.userinfo


class Hostile:
    """The proxy, in a thread of its own, because it outlives the loops of single tests."""

    def __init__(self, world: World, provider: str = "oidc-a") -> None:
        self.world = world
        self.provider = provider
        self.issuer = f"https://127.0.0.1:{json.loads((world.state / 'ports.json').read_text())[provider]}"
        self.url = ""
        self._doors: dict[str, Door] = {}

    def keys(self) -> list[JSON]:
        """Return the provider's keys, private halves and all."""
        found: list[JSON] = json.loads((self.world.state / f"secrets/{self.provider}.jwks.json").read_text())["keys"]
        return found

    def door(self, name: str) -> Door:
        """Return a new door."""
        self._doors[name] = Door(f"{self.url}/{name}")
        return self._doors[name]

    @contextmanager
    def running(self) -> Iterator["Hostile"]:
        """Serve until the block ends."""
        loop, ready = asyncio.new_event_loop(), threading.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(self._serve(ready),))
        thread.start()
        try:
            assert ready.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(self._ended.set)
            thread.join(10)
            loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._ended = asyncio.Event()
        trust = ssl.create_default_context(cafile=self.world.ca_file)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        pki = self.world.state / "pki"
        # The certificate of the development CA that the provider itself has: it is for 127.0.0.1, whatever the port.
        context.load_cert_chain(pki / f"{self.provider}.crt", pki / f"{self.provider}.key")
        application = web.Application()
        application.router.add_route("*", "/{door}/{path:.*}", self._answer)
        runner = web.AppRunner(application)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as self._http:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await self._ended.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        door, path = self._doors[request.match_info["door"]], f"/{request.match_info['path']}"
        answers = {DISCOVERY: self._discovery, "/token": self._token, "/jwks": self._jwks, "/me": self._userinfo}
        try:
            return await answers[path](door, request)
        except Broken:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

    async def _ask(self, path: str, request: web.Request, form: dict[str, str] | None = None) -> tuple[int, JSON]:
        headers = {name: request.headers[name] for name in ("Authorization", "Accept") if name in request.headers}
        async with self._http.request(request.method, self.issuer + path, data=form, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def _discovery(self, door: Door, request: web.Request) -> web.StreamResponse:
        _, document = await self._ask(DISCOVERY, request)
        document["issuer"] = door.url
        for endpoint, path in (("token_endpoint", "/token"), ("jwks_uri", "/jwks"), ("userinfo_endpoint", "/me")):
            assert urlsplit(document[endpoint]).path == path
            document[endpoint] = door.url + path
        return _answered(door.document(document))

    async def _token(self, door: Door, request: web.Request) -> web.StreamResponse:
        form = dict(parse_qsl((await request.read()).decode()))
        status, answer = await self._ask("/token", request, door.asked(form))
        if "id_token" in answer:
            answer["id_token"] = Genuine(answer, form, self.keys()).says(iss=door.url)
            made = door.token(Genuine(answer, form, self.keys()))
            return _answered(made if isinstance(made, web.Response) else answer | {"id_token": made}, status)
        return web.json_response(answer, status=status)

    async def _jwks(self, door: Door, request: web.Request) -> web.StreamResponse:
        door.jwks_calls += 1
        _, found = await self._ask("/jwks", request)
        made = door.jwks(found["keys"])
        return _answered(made if isinstance(made, web.Response) else {"keys": made})

    async def _userinfo(self, door: Door, request: web.Request) -> web.StreamResponse:
        door.userinfo_calls += 1
        status, found = await self._ask("/me", request)
        return _answered(door.userinfo(found), status)
