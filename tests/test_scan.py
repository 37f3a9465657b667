"""The scan for secrets can find: every form, at every address, and everything that passes a client."""

import base64
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
import pytest
from aiohttp import web

from tests.e2e.scan import Needles
from tests.e2e.seen import SEEN, SHAPES, note, note_body, recorder

pytestmark = pytest.mark.unit

HEX = secrets.token_hex(24)
ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda raw: raw,
    "hex": lambda raw: raw.hex().encode(),
    "HEX": lambda raw: raw.hex().upper().encode(),
    "a bytea of a dump": lambda raw: b"'\\x" + b"value=".hex().encode() + raw.hex().encode() + b"20'",
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
    "base64 with one before": lambda raw: base64.b64encode(b"x" + raw + b"yz"),
    "base64url with two before": lambda raw: base64.urlsafe_b64encode(b"xy" + raw + b"z"),
    "JSON in base64": lambda raw: base64.b64encode(json.dumps({"token": raw.decode("latin-1")}).encode("latin-1")),
}


@pytest.fixture
def seen() -> Iterator[dict[bytes, str]]:
    """What is noted from here on; what the run has noted is put back."""
    kept = dict(SEEN)
    SEEN.clear()
    yield SEEN
    SEEN.clear()
    SEEN.update(kept)


@pytest.mark.parametrize("form", ENCODED)
@pytest.mark.parametrize("value", [b"ABCD-2345", HEX.encode()], ids=["short", "long"])
def test_a_value_is_found_in_every_form_at_every_address(form: str, value: bytes) -> None:
    needles = Needles({value: "canary", b"never-there-" + HEX[:8].encode(): "other"})
    for before in range(9):
        assert needles.find(b"." * before + ENCODED[form](value) + b"..") == {"canary"}
        assert needles.find(b"." * before + ENCODED[form](value)) == {"canary"}
    assert needles.find(ENCODED[form](value)[:5]) == set()


def test_thousands_of_values_in_a_large_file_take_seconds() -> None:
    needles = Needles({os.urandom(32): f"value {number}" for number in range(2_000)} | {HEX.encode(): "canary"})
    content = os.urandom(5_000_000).hex().encode()
    started = time.process_time()
    assert needles.find(content) == set()
    assert needles.find(content + HEX.encode() + content[:5]) == {"canary"}
    assert time.process_time() - started < 15


@pytest.mark.parametrize(
    "text",
    [b"nsk_Prod1_" + b"A" * 64, b"pat_dev_" + b"b" * 43, b"psk_stage_" + b"c" * 40, b"-----BEGIN EC PRIVATE KEY",
     b"pst_dev_" + b"c" * 36, b"psb_dev_abcd2345_node_" + b"d" * 24,
     b"eyJhbGciOiJFZDI1NTE5In0.eyJzdWIiOiJ4eHh4In0." + b"e" * 86],
)  # fmt: skip
def test_a_credential_is_found_by_its_shape(text: bytes) -> None:
    assert SHAPES.findall(b'{"x":"' + text + b'"}') == [text]


def test_of_a_token_its_random_part_and_of_a_bearer_its_key_are_noted_too(seen: dict[bytes, str]) -> None:
    key = os.urandom(32)
    bearer = b"nsk_dev_" + base64.urlsafe_b64encode(os.urandom(16) + key)
    note("bearer", bearer)
    token = secrets.token_urlsafe(32)
    note("token", f"pat_dev_{token}")
    assert {bearer, key, token.encode(), f"pat_dev_{token}".encode()} <= seen.keys()


@pytest.mark.parametrize("value", ["0190a8b8-a0c0-7a0a-8a0a-a0a0a0a0a0a3", "unreachable", "nsk_" + "0a" * 16, "x" * 40])
def test_ids_and_words_are_no_secrets(seen: dict[bytes, str], value: str) -> None:
    note_body("answer", json.dumps({"token": value, "state": value}).encode(), "")
    assert seen == {}


@pytest.fixture
async def server() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        body = {"items": [{"nsk": HEX[:20] + "N"}], "authorization_url": f"https://op.test/auth?state={HEX[:20]}S"}
        headers = {"Set-Cookie": f"plexsphere_session={HEX[:20]}C; Path=/", "Location": f"/x?code={HEX[:20]}L"}
        return web.json_response(body, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


async def test_everything_that_passes_a_client_is_noted(seen: dict[bytes, str], server: str) -> None:
    octets = {"Content-Type": "application/octet-stream"}
    sent = {
        "Authorization": f"Bearer {HEX[:20]}B",
        "Cookie": f"a=b; c={HEX[:20]}K",
        "X-Plexsphere-CSRF": HEX[:20] + "X",
    }
    async with aiohttp.ClientSession(trace_configs=[recorder()]) as http:
        for body, headers in (
            (json.dumps({"device_code": HEX[:20] + "D"}).encode(), sent),
            (b"client_secret=" + HEX[:20].encode() + b"F", {"Content-Type": "application/x-www-form-urlencoded"}),
            (HEX[:20].encode() + b"V", octets),
        ):
            async with http.put(f"{server}?state={HEX[:20]}Q", data=body, headers=headers) as answer:
                await answer.read()
    assert {value[20:] for value in seen if len(value) == 21} == {one.encode() for one in "NSCLBKXDFVQ"}
