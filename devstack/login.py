"""A sign-in as a browser does it, by plain HTTP: code flow at the provider, then the device flow for a token."""

import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp import ClientResponse, ClientSession

from devstack.layout import StackError
from libs import tls

Jar = dict[str, dict[str, str]]
OK, REDIRECTS, MOST_STEPS = 200, {302, 303}, 12


async def access_token(edge: str, ca_file: Path, who: dict[str, str], domain_id: str = "") -> str:
    """Return an access token for the subject; raises StackError with what the edge or the provider answered."""
    connector = aiohttp.TCPConnector(ssl=tls.trusting(ca_file))
    async with ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
        wanted = {"domain_id": domain_id} if domain_id else {}
        started = await _post(http, f"{edge}/v1/auth/sign-in", wanted)
        jar: Jar = {}
        callback = await authorize(http, str(started["authorization_url"]), edge, who, jar)
        # The edge gave this to the browser as a cookie, too; whoever has it started the sign-in.
        own = {"Cookie": f"__Host-plexsphere_sign_in={started['code_verifier_handle']}", "Accept": "text/html"}
        async with http.get(callback, headers=own, allow_redirects=False) as answer:
            cookies = {name: morsel.value for name, morsel in answer.cookies.items() if morsel.value}
        if "plexsphere_session" not in cookies:
            raise StackError(f"the sign-in was refused: {answer.headers.get('Location', answer.status)}")
        device = {"client_id": "plexctl", **wanted}
        codes = await _post(http, f"{edge}/v1/auth/device-code", device)
        as_browser = {
            "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()),
            "X-Plexsphere-CSRF": cookies.get("plexsphere_csrf", ""),
            "Origin": edge,
        }
        await _post(http, f"{edge}/v1/auth/device/approve", {"user_code": str(codes["user_code"])}, as_browser)
        poll = {"device_code": str(codes["device_code"]), "client_id": "plexctl"}
        token = await _post(http, f"{edge}/v1/auth/device-token", poll)
        return str(token["access_token"])


async def _post(
    http: ClientSession, url: str, body: dict[str, str], headers: dict[str, str] | None = None
) -> dict[str, object]:
    async with http.post(url, json=body, headers=headers) as answer:
        content: dict[str, object] = await answer.json(content_type=None)
        if answer.status != OK:
            raise StackError(f"{urlsplit(url).path} answered {answer.status}: {content.get('code')}")
        return content


async def authorize(http: ClientSession, url: str, edge: str, who: dict[str, str], jar: Jar) -> str:
    """Sign in at the provider from its authorization URL on, and return the URL that leads back to the edge."""
    for _ in range(MOST_STEPS):
        if url.startswith(edge + "/"):
            return url
        site = urlsplit(url).netloc
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.get(site, {}).items())}
        if re.search(r"/interaction/[^/?]+$", url):
            async with http.post(url, data=who, headers=headers, allow_redirects=False) as answer:
                url = await _next(url, answer, jar.setdefault(site, {}))
        else:
            async with http.get(url, headers=headers, allow_redirects=False) as answer:
                url = await _next(url, answer, jar.setdefault(site, {}))
    raise StackError("the provider kept redirecting")


async def _next(url: str, answer: ClientResponse, cookies: dict[str, str]) -> str:
    cookies.update({name: morsel.value for name, morsel in answer.cookies.items()})
    if answer.status not in REDIRECTS:
        raise StackError(f"the provider answered {answer.status}: {(await answer.text())[:200]}")
    return urljoin(url, answer.headers["Location"])
