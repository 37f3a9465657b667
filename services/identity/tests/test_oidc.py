"""Signing in at the real provider, with the secret from the real OpenBao; and at providers that answer crookedly."""

import asyncio
import base64
import contextlib
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web

from devstack.layout import CLIENT_ID, State
from devstack.login import authorize
from libs import tls as contexts
from libs.bao import Bao
from libs.clock import SystemClock
from libs.custody import Secret, read_secret_file
from libs.errors import ProviderFailed, SignInRefused
from services.identity.oidc import LARGEST_ANSWER, HttpProvider
from services.identity.sign_in import Opened, SignIn
from services.identity.sign_in_model import Wanted
from services.identity.tests.fakes import FakeAudit
from services.identity.tests.sign_in_fakes import FakeAdmins, FakeSignInStore, a_binding
from services.identity.vault import BaoVault

pytestmark = pytest.mark.integration

NEAR = [ipaddress.ip_network("127.0.0.1/32")]
MFA, PWD = "urn:plexsphere:acr:mfa", "urn:plexsphere:acr:pwd"


@dataclass
class Party:
    """The rules, a browser, and the real provider behind them."""

    state: State
    http: aiohttp.ClientSession
    provider: HttpProvider
    sign_in: SignIn
    store: FakeSignInStore
    audit: FakeAudit
    domain_id: UUID | None = None

    @property
    def reasons(self) -> list[str]:
        return [reason for row in self.audit.rows for reason in row.context.get("id_token", [])]

    async def walk(self, who: dict[str, str], wanted: Wanted | None = None) -> Opened:
        started = await self.sign_in.start(None, None, "", "", wanted or Wanted())
        edge = self.sign_in.redirect_uri.removesuffix("/v1/auth/callback")
        back = await authorize(self.http, started.authorization_url, edge, who, {})
        answer = dict(parse_qsl(urlsplit(back).query))
        return await self.sign_in.complete(answer["code"], answer["state"], answer["iss"], "", "")


@contextlib.asynccontextmanager
async def party(state: State, bao: Bao, name: str, **binding: Any) -> AsyncIterator[Party]:
    """Bind one of the stack's providers; `binding` overrides what the binding says."""
    ca_file, issuer = state / "pki/ca.crt", state.issuer(name)
    store, audit, provider = FakeSignInStore([]), FakeAudit([]), HttpProvider(ca_file, NEAR)
    bound = a_binding(None, issuer, client_id=CLIENT_ID, client_secret_ref=f"kv/idp/platform/{name}", **binding)
    store.binding_rows[bound.id] = bound
    sign_in = SignIn(
        store=store, provider=provider, secrets=BaoVault(bao), audit=audit, admins=FakeAdmins([]), clock=SystemClock(),
        pkce_key=read_secret_file(state / "secrets/pkce.key"), csrf_key=Secret(b"c" * 32),
        redirect_uri=f"{state.edge_url}/v1/auth/callback", bootstrap_issuer=issuer, platform_admins=(),
    )  # fmt: skip
    connector = aiohttp.TCPConnector(ssl=contexts.trusting(ca_file))
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
        try:
            yield Party(state, http, provider, sign_in, store, audit)
        finally:
            await provider.close()


async def test_a_login_at_the_real_provider_opens_a_session(backends: State, bao: Bao) -> None:
    async with party(backends, bao, "oidc-a", required_acr=(MFA,), required_amr=("otp",)) as one:
        opened = await one.walk({"subject": "ada", "acr": MFA, "amr": "pwd otp", "auth_age": "30"})
        login, person = opened.session.login, opened.session.person
        assert (login.acr, login.amr, person.email) == (MFA, ("pwd", "otp"), "ada@example.test")
        assert login.auth_time is not None
        assert 29 <= SystemClock().now().timestamp() - login.auth_time <= 40
        again = await one.walk({"subject": "ada", "acr": MFA, "amr": "pwd otp"})
        assert again.session.person.id == person.id


@pytest.mark.parametrize(
    ("who", "wanted", "reason"),
    [
        ({"acr": PWD, "amr": "pwd otp"}, Wanted(), "acr"),
        ({"acr": PWD, "amr": "pwd otp"}, Wanted((PWD,)), "acr"),
        ({"acr": MFA, "amr": "pwd"}, Wanted(), "amr"),
        ({"amr": "pwd otp"}, Wanted(), "acr_missing"),
    ],
    ids=["another class", "asked for less than demanded", "a method short", "no class"],
)
async def test_a_login_below_the_floor_opens_none(
    backends: State, bao: Bao, who: dict[str, str], wanted: Wanted, reason: str
) -> None:
    async with party(backends, bao, "oidc-a", required_acr=(MFA,), required_amr=("otp",)) as one:
        with pytest.raises(SignInRefused):
            await one.walk({"subject": "ada"} | who, wanted)
        assert (one.reasons, one.store.sessions) == ([reason], {})


async def test_a_new_key_is_fetched_once_a_minute(backends: State, bao: Bao) -> None:
    async with party(backends, bao, "oidc-b") as one:

        async def rotate() -> None:
            url = f"{backends.issuer('oidc-b')}/development/rotate-keys"
            async with one.http.post(url, data={"forget": "1"}) as answer:
                assert answer.status == 204

        await one.walk({"subject": "ada"})
        await rotate()
        await one.walk({"subject": "ada"})
        await rotate()
        with pytest.raises(SignInRefused):
            await one.walk({"subject": "ada"})
        assert one.reasons == ["kid_unknown"]


# Answers of a provider that must not be believed ---------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Crooked:
    """A provider on TLS whose answers a test chooses, by path."""

    issuer: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    seen: list[web.Request] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        answer = self.answers.get(request.path)
        if callable(answer):
            return await answer(request)  # type: ignore[no-any-return]
        return web.json_response(answer) if answer is not None else web.Response(status=404)


@pytest.fixture
async def crooked(backends: State) -> AsyncIterator[Crooked]:
    one = Crooked()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", one.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(backends / "pki/oidc-a.crt", backends / "pki/oidc-a.key")
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    one.issuer = f"https://127.0.0.1:{port}"
    one.answers = {
        "/.well-known/openid-configuration": {
            "issuer": one.issuer, "authorization_endpoint": f"{one.issuer}/auth",
            "token_endpoint": f"{one.issuer}/token", "jwks_uri": f"{one.issuer}/jwks",
        },
        "/jwks": {"keys": [{"kty": "OKP", "kid": "k1"}]},
    }  # fmt: skip
    yield one
    await runner.cleanup()


async def without_end(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for _ in range(LARGEST_ANSWER // 1024 + 64):
            await response.write(b"[" * 1024)
    return response


async def elsewhere(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/jwks")


async def inflated(request: web.Request) -> web.StreamResponse:
    response = web.Response(text=json.dumps({"keys": [], "padding": "a" * 3_000_000}), content_type="application/json")
    response.enable_compression(web.ContentCoding.gzip)
    return response


CROOKED: dict[str, tuple[str, Any]] = {
    "another issuer": ("/.well-known/openid-configuration", {"issuer": "https://evil.example"}),
    "no issuer": ("/.well-known/openid-configuration", {}),
    "a list": ("/.well-known/openid-configuration", []),
    "a redirect": ("/.well-known/openid-configuration", elsewhere),
    "an answer without an end": ("/.well-known/openid-configuration", without_end),
    "keys that are no list": ("/jwks", {"keys": {}}),
    "keys elsewhere": ("/jwks", elsewhere),
    "keys without an end": ("/jwks", without_end),
    "keys that inflate": ("/jwks", inflated),
}


@pytest.mark.parametrize("name", CROOKED)
async def test_a_crooked_answer_is_a_failure_of_the_provider(backends: State, crooked: Crooked, name: str) -> None:
    path, answer = CROOKED[name]
    crooked.answers[path] = answer
    provider = HttpProvider(backends / "pki/ca.crt", NEAR)
    try:
        with pytest.raises(ProviderFailed):
            await provider.metadata(a_binding(None, crooked.issuer))
    finally:
        await provider.close()


@pytest.mark.parametrize("endpoint", ["token_endpoint", "jwks_uri", "authorization_endpoint"])
async def test_an_endpoint_without_tls_is_refused(backends: State, crooked: Crooked, endpoint: str) -> None:
    document = crooked.answers["/.well-known/openid-configuration"]
    document[endpoint] = document[endpoint].replace("https:", "http:")
    provider = HttpProvider(backends / "pki/ca.crt", NEAR)
    try:
        with pytest.raises(ProviderFailed):
            await provider.metadata(a_binding(None, crooked.issuer))
    finally:
        await provider.close()


async def test_a_provider_with_another_ca_is_refused(backends: State, crooked: Crooked) -> None:
    provider = HttpProvider(None)
    try:
        with pytest.raises(ProviderFailed):
            await provider.metadata(a_binding(None, crooked.issuer))
        assert crooked.seen == []
    finally:
        await provider.close()


async def test_client_and_secret_are_encoded_before_they_are_joined(backends: State, crooked: Crooked) -> None:
    crooked.answers["/token"] = {"id_token": "t"}
    provider, binding = HttpProvider(backends / "pki/ca.crt", NEAR), a_binding(None, crooked.issuer)
    try:
        answer = await provider.exchange(
            replace(binding, client_id="a:b"), Secret("p+ä:%".encode()), {"grant_type": "authorization_code"}
        )
        # RFC 6749, 2.3.1: application/x-www-form-urlencoded, then Basic.
        scheme, _, sent = crooked.seen[-1].headers["Authorization"].partition(" ")
        assert (answer, scheme) == ({"id_token": "t"}, "Basic")
        assert base64.b64decode(sent) == b"a%3Ab:p%2B%C3%A4%3A%25"
    finally:
        await provider.close()


async def test_keys_are_fetched_once_by_many_at_once(backends: State, crooked: Crooked) -> None:
    provider, binding = HttpProvider(backends / "pki/ca.crt", NEAR), a_binding(None, crooked.issuer)
    try:
        await provider.metadata(binding)
        await asyncio.gather(*(provider.keys(binding, "unknown") for _ in range(20)))
        assert [request.path for request in crooked.seen].count("/jwks") == 2
    finally:
        await provider.close()
