"""How plexctl talks to the edge: one request at a time, problems as exit codes, the token in a file of mode 0600."""

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urljoin

import aiohttp
import typer

from libs.export import LONGEST_LINE

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_SIGN_IN = 3
EXIT_UNAVAILABLE = 4
EXIT_DIVERGED = 5

EXIT_CODES = (
    "Exit codes: 0 done; 1 refused by the edge; 2 wrong usage; 3 not signed in, or not a node; "
    "4 the edge or a service behind it is unavailable; 5 a verification found a divergence."
)
UNAVAILABLE = 503
UNAUTHENTICATED = 401
OF_NODES = frozenset({"unauthorized", "nsk_invalid", "nsk_revoked"})
FIRST_ERROR = 400
DIVERGED = "audit_diverged"
# Between two parts of a streamed answer.
SILENT_S = 60


def credentials_file() -> Path:
    """Return where the access token is kept (XDG base directories)."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "plexctl" / "credentials.json"


def say(message: str) -> None:
    """Print a message for a person; data alone goes to stdout."""
    print(message, file=sys.stderr)


def fail(message: str, status: int) -> NoReturn:
    """End with a message and an exit code."""
    say(f"plexctl: {message}")
    raise typer.Exit(status)


@dataclass(frozen=True)
class Reply:
    """An answer of the edge that is not a refusal."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty for an empty body."""
        value = json.loads(self.body) if self.body else {}
        return value if isinstance(value, dict) else {"items": value}


@dataclass(frozen=True)
class Refusal(Exception):
    """An RFC 9457 problem."""

    status: int
    code: str
    detail: str
    correlation_id: str
    challenge: str = ""


@dataclass(frozen=True)
class EdgeClient:
    """The edge at `url`, trusted through `ca_file` (or the system's store)."""

    url: str
    ca_file: Path | None
    token: str = ""

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request; ends the program with its exit code when the edge refuses or cannot be reached."""
        try:
            return self.attempt(method, path, body, headers=headers, params=params)
        except Refusal as refusal:
            end(refusal)

    def attempt(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request; raises Refusal for a problem and ends the program when there is no connection."""
        try:
            return asyncio.run(self._send(method, path, body, headers or {}, params or {}))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            fail(f"cannot reach the edge at {self.url}: {type(error).__name__}", EXIT_UNAVAILABLE)

    def lines(
        self, method: str, path: str, body: Any = None, *, params: dict[str, str] | None = None
    ) -> Iterator[bytes]:
        """Yield the lines of a streamed answer as they come; a stream that breaks off ends the program.

        The last line has no end where the answer has none.
        """
        parts, rest = self._parts(method, path, body, params or {}), b""
        with asyncio.Runner() as runner:
            try:
                while part := runner.run(_next(parts)):
                    *whole, rest = (rest + part).split(b"\n")
                    yield from (line + b"\n" for line in whole)
                    if len(rest) > LONGEST_LINE:
                        fail("the edge sends a line without an end", EXIT_REFUSED)
                if rest:
                    yield rest
            except Refusal as refusal:
                end(refusal)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                fail(f"the stream of {self.url} broke off: {type(error).__name__}", EXIT_UNAVAILABLE)
            finally:
                runner.run(_close(parts))

    async def _parts(self, method: str, path: str, body: Any, params: dict[str, str]) -> AsyncGenerator[bytes, None]:
        trust = ssl.create_default_context(cafile=self.ca_file)
        headers = {"Authorization": f"Bearer {self.token}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.request(
                method, urljoin(self.url, path), json=body, headers=headers, params=params, ssl=trust
            ) as answer,
        ):
            if answer.status >= FIRST_ERROR:
                raise refusal_of(answer.status, await answer.read(), answer.headers.get("WWW-Authenticate", ""))
            async for part in answer.content.iter_any():
                yield part

    async def _send(self, method: str, path: str, body: Any, headers: dict[str, str], params: dict[str, str]) -> Reply:
        trust = ssl.create_default_context(cafile=self.ca_file)
        sent = dict(headers)
        if self.token:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        data: bytes | None = body if isinstance(body, bytes) else None
        if body is not None and data is None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http,
            http.request(method, urljoin(self.url, path), data=data, headers=sent, params=params, ssl=trust) as answer,
        ):
            payload = await answer.read()
            if answer.status >= FIRST_ERROR:
                raise refusal_of(answer.status, payload, answer.headers.get("WWW-Authenticate", ""))
            return Reply(answer.status, dict(answer.headers), payload)


async def _next(parts: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(parts, b"")


async def _close(parts: AsyncGenerator[bytes, None]) -> None:
    await parts.aclose()


def refusal_of(status: int, payload: bytes, challenge: str = "") -> Refusal:
    """Return what the edge refused with."""
    try:
        problem = json.loads(payload)
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    return Refusal(
        status,
        str(problem.get("code", "")),
        str(problem.get("detail") or problem.get("title") or "the edge gave no reason"),
        str(problem.get("correlation_id", "")),
        challenge,
    )


def end(refusal: Refusal) -> NoReturn:
    """End the program with the message and exit code of a refusal."""
    status = {UNAUTHENTICATED: EXIT_SIGN_IN, UNAVAILABLE: EXIT_UNAVAILABLE}.get(refusal.status, EXIT_REFUSED)
    if refusal.code == DIVERGED:
        status = EXIT_DIVERGED
    hint = ""
    if refusal.status == UNAUTHENTICATED:
        hint = "; register the node again" if refusal.code in OF_NODES else "; run `plexctl login`"
    trace = f" (correlation id {refusal.correlation_id})" if refusal.correlation_id else ""
    fail(f"{refusal.status} {refusal.code}: {refusal.detail}{trace}{hint}", status)


def edge(*, anonymous: bool = False) -> EdgeClient:
    """Return the edge that the environment and the credentials file name.

    `PLEX_EDGE_URL` and `PLEX_CA_FILE` (printed by `plexctl dev env`) come first, then what `plexctl login` saved.
    `PLEX_TOKEN_FILE` names a file with an access token.
    """
    saved = _saved()
    url = os.environ.get("PLEX_EDGE_URL") or saved.get("edge_url", "")
    if not url:
        fail("no edge: set PLEX_EDGE_URL (see `plexctl dev env`) or run `plexctl login --edge URL`", EXIT_USAGE)
    ca_file = os.environ.get("PLEX_CA_FILE") or saved.get("ca_file", "")
    token = ""
    if not anonymous:
        token_file = os.environ.get("PLEX_TOKEN_FILE", "")
        token = Path(token_file).read_text().strip() if token_file else saved.get("access_token", "")
        if not token:
            fail("not signed in: run `plexctl login`, or set PLEX_TOKEN_FILE", EXIT_SIGN_IN)
    return EdgeClient(url, Path(ca_file) if ca_file else None, token)


def _saved() -> dict[str, str]:
    path = credentials_file()
    if not path.exists():
        return {}
    try:
        saved = json.loads(path.read_text())
    except ValueError:
        fail(f"{path} is not readable JSON; remove it and run `plexctl login`", EXIT_USAGE)
    return {str(name): str(value) for name, value in saved.items()} if isinstance(saved, dict) else {}


def save(url: str, ca_file: Path | None, token: str) -> Path:
    """Keep the access token for the next command, readable by its owner only."""
    path = credentials_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = json.dumps({"edge_url": url, "ca_file": str(ca_file or ""), "access_token": token})
    write_private(path, content.encode())
    return path


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, replacing it whole."""
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    scratch.replace(path)
