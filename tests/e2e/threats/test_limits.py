"""Limits per client address: who asks or guesses too often is told to wait, nobody else is; the chain stays short."""

import asyncio
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.enrolling import Desk
from tests.e2e.outside import Answer, Edge, Node, Outside
from tests.e2e.stories.main_job import action
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

BURST = 5
PROXY = "127.0.0.40"
NSK = "nsk_dev_" + "A" * 64


@pytest.fixture
async def strict(world: World, scene: Scene) -> AsyncIterator[Scene]:
    """The gateway with limits that a test can reach, and one proxy in front of it."""
    shipped = world.config("gateway")
    config = re.sub(r"per_minute = \d+\nburst = \d+", f"per_minute = 1\nburst = {BURST}", shipped)
    config = config.replace("trusted_proxies = []", f'trusted_proxies = ["{PROXY}/32"]')
    assert config.count(f"burst = {BURST}") == 5
    await world.restart("gateway", config)
    try:
        yield scene
    finally:
        await world.restart("gateway", shipped)


Ask = Callable[[Edge], Awaitable[Answer]]


def bearer(value: str, path: str = "/v1/auth/whoami") -> Ask:
    return lambda edge: edge.as_bearer(value).call("GET", path)


def cookie(value: str) -> Ask:
    return lambda edge: Edge(edge.url, edge.http, cookies={"plexsphere_session": value}).call("GET", "/v1/domains")


def register(edge: Edge) -> Awaitable[Answer]:
    body = {
        "project_id": str(uuid.uuid4()),
        "resource_handle": "r",
        "bootstrap_token": "psb_dev_aaaaaaaaaaaaaaaa_node_" + "a" * 32,
        "nonce": str(uuid.uuid4()),
        "public_key": Node("").public_key,
    }
    return edge.call("POST", "/v1/register", body)


STATE = f"/v1/nodes/{uuid.UUID(int=0)}/state"
WAYS: dict[str, tuple[Ask, str]] = {
    "register": (register, "403 token_unknown"),
    "sign-in": (lambda edge: edge.call("POST", "/v1/auth/sign-in", {}), "200"),
    "device-code": (lambda edge: edge.call("POST", "/v1/auth/device-code", {"client_id": "plexctl"}), "200"),
    "an access token that is none": (bearer("pat_dev_" + "x" * 43), "401 unauthenticated"),
    "a malformed bearer": (bearer("nsk_x"), "401 unauthenticated"),
    "a session that is none": (cookie("x" * 43), "401 unauthenticated"),
    "a malformed session": (cookie("x y"), "401 unauthenticated"),
    "a node key that is none": (bearer(NSK, STATE), "401 nsk_invalid"),
    "a malformed node key": (bearer("nsk_x", STATE), "401 unauthorized"),
}


async def test_who_goes_on_is_told_to_wait_and_nobody_else_is(world: World, strict: Scene) -> None:
    for number, (name, (ask, usual)) in enumerate(WAYS.items()):
        async with (
            Outside(world.edge_url, world.ca_file, local=f"127.0.1.{number + 1}") as one,
            Outside(world.edge_url, world.ca_file, local=f"127.0.2.{number + 1}") as other,
        ):
            # At once: as many guesses in parallel bring no more than one after the other.
            answers = await asyncio.gather(*(ask(one.edge()) for _ in range(BURST * 4)))
            assert Counter(map(str, answers)) == {usual: BURST, "429 rate_limited": BURST * 3}, name
            waits = {int(answer.headers["Retry-After"]) for answer in answers if answer.status == 429}
            assert waits <= set(range(1, 61)), name
            assert str(await ask(other.edge())) == usual, name
    # Good credentials from anywhere else, however many, spend nothing.
    seen = await asyncio.gather(*(strict.operator.call("GET", "/v1/auth/whoami") for _ in range(BURST * 4)))
    assert {answer.status for answer in seen} == {200}


async def test_guesses_of_bootstrap_tokens_are_bad_credentials_too(world: World, strict: Scene) -> None:
    desk = await Desk.open(strict.operator)
    wish = await desk.wish()
    async with Outside(world.edge_url, world.ca_file, local="127.0.3.1") as one:
        for _ in range(BURST):
            assert str(await register(one.edge())) == "403 token_unknown"
        assert str(await bearer("pat_dev_" + "x" * 43)(one.edge())) == "429 rate_limited"
    assert (await desk.register(wish)).status == 201


async def test_behind_a_proxy_each_client_is_itself_and_nobody_else_can_say_so(world: World, strict: Scene) -> None:
    ask = WAYS["an access token that is none"][0]

    async def told(outside: Outside, client: str) -> Answer:
        return await ask(Edge(world.edge_url, Forwarding(outside.http, client)))  # type: ignore[arg-type]  # one method

    async with Outside(world.edge_url, world.ca_file, local=PROXY) as proxy:
        seen = [str(await told(proxy, "203.0.113.1, 198.51.100.1")) for _ in range(BURST + 1)]
        assert seen[-1] == "429 rate_limited"
        # What the client wrote itself changes nothing; another client is another address.
        assert str(await told(proxy, "203.0.113.2, 198.51.100.1")) == "429 rate_limited"
        assert str(await told(proxy, "203.0.113.1, 198.51.100.2")) == "401 unauthenticated"
    async with Outside(world.edge_url, world.ca_file, local="127.0.3.2") as nobody:
        seen = [str(await told(nobody, f"198.51.100.{number}")) for number in range(BURST + 1)]
        assert seen[-1] == "429 rate_limited"


class Forwarding:
    """An HTTP client that says for whom it asks."""

    def __init__(self, http: object, client: str) -> None:
        self._http = http
        self._client = client

    def request(self, *args: object, headers: dict[str, str], **more: object) -> object:
        """Send with the header of a proxy."""
        sent = headers | {"X-Forwarded-For": self._client}
        return self._http.request(*args, headers=sent, **more)  # type: ignore[attr-defined]  # aiohttp's session


async def test_a_flood_of_bad_credentials_is_a_row_a_reason_and_minute(world: World, strict: Scene) -> None:
    async def rows() -> Counter[str]:
        listed = await strict.operator.call("GET", "/v1/platform/audit/entries?limit=200")
        assert listed.status == 200, listed.body
        return Counter(
            f"{action(row)} {next(iter(row['decision']['caveat_context'].get(kind, [])), '')}"
            f" {row['decision']['caveat_context']['minute'][0]}"
            for row in listed.json["items"]
            for kind in ("credential", "limit")
            if action(row) == f"edge.{kind}_refused"
        )

    async with Outside(world.edge_url, world.ca_file, local="127.0.3.3") as one:
        for _ in range(BURST * 6):
            await WAYS["an access token that is none"][0](one.edge())
        await register(one.edge())
    found = await rows()
    assert set(found.values()) == {1}
    assert {text.rsplit(" ", 1)[0] for text in found} >= {
        "edge.credential_refused unauthenticated", "edge.limit_refused rate_limited",
    }  # fmt: skip
