"""S-1: the scan that ends every run finds what lies in any of the places that it looks at."""

import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.attacker import Broker
from tests.e2e.conftest import Scene
from tests.e2e.scan import key_files, search, written
from tests.e2e.seen import SEEN
from tests.e2e.world import World

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def in_a_table(world: World, canary: bytes) -> AsyncIterator[None]:
    connection = await world.superuser()
    await connection.execute("CREATE TABLE mesh.canary (a bytea)")
    try:
        await connection.execute("INSERT INTO mesh.canary VALUES ($1)", b"x" + canary)
        yield
    finally:
        await connection.execute("DROP TABLE mesh.canary")
        await connection.close()


@asynccontextmanager
async def in_the_store_of_jetstream(world: World, canary: bytes) -> AsyncIterator[None]:
    async with Broker(world) as broker:
        await broker.api("STREAM.CREATE.CANARY", {"name": "CANARY", "subjects": ["canary"], "storage": "file"})
        try:
            await broker.put("canary", base64.b64encode(b"xy" + canary))
            yield
        finally:
            await broker.api("STREAM.DELETE.CANARY")


@asynccontextmanager
async def in_a_log(world: World, canary: bytes) -> AsyncIterator[None]:
    path = world.state / "log/canary.trace.jsonl"
    path.write_bytes(b'{"name": "' + canary.hex().encode() + b'"}')
    try:
        yield
    finally:
        path.unlink()


@pytest.mark.parametrize("planted", [in_a_table, in_the_store_of_jetstream, in_a_log])
async def test_a_canary_is_found_wherever_it_is_planted(world: World, planted: object) -> None:
    canary = secrets.token_hex(24).encode()
    async with planted(world, canary):  # type: ignore[operator]  # one of the three above
        found = await search(world, {canary: "canary"})
    assert [text.split(" is in ")[0] for text in found] == ["canary"]
    assert await search(world, {canary: "canary"}) == []


async def test_a_credential_that_no_client_has_seen_is_found_by_its_shape(world: World) -> None:
    bearer = b"nsk_Prod1_" + base64.urlsafe_b64encode(secrets.token_bytes(48))
    path = world.state / "log/canary.log"
    path.write_bytes(b"got " + bearer)
    try:
        (found,) = await search(world, {})
    finally:
        path.unlink()
    assert found.startswith("a credential by its shape (nsk_Prod1_")
    assert found.endswith(" is in log/canary.log")


async def test_the_scan_sees_every_place_and_every_kind_of_secret(scene: Scene) -> None:
    state = scene.story.world.state
    places = {name for name, _ in written(state)}
    services = {"identity", "secrets", "mesh", "audit", "gateway"}
    assert {f"log/{name}.{kind}" for name in services for kind in ("log", "trace.jsonl")} <= places
    assert {"supervisor.log", "log/openbao-audit.log", "log/postgres.log", "log/nats.log"} <= places
    assert any(place.startswith("nats/jetstream/") and place.endswith(".blk") for place in places)
    assert (await scene.read(scene.story.node_a)).status == 200
    named = " ".join(SEEN.values())
    for kind in (
        "cookie of", "bearer of", "value of PUT", "nsk of", "token of", "user_code of",
        "device_code of", "code in the query of", "state of", "nonce of",
    ):  # fmt: skip
        assert kind in named, kind
    assert {"csrf.key", "openbao-seal.key", "ca.key", "oidc-a.jwks.json"} <= set(key_files(state).values())
