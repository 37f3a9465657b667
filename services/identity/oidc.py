"""OpenID providers over HTTPS: discovery, keys, the token endpoint."""

import asyncio
import base64
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import aiohttp

from libs import tls
from libs.custody import Secret
from libs.errors import ProviderFailed, SignInRefused
from services.identity.egress import Network, is_endpoint, only_to
from services.identity.sign_in_model import Binding

TIMEOUT = aiohttp.ClientTimeout(total=8)
LIFETIME_S = 300.0
REFRESH_AT_MOST_EVERY_S = 60.0
LARGEST_ANSWER = 256 * 1024
OK, CLIENT_ERRORS = 200, range(400, 500)
JSON = dict[str, Any]


@dataclass
class Cached:
    """What is kept of a provider; it dies with its lifetime, so that removed keys die too."""

    metadata: JSON
    keys: list[JSON] = field(default_factory=list)
    until: float = 0.0
    refreshed_at: float = 0.0
    refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def has(self, kid: str) -> bool:
        """Whether a key of this id is among them."""
        return kid in {key.get("kid") for key in self.keys}


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    # A chunked or compressed answer names no length: what counts is what arrives.
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise ProviderFailed("the provider's answer is too large")
    return bytes(body)


class HttpProvider:
    """Speaks to providers on the internet and in listed networks; trusts one CA file, or the system's store."""

    def __init__(self, ca_file: Path | None, networks: Iterable[Network] = ()) -> None:
        self._ca_file = ca_file
        self._networks = tuple(networks)
        self._cached: dict[str, Cached] = {}
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def metadata(self, binding: Binding) -> JSON:
        """Return the discovery document, whose issuer is exactly the binding's."""
        return (await self._known(binding)).metadata

    async def keys(self, binding: Binding, kid: str) -> list[JSON]:
        """Return the provider's public keys, fetched again at most once a minute for an unknown key id."""
        known = await self._known(binding)
        if kid and not known.has(kid):
            # Whoever comes while the keys are fetched waits for that fetch, and looks again.
            async with known.refreshing:
                now = time.monotonic()
                if not known.has(kid) and now - known.refreshed_at >= REFRESH_AT_MOST_EVERY_S:
                    # Noted first: a provider that does not answer is not asked again at once either.
                    known.refreshed_at = now
                    known.keys = await self._fetch_keys(known.metadata)
        return known.keys

    async def _known(self, binding: Binding) -> Cached:
        name = f"{binding.id}:{binding.discovery_url}"
        known = self._cached.get(name)
        if known is None or time.monotonic() >= known.until:
            document = await self._json("GET", binding.discovery_url)
            if document.get("issuer") != binding.issuer:
                raise ProviderFailed("the discovery document names another issuer")
            for endpoint in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                if not is_endpoint(document.get(endpoint)):
                    raise ProviderFailed(f"the discovery document has no {endpoint}")
            keys = await self._fetch_keys(document)
            now = time.monotonic()
            known = self._cached[name] = Cached(document, keys, now + LIFETIME_S, now - REFRESH_AT_MOST_EVERY_S)
        return known

    async def _fetch_keys(self, document: JSON) -> list[JSON]:
        keys = (await self._json("GET", document["jwks_uri"])).get("keys")
        if not isinstance(keys, list):
            raise ProviderFailed("the provider's keys are not a JWK set")
        return [key for key in keys if isinstance(key, dict)]

    async def exchange(self, binding: Binding, secret: Secret, form: dict[str, str]) -> JSON:
        """Exchange a code at the token endpoint (RFC 6749, 4.1.3), with HTTP Basic as 2.3.1 says."""
        document = await self.metadata(binding)
        # Each half is form-encoded first, so that a colon or another alphabet cannot shift the border between them.
        pair = f"{quote_plus(binding.client_id)}:{quote_plus(bytes(secret.reveal()))}"
        return await self._json("POST", document["token_endpoint"], form, base64.b64encode(pair.encode()).decode())

    async def _json(self, method: str, url: str, form: dict[str, str] | None = None, basic: str = "") -> JSON:
        headers = {"Accept": "application/json"} | ({"Authorization": f"Basic {basic}"} if basic else {})
        try:
            async with self._session().request(
                method, url, data=form, headers=headers, timeout=TIMEOUT, allow_redirects=False
            ) as answer:
                if basic and answer.status in CLIENT_ERRORS:
                    raise SignInRefused("the provider refused the code")
                if answer.status != OK:
                    raise ProviderFailed(f"the provider answered {answer.status}")
                content = json.loads(await _bounded(answer))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            raise ProviderFailed(type(error).__name__) from error
        if not isinstance(content, dict):
            raise ProviderFailed("the provider's answer is not an object")
        return content

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            context = tls.trusting(self._ca_file) if self._ca_file else True
            connector = aiohttp.TCPConnector(ssl=context, socket_factory=only_to(self._networks))
            self._http = aiohttp.ClientSession(connector=connector)
        return self._http
