"""OpenID providers over HTTPS: discovery, keys, the token endpoint. What fails has a reason of its own."""

import asyncio
import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus
from uuid import UUID

import aiohttp

from libs import tls
from libs.clock import Clock
from libs.custody import Secret
from services.identity.egress import Network, is_endpoint, only_to
from services.identity.sign_in_model import Binding
from services.identity.sign_in_ports import ExchangeRefused, ProviderDoubted

# A sign-in makes up to four requests (discovery, keys, token, keys again), and must be refused with its row before the
# edge gives up on it after 15 s.
TIMEOUT = aiohttp.ClientTimeout(total=3)
LIFETIME_S = 300.0
# One fetch an unknown key id and minute; and so many a binding, purpose and minute, however many ids somebody makes up.
A_MINUTE_S = 60.0
MOST_REFRESHES = 5
# Whoever comes right after a failed discovery is told the same, instead of waiting for the same.
REST_S = 1.0
# Less than any server leaves a connection open without a request.
KEEPALIVE_S = 1.0
LARGEST_ANSWER = 256 * 1024
OK, CLIENT_ERRORS = 200, range(400, 500)
NEEDED = ("authorization_endpoint", "token_endpoint", "jwks_uri")
ENDPOINTS = (*NEEDED, "userinfo_endpoint", "end_session_endpoint")
# What is used of a discovery document; a provider can write anything else into it.
KEPT = {"issuer", "authorization_response_iss_parameter_supported", *ENDPOINTS}
# So many providers are remembered, those that were asked last.
MOST_KNOWN = 256
# RFC 6749, 5.2; anything else is token_refused.
REFUSALS = {"invalid_grant": "code_refused", "invalid_client": "client_refused"}
JSON = dict[str, Any]


@dataclass
class Known:
    """What is known of a binding's provider; it dies with its lifetime, so that removed keys die too."""

    source: tuple[str, str]
    metadata: JSON = field(default_factory=dict)
    keys: list[JSON] = field(default_factory=list)
    until: float = 0.0
    doubt: str = ""
    rests_until: float = 0.0
    asked: dict[tuple[str, str], float] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def has(self, kid: str) -> bool:
        """Whether a key of this id is among them."""
        return any(key.get("kid") == kid for key in self.keys)

    def asks(self, purpose: str, kid: str, now: float) -> bool:
        """Whether the keys may be fetched again for this id, and note it: also when nothing comes of it."""
        self.asked = {name: at for name, at in self.asked.items() if now - at < A_MINUTE_S}
        if (purpose, kid) in self.asked or sum(name == purpose for name, _ in self.asked) >= MOST_REFRESHES:
            return False
        self.asked[purpose, kid] = now
        return True


class TooLarge(Exception):
    """An answer that is longer than any honest one."""


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    # A chunked or compressed answer names no length: what counts is what arrives.
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise TooLarge
    return bytes(body)


def _object(what: str, body: bytes) -> JSON:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ProviderDoubted(f"{what}_form")
    return content


def _refusal(body: bytes) -> str:
    try:
        return REFUSALS.get(str(_object("token", body).get("error")), "token_refused")
    except ProviderDoubted:
        return "token_refused"


def _checked(binding: Binding, document: JSON) -> JSON:
    if document.get("issuer") != binding.issuer:
        raise ProviderDoubted("discovery_issuer")
    for endpoint in ENDPOINTS:
        if (endpoint in NEEDED or endpoint in document) and not is_endpoint(document.get(endpoint)):
            raise ProviderDoubted("discovery_endpoint")
    return {name: value for name, value in document.items() if name in KEPT}


class HttpProvider:
    """Speaks to providers on the internet and in listed networks; trusts one CA file, or the system's store."""

    def __init__(
        self, ca_file: Path | None, networks: Iterable[Network], clock: Clock, lifetime_s: float = LIFETIME_S
    ) -> None:
        self._ca_file = ca_file
        self._networks = tuple(networks)
        self._clock = clock
        self._lifetime_s = lifetime_s
        self._known: dict[UUID, Known] = {}
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def metadata(self, binding: Binding) -> JSON:
        """Return what is used of the discovery document, whose issuer is exactly the binding's."""
        return (await self._of(binding)).metadata

    async def keys(self, binding: Binding, kid: str, purpose: str = "sign_in") -> list[JSON]:
        """Return the provider's public keys, fetched again at most once a purpose and minute for an unknown key id."""
        known = await self._of(binding)
        if kid and not known.has(kid):
            # Whoever comes while the keys are fetched waits for that fetch, and looks again.
            async with known.turn:
                if not known.has(kid) and known.asks(purpose, kid, self._now()):
                    known.keys = await self._fetch_keys(known.metadata)
        return known.keys

    async def exchange(self, binding: Binding, secret: Secret, form: dict[str, str]) -> JSON:
        """Exchange a code at the token endpoint (RFC 6749, 4.1.3), with HTTP Basic as 2.3.1 says."""
        document = await self.metadata(binding)
        # Each half is form-encoded first, so that a colon or another alphabet cannot shift the border between them.
        pair = f"{quote_plus(binding.client_id)}:{quote_plus(bytes(secret.reveal()))}"
        headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        try:
            status, body = await self._ask("token", "POST", document["token_endpoint"], headers, form)
        except TooLarge:
            raise ExchangeRefused("too_long") from None
        if status in CLIENT_ERRORS:
            raise ExchangeRefused(_refusal(body))
        if status != OK:
            raise ProviderDoubted("token_status")
        return _object("token", body)

    async def userinfo(self, binding: Binding, access_token: str) -> JSON:
        """Return what the userinfo endpoint says of whom the access token is for (OpenID Connect Core 1.0, 5.3)."""
        document = await self.metadata(binding)
        return await self._fetch("userinfo", document["userinfo_endpoint"], {"Authorization": f"Bearer {access_token}"})

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _remember(self, binding: Binding) -> Known:
        source = (binding.discovery_url, binding.issuer)
        known = self._known.pop(binding.id, None)
        if known is None or known.source != source:
            known = Known(source)
        self._known[binding.id] = known
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return known

    async def _of(self, binding: Binding) -> Known:
        known = self._remember(binding)
        if self._now() >= known.until:
            async with known.turn:
                if self._now() >= known.until:
                    await self._discover(binding, known)
        return known

    async def _discover(self, binding: Binding, known: Known) -> None:
        if self._now() < known.rests_until:
            raise ProviderDoubted(known.doubt)
        try:
            document = _checked(binding, await self._fetch("discovery", binding.discovery_url))
            keys = await self._fetch_keys(document)
        except ProviderDoubted as doubted:
            known.doubt, known.rests_until = doubted.reason, self._now() + REST_S
            raise
        known.metadata, known.keys, known.until = document, keys, self._now() + self._lifetime_s

    async def _fetch_keys(self, document: JSON) -> list[JSON]:
        keys = (await self._fetch("jwks", document["jwks_uri"])).get("keys")
        if not isinstance(keys, list):
            raise ProviderDoubted("jwks_form")
        return [key for key in keys if isinstance(key, dict)]

    async def _fetch(self, what: str, url: str, headers: dict[str, str] | None = None) -> JSON:
        try:
            status, body = await self._ask(what, "GET", url, headers)
        except TooLarge:
            raise ProviderDoubted(f"{what}_too_large") from None
        if status != OK:
            raise ProviderDoubted(f"{what}_status")
        return _object(what, body)

    async def _ask(
        self, what: str, method: str, url: str, headers: dict[str, str] | None = None, form: Any = None
    ) -> tuple[int, bytes]:
        headers = {"Accept": "application/json", **(headers or {})}
        try:
            async with self._session().request(
                method, url, data=form, headers=headers, timeout=TIMEOUT, allow_redirects=False
            ) as answer:
                return answer.status, await _bounded(answer)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ProviderDoubted(f"{what}_unreachable") from error

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            context = tls.trusting(self._ca_file) if self._ca_file else True
            # A code or refresh token is sent once, so never on a connection that its provider may be closing as idle.
            connector = aiohttp.TCPConnector(
                ssl=context, socket_factory=only_to(self._networks), keepalive_timeout=KEEPALIVE_S
            )
            self._http = aiohttp.ClientSession(connector=connector)
        return self._http
