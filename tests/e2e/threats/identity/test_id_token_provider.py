"""F-3 over the wire, the provider: keys that come and go, and documents that turn bad after they were believed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.outside import JSON
from tests.e2e.threats.identity.conftest import Case, Ring
from tests.e2e.threats.identity.hostile import Broken
from tests.e2e.threats.identity.signing import SECOND

pytestmark = pytest.mark.e2e

CACHE_S = 1.0


async def rotate(ring: Ring) -> None:
    """Make the real provider sign with a new key from now on, beside the old ones."""
    url = f"{ring.hostile.issuer}/development/rotate-keys"
    async with ring.scene.outside.http.post(url) as answer:
        assert answer.status == 204


async def test_a_key_that_is_new_before_the_sign_in_is_believed(ring: Ring) -> None:
    bound = await ring.bound("rotation")
    await ring.accepts(bound, await ring.begin(bound))
    asked = bound.door.jwks_calls
    await rotate(ring)
    await ring.accepts(bound, await ring.begin(bound))
    assert bound.door.jwks_calls == asked + 1


async def test_a_key_that_is_new_just_before_signing_is_believed(ring: Ring) -> None:
    bound = await ring.bound("rotation")
    way = await ring.begin(bound)
    await rotate(ring)
    await ring.accepts(bound, way)


async def test_a_key_that_is_gone_when_its_signature_is_checked_is_refused(ring: Ring) -> None:
    def without(_: list[JSON]) -> list[JSON]:
        return [SECOND.jwk("second")]

    bound = await ring.bound("rotated after signing", without)
    bound.door.jwks = without
    await ring.refuses(bound, await ring.begin(bound), "kid_unknown")


async def test_an_unknown_key_is_asked_for_once_and_holds_up_no_true_rotation(ring: Ring) -> None:
    bound = await ring.bound("unknown keys")
    await ring.accepts(bound, await ring.begin(bound))
    asked = bound.door.jwks_calls
    for _ in range(2):
        await ring.attempt(bound, Case("kid_unknown", lambda g: g.headed(kid="evil")))
    assert bound.door.jwks_calls == asked + 1
    bound.door.be_honest()
    await rotate(ring)
    await ring.accepts(bound, await ring.begin(bound))
    assert bound.door.jwks_calls == asked + 2


def broken(_: Any) -> web.Response:
    raise Broken


UNUSABLE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hang up": (broken, "unreachable"),
    "fail": (lambda _: web.Response(status=503), "status"),
    "lead elsewhere": (lambda _: web.Response(status=302, headers={"Location": "/jwks"}), "status"),
    "are a page": (lambda _: web.Response(text="<html>"), "form"),
    "are a megabyte": (lambda _: web.json_response({"keys": ["a" * 1_000_000]}), "too_large"),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_keys_that_cannot_be_had_verify_nothing(ring: Ring, name: str) -> None:
    answer, reason = UNUSABLE[name]
    bound = await ring.bound("keys that cannot be had")
    way = await ring.begin(bound)
    # Only a fresh id makes identity ask again.
    bound.door.token, bound.door.jwks = lambda g: g.headed(kid=f"evil-{name}"), answer
    await ring.refuses(bound, way, f"jwks_{reason}", "provider_failed")


@pytest.fixture
async def short_memory(ring: Ring) -> AsyncIterator[None]:
    """Let identity believe what it knows of providers for a second only."""
    shipped = ring.world.config("identity")
    assert "provider_cache_s = 300.0\n" in shipped
    await ring.world.restart("identity", shipped.replace("provider_cache_s = 300.0", f"provider_cache_s = {CACHE_S}"))
    yield
    await ring.world.restart("identity", shipped)


@pytest.mark.usefixtures("short_memory")
async def test_what_a_provider_takes_back_is_not_believed_any_longer(ring: Ring) -> None:
    bound = await ring.bound("short memory")
    await ring.accepts(bound, await ring.begin(bound))
    removed = ring.hostile.keys()[0]["kid"]

    async def after(reason: str, code: str = "sign_in_refused", **change: Callable[[Any], Any]) -> None:
        bound.door.be_honest()
        await asyncio.sleep(CACHE_S)
        way = await ring.begin(bound)
        for name, hook in change.items():
            setattr(bound.door, name, hook)
        await asyncio.sleep(CACHE_S + 0.1)
        await ring.refuses(bound, way, reason, code)

    def changed(**members: Any) -> Callable[[JSON], JSON]:
        return lambda document: document | members

    await after("kid_unknown", jwks=lambda keys: [key for key in keys if key["kid"] != removed])
    await after("discovery_issuer", "provider_failed", document=changed(issuer="https://evil.example"))
    # The provider behind the door is as strange to this binding as anybody.
    await after("discovery_issuer", "provider_failed", document=changed(issuer=ring.hostile.issuer))
    await after("discovery_endpoint", "provider_failed", document=changed(token_endpoint="http://127.0.0.1/token"))
    await after("discovery_endpoint", "provider_failed", document=changed(jwks_uri=None))
    for answer, reason in UNUSABLE.values():
        await after(f"discovery_{reason}", "provider_failed", document=answer)
    bound.door.be_honest()
    await asyncio.sleep(CACHE_S)
    await ring.accepts(bound, await ring.begin(bound))
