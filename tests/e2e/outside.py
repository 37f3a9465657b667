"""An outside client: plain HTTPS, a browser's cookies and a node's cryptography. It imports nothing of ours."""

import base64
import hashlib
import json
import re
import secrets
import ssl
import uuid
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.e2e.seen import recorder

JSON = dict[str, Any]
# Cookies by site.
Jar = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came back from the edge."""

    status: int
    headers: dict[str, str]
    body: bytes
    set_cookies: tuple[str, ...] = ()

    @property
    def json(self) -> JSON:
        """The body as a JSON object."""
        value = json.loads(self.body)
        assert isinstance(value, dict), value
        return value

    @property
    def code(self) -> str:
        """The problem's stable code, or nothing."""
        if "problem+json" not in self.headers.get("Content-Type", ""):
            return ""
        return str(self.json.get("code", ""))

    def __str__(self) -> str:
        return f"{self.status} {self.code}".strip()


@dataclass
class Edge:
    """The edge as a client on the network sees it; `caller` is what it authenticates with."""

    url: str
    http: aiohttp.ClientSession
    caller: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    def as_bearer(self, token: str) -> "Edge":
        """Return the same edge for a caller with a bearer token."""
        return Edge(self.url, self.http, {"Authorization": f"Bearer {token}"})

    def anonymous(self) -> "Edge":
        """Return the same edge for a caller without credentials."""
        return Edge(self.url, self.http)

    async def call(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Answer:
        """Send one request; a dict goes as JSON, bytes as they are."""
        sent = dict(self.caller) | (headers or {})
        data: bytes | None = body if isinstance(body, bytes) else None
        if body is not None and data is None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
            if method not in {"GET", "HEAD"}:
                sent.setdefault("X-Plexsphere-CSRF", self.cookies.get("plexsphere_csrf", ""))
                sent.setdefault("Origin", self.url)
        url = urljoin(self.url, path)
        async with self.http.request(method, url, data=data, headers=sent, allow_redirects=False) as answer:
            # As they came: published clients look header names up case-sensitively.
            received = {name.decode(): value.decode() for name, value in answer.raw_headers}
            cookies = tuple(answer.headers.getall("Set-Cookie", ()))
            return Answer(answer.status, received, await answer.read(), cookies)


@dataclass
class Outside:
    """Opens the network for an outside client that trusts the given CA file only.

    `local` is its own address, `resolver` who tells it where a name leads.
    """

    url: str
    ca_file: str
    local: str = ""
    resolver: aiohttp.abc.AbstractResolver | None = None

    async def __aenter__(self) -> Self:
        trust = ssl.create_default_context(cafile=self.ca_file)
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=trust, local_addr=(self.local, 0) if self.local else None, resolver=self.resolver
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=30),
            trace_configs=[recorder()],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.close()

    def edge(self) -> Edge:
        """Return the edge without credentials."""
        return Edge(self.url, self.http)

    async def sign_in(self, provider: "Login", domain_id: str = "", binding_id: str = "", **more: Any) -> Edge:
        """Sign in as a browser does: authorization code with PKCE at the real provider."""
        wanted: JSON = dict(more)
        if domain_id:
            wanted["domain_id"] = domain_id
        if binding_id:
            wanted["idp_binding_id"] = binding_id
        started = await self.edge().call("POST", "/v1/auth/sign-in", wanted)
        assert started.status == 200, f"sign-in: {started} {started.body!r}"
        callback = await provider.authorize(self.http, started.json["authorization_url"], self.url)
        return await self.finish_sign_in(callback, started)

    async def finish_sign_in(self, callback: str, started: Answer) -> Edge:
        """Follow the redirect back to the edge with the cookie of the start, and keep the cookies that it sets."""
        headers = {"Accept": "text/html", **own_browser(started)}
        async with self.http.get(callback, headers=headers, allow_redirects=False) as answer:
            body = await answer.read()
            assert answer.status == 303, f"callback: {answer.status} {body!r}"
            assert "auth_error" not in answer.headers.get("Location", ""), answer.headers["Location"]
            cookies = {name: morsel.value for name, morsel in answer.cookies.items() if morsel.value}
        return Edge(self.url, self.http, cookies=cookies)

    async def access_token(self, browser: Edge, client_id: str = "plexctl", **more: Any) -> str:
        """Get an operator's access token through the device flow, approved by a signed-in browser."""
        started = await self.edge().call("POST", "/v1/auth/device-code", {"client_id": client_id, **more})
        assert started.status == 200, f"device-code: {started} {started.body!r}"
        code = started.json
        approved = await browser.call("POST", "/v1/auth/device/approve", {"user_code": code["user_code"]})
        assert approved.status == 200, f"approve: {approved} {approved.body!r}"
        token = await self.edge().call(
            "POST", "/v1/auth/device-token", {"device_code": code["device_code"], "client_id": client_id}
        )
        assert token.status == 200, f"device-token: {token} {token.body!r}"
        return str(token.json["access_token"])


def own_browser(started: Answer) -> dict[str, str]:
    """Return the header that only the browser has which started the sign-in."""
    return {"Cookie": started.headers["Set-Cookie"].partition(";")[0]}


@dataclass(frozen=True)
class Login:
    """A person at the OpenID provider, with what the provider will say of this login."""

    subject: str
    acr: str = ""
    amr: tuple[str, ...] = ()
    auth_age_s: int = 0

    async def authorize(self, http: aiohttp.ClientSession, url: str, edge: str, jar: Jar | None = None) -> str:
        """Walk the provider's redirects by plain HTTP until it sends the browser back to the edge."""
        jar = {} if jar is None else jar
        for _ in range(12):
            if url.startswith(edge + "/"):
                return url
            site = urlsplit(url).netloc
            cookie = "; ".join(f"{name}={value}" for name, value in jar.get(site, {}).items())
            async with http.get(url, headers={"Cookie": cookie}, allow_redirects=False) as answer:
                for name, morsel in answer.cookies.items():
                    jar.setdefault(site, {})[name] = morsel.value
                assert answer.status in {302, 303}, f"{url}: {answer.status} {await answer.text()}"
                url = urljoin(url, answer.headers["Location"])
            if re.search(r"/interaction/[^/?]+$", url):
                url = await self._interact(http, url, jar)
        raise AssertionError(f"the provider kept redirecting, last to {url}")

    async def _interact(self, http: aiohttp.ClientSession, url: str, jar: Jar) -> str:
        site = urlsplit(url).netloc
        cookie = "; ".join(f"{name}={value}" for name, value in jar.get(site, {}).items())
        form = {
            "subject": self.subject,
            "acr": self.acr,
            "amr": " ".join(self.amr),
            "auth_age": str(self.auth_age_s),
        }
        async with http.post(url, data=form, headers={"Cookie": cookie}, allow_redirects=False) as answer:
            for name, morsel in answer.cookies.items():
                jar.setdefault(site, {})[name] = morsel.value
            assert answer.status in {302, 303}, f"{url}: {answer.status} {await answer.text()}"
            return urljoin(url, answer.headers["Location"])


@dataclass
class Node:
    """A node agent's own view: its keys, and how it opens what it is sent."""

    handle: str
    private_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    node_id: str = ""
    key: bytes = b""
    signing_key_id: str = ""
    signing_public_key: bytes = b""

    @property
    def public_key(self) -> str:
        """X25519 public key, base64."""
        return base64.b64encode(self.private_key.public_key().public_bytes_raw()).decode()

    @property
    def bearer(self) -> str:
        """The node's bearer: `nsk_<env>_` and base64url of node id and key."""
        raw = uuid.UUID(self.node_id).bytes + self.key
        return "nsk_plexd_" + base64.urlsafe_b64encode(raw).decode().rstrip("=")

    async def register(self, edge: Edge, project_id: str, token: str) -> Answer:
        """Register with a bootstrap token and keep the node key when it is answered."""
        body = {
            "project_id": project_id,
            "resource_handle": self.handle,
            "bootstrap_token": token,
            "nonce": str(uuid.uuid4()),
            "public_key": self.public_key,
        }
        answer = await edge.anonymous().call("POST", "/v1/register", body)
        if answer.status == 201:
            self.node_id = answer.json["node_id"]
            self.key = base64.b64decode(answer.json["nsk"])
            self.signing_key_id = answer.json["signing_key_id"]
            self.signing_public_key = base64.b64decode(answer.json["signing_public_key"])
        return answer

    async def heartbeat(self, edge: Edge, now: str) -> Answer:
        """Send a sign of life."""
        body = {
            "client_now": now,
            "binary_checksum": base64.b64encode(hashlib.sha256(b"agent").digest()).decode(),
            "binary_version": "1.4.2",
            "nat_summary": {},
        }
        return await edge.as_bearer(self.bearer).call("POST", f"/v1/nodes/{self.node_id}/heartbeat", body)

    async def read(self, edge: Edge, name: str, node_id: str = "") -> Answer:
        """Ask for a secret, by default as the node itself."""
        return await edge.as_bearer(self.bearer).call("GET", f"/v1/nodes/{node_id or self.node_id}/secrets/{name}")

    def open(self, body: bytes) -> bytes:
        """Decrypt a secret's body: 12-byte nonce, ciphertext and tag, AES-256-GCM."""
        return AESGCM(self.key).decrypt(body[:12], body[12:], None)


def random_secret() -> bytes:
    """Return a value that can be searched for in a dump without false alarms."""
    return b"value-" + secrets.token_hex(24).encode()


def entry_hash(prev_hash: str, canonical: bytes) -> str:
    """Recompute an audit entry's hash from what the edge served."""
    return hashlib.sha256(bytes.fromhex(prev_hash) + hashlib.sha256(canonical).digest()).hexdigest()
