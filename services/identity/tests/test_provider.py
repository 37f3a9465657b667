"""Providers that answer crookedly, slowly, or not at all; and how often one is asked."""

import asyncio
import base64
import contextlib
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web

from devstack.layout import State
from libs.clock import FixedClock, SystemClock
from libs.custody import Secret
from libs.errors import ProviderFailed
from libs.ids import uuid7
from services.identity.oidc import (
    A_MINUTE_S,
    ENDPOINTS,
    LARGEST_ANSWER,
    LIFETIME_S,
    MOST_KNOWN,
    MOST_REFRESHES,
    REST_S,
    HttpProvider,
)
from services.identity.sign_in_model import Binding
from services.identity.sign_in_ports import ExchangeRefused, ProviderDoubted
from services.identity.tests.fakes import NOW
from services.identity.tests.sign_in_fakes import a_binding

pytestmark = pytest.mark.integration

NEAR = [ipaddress.ip_network("127.0.0.1/32")]
BINDING = a_binding()
DISCOVERY = "/.well-known/openid-configuration"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Crooked:
    """A provider on TLS whose answers a test chooses, by path."""

    issuer: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    seen: list[web.Request] = field(default_factory=list)

    @property
    def binding(self) -> Binding:
        return replace(BINDING, issuer=self.issuer, discovery_url=self.issuer + DISCOVERY)

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.seen]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        answer = self.answers.get(request.path)
        if callable(answer):
            return await answer(request)  # type: ignore[no-any-return]
        return web.json_response(answer) if answer is not None else web.Response(status=404)


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOW)


@pytest.fixture
async def provider(backends: State, clock: FixedClock) -> AsyncIterator[HttpProvider]:
    one = HttpProvider(backends / "pki/ca.crt", NEAR, clock)
    yield one
    await one.close()


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
        DISCOVERY: {
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


async def broken(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def text(content: str, status: int = 200) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=content, status=status, content_type="application/json")

    return answer


async def inflated(request: web.Request) -> web.StreamResponse:
    response = web.Response(text=json.dumps({"keys": [], "padding": "a" * 3_000_000}), content_type="application/json")
    response.enable_compression(web.ContentCoding.gzip)
    return response


CROOKED: dict[str, tuple[str, Any, str]] = {
    "another issuer": (DISCOVERY, {"issuer": "https://evil.example"}, "discovery_issuer"),
    "no issuer": (DISCOVERY, {}, "discovery_issuer"),
    "a list": (DISCOVERY, [], "discovery_form"),
    "no JSON": (DISCOVERY, text("<html>"), "discovery_form"),
    "brackets without end": (DISCOVERY, text("[" * 100_000), "discovery_form"),
    "a redirect": (DISCOVERY, elsewhere, "discovery_status"),
    "nothing there": (DISCOVERY, text("{}", 404), "discovery_status"),
    "an answer without an end": (DISCOVERY, without_end, "discovery_too_large"),
    "a broken connection": (DISCOVERY, broken, "discovery_unreachable"),
    "keys that are no list": ("/jwks", {"keys": {}}, "jwks_form"),
    "keys elsewhere": ("/jwks", elsewhere, "jwks_status"),
    "keys without an end": ("/jwks", without_end, "jwks_too_large"),
    "keys that inflate": ("/jwks", inflated, "jwks_too_large"),
    "keys on a broken connection": ("/jwks", broken, "jwks_unreachable"),
}


@pytest.mark.parametrize("name", CROOKED)
async def test_a_crooked_answer_is_a_doubt_of_its_own(crooked: Crooked, provider: HttpProvider, name: str) -> None:
    path, answer, reason = CROOKED[name]
    crooked.answers[path] = answer
    with pytest.raises(ProviderDoubted) as doubted:
        await provider.metadata(crooked.binding)
    assert (doubted.value.reason, doubted.value.detail) == (reason, ProviderFailed.title)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("url", ["http://op.example/x", "https://", "https://[", "", None, 7])
async def test_an_endpoint_without_tls_is_refused(
    crooked: Crooked, provider: HttpProvider, endpoint: str, url: object
) -> None:
    crooked.answers[DISCOVERY][endpoint] = url
    with pytest.raises(ProviderDoubted, match="discovery_endpoint"):
        await provider.metadata(crooked.binding)


TOKENS: dict[str, tuple[Any, str]] = {
    "a code that was used": (text('{"error": "invalid_grant"}', 400), "code_refused"),
    "another client": (text('{"error": "invalid_client"}', 401), "client_refused"),
    "another error": (text('{"error": ["x"]}', 400), "token_refused"),
    "an error page": (text("<html>", 403), "token_refused"),
    "two megabytes": (text("a" * 2_000_000), "too_long"),
    "a failure": (text("{}", 500), "token_status"),
    "no JSON": (text("id_token"), "token_form"),
    "a broken connection": (broken, "token_unreachable"),
}


@pytest.mark.parametrize("name", TOKENS)
async def test_a_token_endpoint_that_gives_nothing_says_why_to_us_only(
    crooked: Crooked, provider: HttpProvider, name: str
) -> None:
    crooked.answers["/token"], reason = TOKENS[name]
    with pytest.raises((ExchangeRefused, ProviderDoubted)) as refused:
        await provider.exchange(crooked.binding, Secret(b"s"), {})
    error: Any = refused.value
    assert (error.reason, error.detail) == (reason, type(error).title)


async def test_a_provider_with_another_ca_is_refused(backends: State, crooked: Crooked) -> None:
    provider = HttpProvider(None, NEAR, SystemClock())
    try:
        with pytest.raises(ProviderFailed):
            await provider.metadata(a_binding(None, crooked.issuer))
        assert crooked.seen == []
    finally:
        await provider.close()


async def test_client_and_secret_are_encoded_before_they_are_joined(crooked: Crooked, provider: HttpProvider) -> None:
    crooked.answers["/token"] = {"id_token": "t"}
    binding = replace(crooked.binding, client_id="a:b")
    answer = await provider.exchange(binding, Secret("p+ä:%".encode()), {"grant_type": "authorization_code"})
    # RFC 6749, 2.3.1: application/x-www-form-urlencoded, then Basic.
    scheme, _, sent = crooked.seen[-1].headers["Authorization"].partition(" ")
    assert (answer, scheme) == ({"id_token": "t"}, "Basic")
    assert base64.b64decode(sent) == b"a%3Ab:p%2B%C3%A4%3A%25"


# How often a provider is asked ----------------------------------------------------------------------------------------


async def test_many_at_once_ask_once(crooked: Crooked, provider: HttpProvider) -> None:
    await asyncio.gather(*(provider.metadata(crooked.binding) for _ in range(20)))
    assert crooked.paths == [DISCOVERY, "/jwks"]
    await asyncio.gather(*(provider.keys(crooked.binding, "unknown") for _ in range(20)))
    assert crooked.paths == [DISCOVERY, "/jwks", "/jwks"]


async def test_many_at_once_are_told_of_one_failure(
    crooked: Crooked, provider: HttpProvider, clock: FixedClock
) -> None:
    document, crooked.answers[DISCOVERY] = crooked.answers[DISCOVERY], text("", 500)
    told = await asyncio.gather(*(provider.metadata(crooked.binding) for _ in range(20)), return_exceptions=True)
    assert [str(one) for one in told] == ["discovery_status"] * 20
    assert crooked.paths == [DISCOVERY]
    clock.advance(REST_S)
    crooked.answers[DISCOVERY] = document
    assert await provider.metadata(crooked.binding) == document


async def test_an_unknown_key_is_asked_for_once_a_minute_and_holds_up_no_other(
    crooked: Crooked, provider: HttpProvider, clock: FixedClock
) -> None:
    async def fetches(*kids: str) -> int:
        before = crooked.paths.count("/jwks")
        for kid in kids:
            await provider.keys(crooked.binding, kid)
        return crooked.paths.count("/jwks") - before

    assert await fetches("k1", "", "k1") == 1
    assert await fetches("bad", "bad", "bad") == 1
    crooked.answers["/jwks"] = {"keys": [{"kid": "k2"}]}
    assert await fetches("k2") == 1
    assert await provider.keys(crooked.binding, "k2") == [{"kid": "k2"}]
    # However many ids a provider makes up, it is asked so often and no more; nor is more remembered.
    assert await fetches(*(f"bad-{number}" for number in range(50))) == MOST_REFRESHES - 2
    clock.advance(A_MINUTE_S)
    assert await fetches("bad", "bad") == 1
    # What strangers send in logout tokens counts for itself.
    before = crooked.paths.count("/jwks")
    for number in range(50):
        await provider.keys(crooked.binding, f"made-up-{number}", "logout")
    assert crooked.paths.count("/jwks") - before == MOST_REFRESHES
    assert await fetches("another") == 1


async def test_so_many_providers_are_remembered_and_of_each_what_is_used(
    crooked: Crooked, provider: HttpProvider
) -> None:
    crooked.answers[DISCOVERY]["padding"] = "a" * 1000
    assert "padding" not in await provider.metadata(crooked.binding)
    for _ in range(MOST_KNOWN):
        provider._remember(replace(crooked.binding, id=uuid7()))
        provider._remember(crooked.binding)
    await provider.metadata(crooked.binding)
    assert (len(provider._known), crooked.paths.count(DISCOVERY)) == (MOST_KNOWN, 1)
    for _ in range(MOST_KNOWN):
        provider._remember(replace(crooked.binding, id=uuid7()))
    await provider.metadata(crooked.binding)
    assert (len(provider._known), crooked.paths.count(DISCOVERY)) == (MOST_KNOWN, 2)


async def test_keys_that_cannot_be_had_are_a_doubt_and_no_old_keys(
    crooked: Crooked, provider: HttpProvider, clock: FixedClock
) -> None:
    await provider.keys(crooked.binding, "k1")
    crooked.answers["/jwks"] = broken
    with pytest.raises(ProviderDoubted, match="jwks_unreachable"):
        await provider.keys(crooked.binding, "k2")
    assert await provider.keys(crooked.binding, "k1") != []
    clock.advance(LIFETIME_S)
    with pytest.raises(ProviderDoubted, match="jwks_unreachable"):
        await provider.keys(crooked.binding, "k1")


async def test_what_a_provider_takes_back_dies_with_the_lifetime(
    crooked: Crooked, provider: HttpProvider, clock: FixedClock
) -> None:
    await provider.keys(crooked.binding, "k1")
    crooked.answers["/jwks"] = {"keys": []}
    clock.advance(LIFETIME_S - 1)
    assert await provider.keys(crooked.binding, "k1") != []
    clock.advance(1)
    assert await provider.keys(crooked.binding, "k1") == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"issuer": "https://evil.example"}, "discovery_issuer"), ({"token_endpoint": "http://op"}, "discovery_endpoint")],
)
async def test_a_document_that_turned_bad_is_refused_at_the_next_fetch(
    crooked: Crooked, provider: HttpProvider, clock: FixedClock, changed: dict[str, str], reason: str
) -> None:
    await provider.metadata(crooked.binding)
    crooked.answers[DISCOVERY].update(changed)
    clock.advance(LIFETIME_S)
    for _ in range(2):
        with pytest.raises(ProviderDoubted, match=reason):
            await provider.metadata(crooked.binding)


async def test_a_changed_binding_is_asked_about_anew(crooked: Crooked, provider: HttpProvider) -> None:
    await provider.metadata(crooked.binding)
    with pytest.raises(ProviderDoubted, match="discovery_issuer"):
        await provider.metadata(replace(crooked.binding, issuer="https://other.example"))
