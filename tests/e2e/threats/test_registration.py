"""Registration under attack and in a crowd: each refusal has its code and leaves the token good, no race wins twice."""

import asyncio
import base64
import ipaddress
import re
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest

from libs.ids import uuid7
from tests.e2e.conftest import Scene
from tests.e2e.enrolling import Desk
from tests.e2e.outside import JSON, Edge, Node, Outside
from tests.e2e.stories.main_job import now
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

NOBODY = str(uuid7())
P = 2**255 - 19


@pytest.fixture
async def desk(scene: Scene) -> Desk:
    return await Desk.open(scene.operator)


def key(u: int, length: int = 32) -> str:
    return base64.b64encode(u.to_bytes(length, "little")).decode()


def with_top_bit(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[31] |= 0x80
    return base64.b64encode(raw).decode()


def altered(wish: JSON, part: int, value: str) -> JSON:
    parts = wish["bootstrap_token"].split("_")
    parts[part] = value
    return {"bootstrap_token": "_".join(parts)}


Mutation = Callable[[JSON], JSON]
MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "a key of zeros": (lambda _: {"public_key": key(0)}, "400 public_key_invalid"),
    "a key of low order": (lambda _: {"public_key": key(1)}, "400 public_key_invalid"),
    "a key of low order, rewritten": (lambda _: {"public_key": key(P + 1)}, "400 public_key_invalid"),
    "a key with its top bit set": (lambda w: {"public_key": with_top_bit(w["public_key"])}, "400 public_key_invalid"),
    "a short key": (lambda _: {"public_key": key(9, 31)}, "400 public_key_invalid"),
    "a key that is no base64": (lambda _: {"public_key": "?" * 44}, "400 public_key_invalid"),
    "a nonce of another version": (lambda _: {"nonce": str(uuid7())}, "422 unprocessable"),
    "a nonce that is none": (lambda _: {"nonce": "once"}, "422 unprocessable"),
    "a project that is none": (lambda _: {"project_id": "web"}, "422 unprocessable"),
    "an unknown member": (lambda _: {"admin": True}, "400 invalid_body"),
    "a member of another type": (lambda _: {"nonce": 7}, "400 invalid_body"),
    "another kind in the token": (lambda w: altered(w, 3, "bridge"), "403 kind_mismatch"),
    "another environment in the token": (lambda w: altered(w, 1, "prod"), "403 token_unknown"),
    "another secret in the token": (lambda w: altered(w, 4, "a" * 32), "403 token_unknown"),
    "another selector in the token": (lambda w: altered(w, 2, "a" * 16), "403 token_unknown"),
    "another project": (lambda _: {"project_id": NOBODY}, "403 project_mismatch"),
    "a resource that is not there": (lambda _: {"resource_handle": "nobody"}, "404 resource_not_found"),
    "another resource asked for": (lambda _: {"requested_resource_id": NOBODY}, "404 resource_not_found"),
}


async def test_each_refusal_has_its_code_and_leaves_the_token_good(desk: Desk) -> None:
    wish = await desk.wish()
    seen = {name: str(await desk.register(wish | mutate(wish))) for name, (mutate, _) in MUTATIONS.items()}
    assert seen == {name: expected for name, (_, expected) in MUTATIONS.items()}
    missing = {name: await desk.register({k: v for k, v in wish.items() if k != name}) for name in wish}
    assert {name: str(answer) for name, answer in missing.items()} == dict.fromkeys(wish, "400 invalid_body")
    # Ids match in either case.
    upper = {name: wish["resource_handle"].upper() for name in ("resource_handle", "requested_resource_id")}
    registered = await desk.register(wish | upper)
    assert registered.status == 201, registered.body


async def test_a_token_is_for_its_kind_its_project_and_its_time(world: World, desk: Desk) -> None:
    wish, other = await desk.wish(), await desk.project()
    bridge, gate = await desk.token("bridge"), await desk.resource("bridge")
    foreign = await desk.resource(project_id=other)
    taken = await desk.wish()
    assert (await desk.register(taken)).status == 201
    cases = {
        "a bridge's token for a server": (wish | {"bootstrap_token": bridge["token"]}, "403 kind_mismatch"),
        "a node's token for a bridge": (wish | {"resource_handle": gate["id"]}, "403 kind_mismatch"),
        "a project of the same Domain": (wish | {"project_id": other}, "403 project_mismatch"),
        "a resource of that project": (wish | {"resource_handle": foreign["id"]}, "404 resource_not_found"),
        "a resource with a node": (wish | {"resource_handle": taken["resource_handle"]}, "404 resource_not_found"),
        "another node's key": (wish | {"public_key": taken["public_key"]}, "400 public_key_invalid"),
        "the nonce of another token": (wish | {"nonce": taken["nonce"]}, "403 nonce_collision"),
    }
    assert {name: str(await desk.register(body)) for name, (body, _) in cases.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }
    dba = await world.superuser()
    try:
        selector = wish["bootstrap_token"].split("_")[2]
        sql = "SELECT reason FROM audit.entries WHERE chain = $1 AND context -> 'register' ->> 0 = 'public_key_invalid'"
        assert [row["reason"] for row in await dba.fetch(sql, desk.domain_id)] == ["insufficient_relation"]
        for column, code in (("expires_at", "token_expired"), ("revoked_at", "token_revoked")):
            was = await dba.fetchval(f"SELECT {column} FROM identity.bootstrap_tokens WHERE selector = $1", selector)
            sql = f"UPDATE identity.bootstrap_tokens SET {column} = coalesce($2, now()) WHERE selector = $1"
            await dba.execute(sql, selector, was and was - timedelta(days=1))
            assert str(await desk.register(wish)) == f"403 {code}"
            await dba.execute(f"UPDATE identity.bootstrap_tokens SET {column} = $2 WHERE selector = $1", selector, was)
    finally:
        await dba.close()
    assert (await desk.register(wish)).status == 201
    bridged = wish | {"bootstrap_token": bridge["token"], "resource_handle": gate["external_ref"]}
    answer = await desk.register(bridged | {"nonce": str(uuid.uuid4()), "public_key": Node("").public_key})
    assert answer.status == 201, answer.body


async def test_an_identical_retry_gets_a_fresh_key_and_any_difference_collides(world: World, desk: Desk) -> None:
    wish = await desk.wish()
    first = await desk.register(wish)
    second = await desk.register(wish)
    assert (first.status, second.status) == (201, 201)
    assert first.json | {"nsk": ""} == second.json | {"nsk": ""}
    keys = [Node("", node_id=one.json["node_id"], key=base64.b64decode(one.json["nsk"])) for one in (first, second)]
    seen = [str(await node.heartbeat(desk.operator, now())) for node in keys]
    assert seen == ["401 nsk_revoked", "200"]
    other = await desk.resource()
    differences = {
        "another nonce": ({"nonce": str(uuid.uuid4())}, "403 token_consumed"),
        "another key": ({"public_key": Node("").public_key}, "403 nonce_collision"),
        "another resource": ({"resource_handle": other["id"]}, "403 nonce_collision"),
        "another project": ({"project_id": await desk.project()}, "403 nonce_collision"),
    }
    assert {name: str(await desk.register(wish | change)) for name, (change, _) in differences.items()} == {
        name: expected for name, (_, expected) in differences.items()
    }
    dba = await world.superuser()
    try:
        await dba.execute(
            "UPDATE identity.bootstrap_tokens SET consumed_at = consumed_at - interval '11 minutes' WHERE nonce = $1",
            wish["nonce"],
        )
    finally:
        await dba.close()
    assert str(await desk.register(wish)) == "403 nonce_collision"
    assert str(await keys[1].heartbeat(desk.operator, now())) == "200"


async def test_the_snapshot_is_every_other_node_and_ranges_end(scene: Scene) -> None:
    desk = await Desk.open(scene.operator, 29)
    low, high = ipaddress.ip_network(desk.cidr).subnets(1)
    ranged, free = await desk.project(str(low)), desk.project_id
    wishes = [await desk.wish(project_id) for project_id in (ranged, free, ranged, free, free)]
    answers = [await desk.register(wish) for wish in wishes]
    assert [answer.status for answer in answers] == [201] * 5, answers
    seen = [answer.json for answer in answers]
    assert {one["domain_mesh_cidr"] for one in seen} == {desk.cidr}
    assert [one["mesh_ip"] for one in seen] == [str(low[1]), str(high[0]), str(low[2]), str(high[1]), str(high[2])]
    nodes = [
        {"node_id": one["node_id"], "mesh_ip": one["mesh_ip"], "public_key": wish["public_key"]}
        for one, wish in zip(seen, wishes, strict=True)
    ]
    for number, one in enumerate(seen):
        assert one["peer_snapshot"] == nodes[:number]
        assert re.fullmatch("evk_[0-9a-f]{32}", one["signing_key_id"])
        assert (len(one["nsk"]), len(base64.b64decode(one["signing_public_key"]))) == (44, 32)
    late = {"pool_exhausted": await desk.wish(), "subrange_exhausted": await desk.wish(ranged)}
    assert {code: str(await desk.register(wish)) for code, wish in late.items()} == {
        code: f"503 {code}" for code in late
    }
    # A place that is free again is given to whoever still has the token.
    assert (await desk.operator.call("DELETE", f"/v1/resources/{wishes[4]['resource_handle']}")).status == 204
    assert (await desk.register(late["pool_exhausted"])).json["mesh_ip"] == str(high[2])


async def test_bootstrap_tokens_are_listed_and_revoked_and_their_text_is_shown_once(scene: Scene, desk: Desk) -> None:
    path = f"/v1/projects/{desk.project_id}/bootstrap-tokens"
    issued = [await desk.token() for _ in range(5)]
    texts = [one["token"] for one in issued]
    assert all(re.fullmatch("psb_[a-z]+_[a-z2-7]+_(node|bridge)_[a-z2-7]{20,}", text) for text in texts)
    first = await desk.operator.call("GET", path + "?limit=3")
    rest = await desk.operator.call("GET", f"{path}?limit=3&cursor={first.json['next_cursor']}")
    ids = [row["id"] for page in (first, rest) for row in page.json["items"]]
    assert ids == [one["token_id"] for one in reversed(issued)]
    assert "next_cursor" not in rest.json
    one = await desk.operator.call("GET", f"{path}/{ids[0]}")
    assert (one.status, one.json) == (200, first.json["items"][0])
    for answer in (first, rest, one):
        assert not [text for text in texts if text.rsplit("_", 1)[-1].encode() in answer.body]
    altered_cursor = await desk.operator.call("GET", f"{path}?cursor={first.json['next_cursor'][::-1]}")
    assert str(altered_cursor) == "400 invalid_cursor"
    assert [str(await desk.operator.call("DELETE", f"{path}/{ids[0]}")) for _ in range(2)] == [
        "204", "409 token_not_revocable",
    ]  # fmt: skip
    assert (await desk.operator.call("GET", f"{path}/{ids[0]}")).json["revoked_at"]
    assert (await desk.operator.call("GET", f"{path}/{NOBODY}")).status == 404
    elsewhere = f"/v1/projects/{await desk.project()}/bootstrap-tokens/{ids[1]}"
    assert [(await desk.operator.call(verb, elsewhere)).status for verb in ("GET", "DELETE")] == [404, 404]
    used = await desk.wish() | {"bootstrap_token": texts[0]}
    assert (await desk.register(used)).status == 201
    assert str(await desk.operator.call("DELETE", f"{path}/{issued[0]['token_id']}")) == "409 token_not_revocable"
    stranger = scene.edge.as_bearer(scene.story.node_a.bearer)
    assert (await stranger.call("GET", path)).status == 401


async def insisted(desk: Desk, wish: JSON, edge: Edge) -> str:
    """Register, and come back as an agent does while it is told that the time is bad."""
    answer = await desk.register(wish, edge)
    while answer.status == 503:
        await asyncio.sleep(0.5)
        answer = await desk.register(wish, edge)
    return answer.json["mesh_ip"] if answer.status == 201 else str(answer)


async def test_two_hundred_machines_at_once_get_two_hundred_addresses(world: World, desk: Desk) -> None:
    first, second, *_ = (str(one) for one in ipaddress.ip_network(desk.cidr).subnets(4))
    ranges = {await desk.project(first): first, await desk.project(second): second}
    projects = [*ranges, desk.project_id, await desk.project()]
    wishes = [await desk.wish(projects[number % 4]) for number in range(200)]
    async with Outside(world.edge_url, world.ca_file, local="127.0.0.3") as crowd:
        addresses = await asyncio.gather(*(insisted(desk, wish, crowd.edge()) for wish in wishes))
    found = [ipaddress.ip_address(address) for address in addresses]
    assert len(set(found)) == 200
    for wish, address in zip(wishes, found, strict=True):
        own = ranges.get(wish["project_id"])
        inside = [text for text in ranges.values() if address in ipaddress.ip_network(text)]
        assert inside == ([own] if own else [])
        assert address in ipaddress.ip_network(desk.cidr)
    dba = await world.superuser()
    try:
        nodes = "SELECT count(*) FROM identity.nodes WHERE domain_id = $1"
        assert await dba.fetchval(nodes, desk.domain_id) == 200
        told = "SELECT count(*) FROM mesh.event_log WHERE domain_id = $1 AND type = 'peer_added'"
        async with asyncio.timeout(60):
            while await dba.fetchval(told, desk.domain_id) < 200:  # noqa: ASYNC110 — another process's table
                await asyncio.sleep(0.2)
        assert await dba.fetchval(told, desk.domain_id) == 200
    finally:
        await dba.close()


async def test_fifty_callers_of_one_token_are_one_node(world: World, desk: Desk) -> None:
    wish = await desk.wish()
    callers = [wish | {"nonce": str(uuid.uuid4()), "public_key": Node("").public_key} for _ in range(50)]
    async with Outside(world.edge_url, world.ca_file, local="127.0.0.4") as crowd:
        answers = await asyncio.gather(*(desk.register(one, crowd.edge()) for one in callers))
    assert Counter(map(str, answers)) == {"201": 1, "403 token_consumed": 49}
    dba = await world.superuser()
    try:
        sql = "SELECT count(*) FROM identity.nodes WHERE domain_id = $1"
        assert await dba.fetchval(sql, desk.domain_id) == 1
    finally:
        await dba.close()
