"""OpenBao over HTTP: login by certificate or pod, KV version 2, transit.

aiohttp with a bounded pool of TLS connections; docs/decisions/0043-openbao-without-hvac.md says why. What is read or
written is never logged, and an error carries a status and a path, never a body. A read whose connection was closed
before an answer is sent once more, a write never; an OpenBao that hangs is soon not waited for (libs/breaker.py).
"""

import asyncio
import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
from opentelemetry import trace
from yarl import URL

from libs import tls
from libs.breaker import Breaker
from libs.custody import Secret, take
from libs.errors import OpenbaoUnavailable
from libs.rpc.context import remaining_s
from libs.settings import OpenBao, Tls
from libs.telemetry import hop

RENEW_BEFORE_S = 30.0
# How soon a new certificate is used; looking at every request would cost more than the request's own bytes.
LOOK_EVERY_S = 1.0
LONG_BODY = 64 * 1024
MOST_CONNECTIONS = 64
# Who had less time than this left when it asked says nothing about OpenBao by running out of it.
PATIENCE_S = 1.0
FORBIDDEN, MISSING, BAD, SEALED, FIRST_ERROR = 403, 404, 400, 503, 400

tracer = trace.get_tracer("libs.bao")
JSON = dict[str, Any]


class BaoRefused(Exception):
    """OpenBao answered that this cannot be done; `status` is its HTTP status."""

    def __init__(self, status: int, path: str) -> None:
        super().__init__(f"OpenBao answered {status} to {path}")
        self.status = status


class Bao:
    """One service's access to OpenBao, by its own role and policy."""

    def __init__(self, settings: OpenBao, identity: Tls) -> None:
        self.settings = settings
        self.identity = identity
        self._http: aiohttp.ClientSession | None = None
        self._retired: aiohttp.ClientSession | None = None
        self._seen: tuple[int, ...] = ()
        self._look_at = 0.0
        self._token = Secret(b"")
        self._until = 0.0
        self._login = asyncio.Lock()
        self._breaker = Breaker(OpenbaoUnavailable)

    async def close(self) -> None:
        """Close the connections and forget the token."""
        self._token.wipe()
        for session in (self._http, self._retired):
            if session is not None:
                await session.close()

    async def request(self, method: str, path: str, body: JSON | None = None) -> JSON:
        """Send one request and read its answer; raises BaoRefused for a refusal and OpenbaoUnavailable for none."""
        with await self.fetch(method, path, body) as answer:
            return _read(answer)

    async def fetch(self, method: str, path: str, body: JSON | None = None) -> Secret:
        """Send one request and return the answer as it came, to be wiped; raises as `request` does."""
        try:
            return await self._send(method, path, body, await self.token())
        except BaoRefused as refused:
            if refused.status != FORBIDDEN:
                raise
        # The token may have been revoked or OpenBao restarted: log in once more, then believe the refusal.
        self.forget_token()
        return await self._send(method, path, body, await self.token())

    async def token(self) -> Secret:
        """Return a token that lasts for a while yet."""
        if time.monotonic() >= self._until - RENEW_BEFORE_S:
            await self._log_in()
        return self._token

    def forget_token(self) -> None:
        """Log in anew before the next request."""
        self._until = 0.0

    async def read_kv(self, path: str, version: int = 0) -> tuple[JSON, int]:
        """Return the data and version of a secret in `kv`; raises BaoRefused 404 when there is none."""
        query = f"?version={version}" if version else ""
        answer = await self.request("GET", f"kv/data/{path}{query}")
        return answer["data"]["data"], int(answer["data"]["metadata"]["version"])

    async def write_kv(self, path: str, data: JSON, cas: int) -> int:
        """Write a version by check-and-set; raises BaoRefused 400 when the current version is not `cas`."""
        answer = await self.request("POST", f"kv/data/{path}", {"data": data, "options": {"cas": cas}})
        return int(answer["data"]["version"])

    async def sign(self, mount: str, key: str, message: bytes) -> bytes:
        """Return the Ed25519 signature of the exact bytes (RFC 8032) under a transit key."""
        answer = await self.request("POST", f"{mount}/sign/{key}", {"input": base64.b64encode(message).decode()})
        return base64.b64decode(answer["data"]["signature"].rsplit(":", 1)[1])

    async def wrap(self, mount: str, key: str, context: bytes, bound_to: bytes, plain: Secret) -> str:
        """Encrypt under a derived transit key, with associated data; the context chooses the derivation."""
        (wrapped,) = await self.wrap_all(mount, key, [(context, bound_to, plain)])
        if isinstance(wrapped, BaoRefused):
            raise wrapped
        return wrapped

    async def wrap_all(
        self, mount: str, key: str, wanted: Sequence[tuple[bytes, bytes, Secret]]
    ) -> list[str | BaoRefused]:
        """Encrypt many, each a context, what it is bound to, and the plaintext; answers stand in their order."""
        items = [
            {
                "plaintext": base64.b64encode(plain.reveal()).decode(),
                "context": base64.b64encode(context).decode(),
                "associated_data": base64.b64encode(bound_to).decode(),
            }
            for context, bound_to, plain in wanted
        ]
        answer = await self.request("POST", f"{mount}/encrypt/{key}", {"batch_input": items})
        # A batch answers 200 with an error in the place of what it did not encrypt.
        return [
            BaoRefused(BAD, f"{mount}/encrypt/{key}") if item.get("error") else str(item["ciphertext"])
            for item in answer["data"]["batch_results"]
        ]

    async def unwrap(self, mount: str, key: str, context: bytes, bound_to: bytes, ciphertext: str) -> Secret:
        """Decrypt what `wrap` encrypted with the same context and associated data; raises BaoRefused otherwise."""
        body = {
            "ciphertext": ciphertext,
            "context": base64.b64encode(context).decode(),
            "associated_data": base64.b64encode(bound_to).decode(),
        }
        answer = await self.request("POST", f"{mount}/decrypt/{key}", body)
        return Secret(base64.b64decode(answer["data"]["plaintext"]))

    async def ping(self) -> None:
        """Log in when needed and look at the own token; raises when OpenBao cannot be used."""
        await self.request("GET", "auth/token/lookup-self")

    async def _log_in(self) -> None:
        try:
            async with asyncio.timeout(remaining_s(self.settings.timeout_s)):
                await self._login.acquire()
        except TimeoutError:
            # One after the other would each wait for an OpenBao that hangs.
            raise OpenbaoUnavailable("somebody else has not been logged in yet") from None
        try:
            if time.monotonic() < self._until - RENEW_BEFORE_S:
                return
            with await self._send("POST", *self._shown(), None) as raw:
                answer = _read(raw)
            self._token.wipe()
            self._token = Secret(answer["auth"]["client_token"].encode())
            self._until = time.monotonic() + float(answer["auth"]["lease_duration"])
        finally:
            self._login.release()

    def _shown(self) -> tuple[str, JSON]:
        """Return where to log in, and with what."""
        if (pod := self.settings.kubernetes) is None:
            return "auth/cert/login", {"name": self.settings.role}
        try:
            # Read at each login: the kubelet replaces it long before it expires.
            token = pod.token_file.read_text().strip()
        except OSError as error:
            raise OpenbaoUnavailable(type(error).__name__) from error
        return f"auth/{pod.mount}/login", {"role": self.settings.role, "jwt": token}

    async def _session(self) -> aiohttp.ClientSession:
        if self._http is not None and time.monotonic() < self._look_at:
            return self._http
        self._look_at, seen = time.monotonic() + LOOK_EVERY_S, tls.changed_at(self.identity)
        if self._http is None or seen != self._seen:
            try:
                context = tls.client(self.identity)
            except OSError:
                # Files that are just being replaced must not fail a request that the open connections can carry.
                if self._http is None:
                    raise
                return self._http
            if self._retired is not None:
                await self._retired.close()
            # It closes what is idle by itself; what is under way ends there.
            self._retired, self._seen = self._http, seen
            connector = aiohttp.TCPConnector(ssl=context, limit=MOST_CONNECTIONS)
            # OpenBao sets no cookies; looking for them would cost every request.
            jar = aiohttp.DummyCookieJar()
            self._http = aiohttp.ClientSession(connector=connector, cookie_jar=jar, middlewares=(writes_once,))
        return self._http

    async def _send(self, method: str, path: str, body: JSON | None, token: Secret | None) -> Secret:
        url, bare = URL(f"{self.settings.address}/v1/{path}", encoded=True), path.split("?", maxsplit=1)[0]
        headers = {"X-Vault-Token": token.reveal().decode()} if token is not None else {}
        allowed = remaining_s(self.settings.timeout_s)
        with hop(tracer, "bao." + bare.split("/", maxsplit=1)[0]), self._breaker.attempt() as attempt:
            try:
                http = await self._session()
                raw = None if body is None else json.dumps(body).encode()
                # aiohttp warns of long bodies of bytes; values may be 1 MiB.
                sent = io.BytesIO(raw) if raw is not None and len(raw) > LONG_BODY else raw
                timeout = aiohttp.ClientTimeout(total=allowed)
                async with http.request(method, url, data=sent, headers=headers, timeout=timeout) as answer:
                    payload = take(await answer.read())
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not isinstance(error, TimeoutError) or allowed >= min(PATIENCE_S, self.settings.timeout_s):
                    attempt.failed()
                raise OpenbaoUnavailable(type(error).__name__) from error
            attempt.answered()
        if status >= FIRST_ERROR:
            payload.wipe()
            if status in {BAD, FORBIDDEN, MISSING}:
                raise BaoRefused(status, bare)
            raise OpenbaoUnavailable("sealed" if status == SEALED else f"status {status}")
        return payload


def _read(answer: Secret) -> JSON:
    found: JSON = json.loads(answer.reveal()) if len(answer) else {}
    return found


async def writes_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending anything but a read again when its connection was closed before an answer."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if request.method == "GET":
            raise
        # It may have been done; aiohttp repeats neither this error nor what it stands for.
        raise aiohttp.ClientConnectionError(type(error).__name__) from error


@contextlib.asynccontextmanager
async def open_bao(settings: OpenBao, identity: Tls) -> AsyncIterator[Bao]:
    """Open a client for the block; it logs in when it is first used."""
    bao = Bao(settings, identity)
    try:
        yield bao
    finally:
        await bao.close()
