"""The OpenID providers, as a relying party and a browser use them by plain HTTP."""

import asyncio
import base64
import hashlib
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError
from joserfc.jwk import KeySet

from devstack.layout import CLIENT_ID, State
from devstack.login import Jar, authorize
from libs import tls

pytestmark = pytest.mark.integration

JSON = dict[str, Any]
MFA = "urn:plexsphere:acr:mfa"
WHO = {"subject": "ada", "acr": MFA, "amr": "pwd otp", "auth_age": "120"}


@dataclass
class Relying:
    """The relying party of one provider, with a browser's cookies."""

    state: State
    issuer: str
    secret: str
    http: aiohttp.ClientSession
    jar: Jar = field(default_factory=dict)

    @property
    def redirect_uri(self) -> str:
        return f"{self.state.edge_url}/v1/auth/callback"

    @property
    def cookies(self) -> dict[str, str]:
        pairs = self.jar.get(urlsplit(self.issuer).netloc, {}).items()
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in pairs)}

    async def get(self, path: str) -> JSON:
        async with self.http.get(self.issuer + path) as answer:
            return dict(await answer.json())

    async def token(self, path: str = "/token", **form: str) -> JSON:
        basic = aiohttp.encode_basic_auth(CLIENT_ID, self.secret)
        async with self.http.post(self.issuer + path, data=form, headers={"Authorization": basic}) as answer:
            return dict(await answer.json())

    async def code(self, who: dict[str, str], **wishes: str) -> tuple[dict[str, list[str]], str]:
        """Sign in and return the parameters of the callback and the PKCE verifier."""
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "client_id": CLIENT_ID, "response_type": "code", "redirect_uri": self.redirect_uri, "scope": "openid email",
            "state": "s", "nonce": "n", "code_challenge": challenge, "code_challenge_method": "S256", **wishes,
        }  # fmt: skip
        url = f"{self.issuer}/auth?{urlencode(query)}"
        back = await authorize(self.http, url, self.state.edge_url, who, self.jar)
        return parse_qs(urlsplit(back).query), verifier

    async def sign_in(self, who: dict[str, str], **wishes: str) -> JSON:
        """Sign in and return what the token endpoint answers."""
        answer, verifier = await self.code(who, **wishes)
        return await self.redeem(answer["code"][0], verifier)

    async def redeem(self, code: str, verifier: str) -> JSON:
        return await self.token(
            grant_type="authorization_code", code=code, code_verifier=verifier, redirect_uri=self.redirect_uri
        )

    async def claims(self, id_token: str) -> JSON:
        """Return the claims of an id_token under the keys that the provider publishes now."""
        keys = KeySet.import_key_set(await self.get("/jwks"))  # type: ignore[arg-type]
        return dict(jwt.decode(id_token, keys, algorithms=["RS256"]).claims)


@pytest.fixture
async def provider(stack: State) -> AsyncIterator[Relying]:
    async with connected(stack, "oidc-a") as relying:
        yield relying


@pytest.fixture
async def other(stack: State) -> AsyncIterator[Relying]:
    async with connected(stack, "oidc-b") as relying:
        yield relying


class connected:  # noqa: N801 — read as a verb where it is used
    """A relying party with an open session for the block."""

    def __init__(self, stack: State, name: str) -> None:
        connector = aiohttp.TCPConnector(ssl=tls.trusting(stack / "pki/ca.crt"))
        http = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._relying = Relying(stack, stack.issuer(name), stack.secret(f"{name}.secret"), http)

    async def __aenter__(self) -> Relying:
        return self._relying

    async def __aexit__(self, *_: object) -> None:
        await self._relying.http.close()


async def test_a_login_says_who_how_and_when(provider: Relying) -> None:
    claims = await provider.claims((await provider.sign_in(WHO))["id_token"])
    assert claims["iss"] == provider.issuer
    assert (claims["sub"], claims["aud"], claims["nonce"]) == ("ada", CLIENT_ID, "n")
    assert (claims["acr"], claims["amr"]) == (MFA, ["pwd", "otp"])
    assert claims["email"] == "ada@example.test"
    assert 115 <= time.time() - claims["auth_time"] <= 130


async def test_a_login_without_a_class_states_none(provider: Relying) -> None:
    claims = await provider.claims((await provider.sign_in({"subject": "bob"}))["id_token"])
    assert "acr" not in claims
    assert "amr" not in claims


async def test_the_callback_names_its_issuer(provider: Relying) -> None:
    answer, _ = await provider.code(WHO)
    assert (answer["iss"], answer["state"]) == ([provider.issuer], ["s"])
    discovered = await provider.get("/.well-known/openid-configuration")
    assert discovered["authorization_response_iss_parameter_supported"] is True
    assert discovered["issuer"] == provider.issuer


async def test_a_code_counts_once_and_only_with_its_verifier(provider: Relying) -> None:
    answer, verifier = await provider.code(WHO)
    wrong = await provider.redeem(answer["code"][0], "x" * 43)
    assert wrong["error"] == "invalid_grant"
    answer, verifier = await provider.code(WHO)
    assert "id_token" in await provider.redeem(answer["code"][0], verifier)
    assert (await provider.redeem(answer["code"][0], verifier))["error"] == "invalid_grant"


async def test_an_old_login_is_repeated_when_it_must_be_fresh(provider: Relying) -> None:
    first = await provider.claims((await provider.sign_in(WHO | {"auth_age": "600"}))["id_token"])
    reused = await provider.claims((await provider.sign_in(WHO | {"subject": "nobody asks"}))["id_token"])
    assert (reused["sub"], reused["auth_time"]) == ("ada", first["auth_time"])
    fresh = await provider.claims((await provider.sign_in(WHO | {"auth_age": "0"}, max_age="60"))["id_token"])
    assert fresh["auth_time"] > first["auth_time"] + 500


async def test_a_token_is_refreshed(provider: Relying) -> None:
    tokens = await provider.sign_in(WHO, scope="openid offline_access", prompt="consent")
    renewed = await provider.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert (await provider.claims(renewed["id_token"]))["sub"] == "ada"


async def test_the_device_flow(provider: Relying) -> None:
    codes = await provider.token("/device/auth", client_id=CLIENT_ID, scope="openid")
    poll = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": str(codes["device_code"])}
    assert (await provider.token(**poll))["error"] == "authorization_pending"

    first = await submit(provider, codes["verification_uri_complete"])
    url = await submit(provider, first)
    assert "/interaction/" in url
    await signed_in_on_device(provider, url)
    assert (await provider.claims((await provider.token(**poll))["id_token"]))["sub"] == "ada"


async def submit(provider: Relying, page: str) -> str:
    """Get a page, or take it as it is, send its form, and return the next page or where it leads."""
    if page.startswith("https://"):
        page = await read(provider, page)
    form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
    async with provider.http.post(
        f"{provider.issuer}/device", data=form, headers=provider.cookies, allow_redirects=False
    ) as answer:
        keep(provider, answer)
        return answer.headers.get("Location") or await answer.text()


async def signed_in_on_device(provider: Relying, url: str) -> None:
    url = url if url.startswith("https://") else provider.issuer + url
    async with provider.http.post(url, data=WHO, headers=provider.cookies, allow_redirects=False) as answer:
        keep(provider, answer)
        url = answer.headers["Location"]
    assert "Signed in" in await read(provider, url)


async def read(provider: Relying, url: str) -> str:
    async with provider.http.get(url, headers=provider.cookies, allow_redirects=False) as answer:
        keep(provider, answer)
        return await answer.text()


def keep(provider: Relying, answer: aiohttp.ClientResponse) -> None:
    jar = provider.jar.setdefault(urlsplit(provider.issuer).netloc, {})
    jar.update({name: morsel.value for name, morsel in answer.cookies.items()})


async def rotate(provider: Relying, **form: str) -> None:
    async with provider.http.post(f"{provider.issuer}/development/rotate-keys", data=form) as answer:
        assert answer.status == 204


async def test_keys_rotate_with_and_without_overlap(provider: Relying) -> None:
    before = (await provider.sign_in(WHO))["id_token"]
    await rotate(provider)
    after = (await provider.sign_in(WHO))["id_token"]
    assert (await provider.claims(before))["sub"] == (await provider.claims(after))["sub"] == "ada"
    await rotate(provider, forget="1")
    with pytest.raises((InvalidKeyIdError, ValueError)):
        await provider.claims(after)
    # Whoever was signed in still is.
    assert (await provider.claims((await provider.sign_in({"subject": "nobody asks"}))["id_token"]))["sub"] == "ada"


async def test_one_issuer_signs_nothing_for_the_other(provider: Relying, other: Relying) -> None:
    token = (await provider.sign_in(WHO))["id_token"]
    with pytest.raises((InvalidKeyIdError, ValueError)):
        await other.claims(token)
    code, verifier = await provider.code(WHO)
    assert (await other.redeem(code["code"][0], verifier))["error"] == "invalid_grant"


async def test_a_logout_reaches_the_edge_by_the_back_channel(stack: State, provider: Relying) -> None:
    """A stand-in listens where the edge would; the run's own edge has the port when the whole stack runs."""
    told: asyncio.Queue[str] = asyncio.Queue()
    async with connected(stack, "oidc-a") as signed_in, listening(stack, told):
        tokens = await signed_in.sign_in(WHO)
        page = await read(signed_in, f"{signed_in.issuer}/session/end?id_token_hint={tokens['id_token']}")
        form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page)) | {"logout": "yes"}
        async with signed_in.http.post(
            f"{signed_in.issuer}/session/end/confirm", data=form, headers=signed_in.cookies, allow_redirects=False
        ) as answer:
            assert answer.status in {200, 303}
        logout_token = await asyncio.wait_for(told.get(), 5)
    claims = await provider.claims(logout_token)
    assert claims["sub"] == "ada"
    assert "http://schemas.openid.net/event/backchannel-logout" in claims["events"]


class listening:  # noqa: N801 — as above
    """The edge's address, with a server that keeps each logout token, for the block."""

    def __init__(self, stack: State, told: asyncio.Queue[str]) -> None:
        async def take(request: web.Request) -> web.Response:
            await told.put(str((await request.post())["logout_token"]))
            return web.Response()

        application = web.Application()
        application.router.add_post("/v1/auth/backchannel-logout", take)
        self._runner = web.AppRunner(application)
        self._stack = stack

    async def __aenter__(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._stack / "pki/gateway.crt", self._stack / "pki/gateway.key")
        await self._runner.setup()
        port = self._stack.port("gateway")
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=context).start()

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
