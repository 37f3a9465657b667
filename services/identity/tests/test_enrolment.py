"""Registration and heartbeats: every gate in its order, one row a request, and no token touched for nothing."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.errors import AuditUnavailable, OpenbaoUnavailable, PlexError, PoolExhausted, SigningUnavailable
from libs.ids import uuid7
from services.identity.enrolment import Enrolled, Wish
from services.identity.model import BootstrapToken
from services.identity.node_model import Wanted
from services.identity.tests.fakes import NOW, World, node_principal

pytestmark = pytest.mark.unit

KEY = X25519PrivateKey.generate().public_key().public_bytes_raw()
OTHER_KEY = X25519PrivateKey.generate().public_key().public_bytes_raw()
CHECKSUM = bytes(range(32))


async def wish(world: World, **changes: str | bytes) -> Wish:
    token = str(changes.pop("token", "")) or await world.token()
    valid = Wish(str(world.project.id), "edge-a", token, str(uuid4()), KEY)
    return replace(valid, **changes)  # type: ignore[arg-type]  # fields of both types


async def refusal(world: World, wanted: Wish) -> str:
    with pytest.raises(PlexError) as raised:
        await world.enrolment.register(wanted)
    return raised.value.code


async def register(world: World) -> tuple[Wish, Enrolled]:
    wanted = await wish(world)
    return wanted, await world.enrolment.register(wanted)


async def test_a_node_gets_its_address_keys_and_row_in_this_order() -> None:
    world = World()
    wanted, enrolled = await register(world)
    assert world.trace == ["wrap", "signing_key", "audit", "register", "deliver"]
    (row,) = world.audit.rows
    assert (row.action, row.reason, row.object_type) == ("node.register", "granted", "node")
    assert (row.object_id, row.domain_id) == (str(enrolled.node.node_id), str(world.domain.id))
    assert len(enrolled.key) == 32
    stored = world.enrolled.nodes[enrolled.node.node_id].key
    assert world.wrapper.keys[stored.wrapped] == bytes(enrolled.key.reveal())
    assert stored.wrapped.endswith(f"{world.domain.id}/{enrolled.node.node_id}/{stored.kid}")
    assert re.fullmatch("nsk_[0-9a-f]{32}", stored.kid)
    assert wanted.bootstrap_token not in repr(world.audit.rows)


P = 2**255 - 19
# The points of low order of Curve25519 and its twist (Bernstein, "Curve25519: new Diffie-Hellman speed records"), and
# those of their other encodings that fit into 255 bits.
LOW_ORDER = {
    "0": 0,
    "1": 1,
    "of order 8": 325606250916557431795983626356110631294008115727848805560023387167927233504,
    "of order 8 too": 39382357235489614581723060781553021112529911719440698176882885853963445705823,
    "p - 1": P - 1,
    "p": P,
    "p + 1": P + 1,
}
TOP_BIT = 2**255
REWRITTEN = {
    "u at the end of 255 bits": 2**255 - 1,
    "u + p": P + 9,
    "another key with its top bit set": int.from_bytes(KEY, "little") | TOP_BIT,
}
BAD_KEYS = (
    {"empty": b"", "short": KEY[:31], "long": KEY + b"\0"}
    | {f"low order {name}": u.to_bytes(32, "little") for name, u in LOW_ORDER.items()}
    | {f"low order {name}, top bit": (u | TOP_BIT).to_bytes(32, "little") for name, u in LOW_ORDER.items()}
    | {name: u.to_bytes(32, "little") for name, u in REWRITTEN.items()}
)


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
async def test_the_key_is_checked_before_the_token_is_looked_at(key: bytes) -> None:
    world = World()
    assert await refusal(world, await wish(world, public_key=key, bootstrap_token="psb_dev_no_node_such")) == (
        "public_key_invalid"
    )
    assert world.trace == []


BAD_FORMS = {
    "nonce of another version": {"nonce": str(uuid7())},
    "nonce that is none": {"nonce": "once"},
    "project that is none": {"project_id": "web"},
}


@pytest.mark.parametrize("changes", BAD_FORMS.values(), ids=BAD_FORMS.keys())
async def test_what_parses_and_breaks_an_invariant_is_unprocessable(changes: dict[str, str]) -> None:
    world = World()
    assert await refusal(world, await wish(world, **changes)) == "unprocessable"


async def test_refusals_of_a_real_token_leave_one_row_and_the_token_unused() -> None:
    world = World()
    other = replace(world.project, id=uuid7())
    world.store.project_rows[other.id] = other
    bridge = await world.token("bridge")
    expired = await world.token(ttl_s=300)
    altered = (await world.token()).replace("_node_", "_bridge_")
    revoked = await world.token()
    (token,) = [row for row in world.store.token_rows.values() if row.selector in revoked]
    await world.identity.revoke_token(world.owner, world.project.id, token.id)
    world.clock.advance(301)
    cases = {
        "project_mismatch": await wish(world, project_id=str(other.id)),
        "resource_not_found": await wish(world, resource_handle="nobody"),
        "kind_mismatch": await wish(world, token=bridge),
        "token_expired": await wish(world, token=expired),
        "token_revoked": await wish(world, token=revoked),
    }
    for code, wanted in [*cases.items(), ("kind_mismatch", await wish(world, token=altered))]:
        world.audit.rows.clear()
        world.trace.clear()
        assert await refusal(world, wanted) == code
        (row,) = world.audit.rows
        assert (row.reason, row.context) == ("insufficient_relation", {"register": [code]})
        assert row.domain_id == str(world.domain.id)
        assert not {"wrap", "register"} & set(world.trace)
    assert all(row.consumed_at is None for row in world.store.token_rows.values())


async def test_a_bridge_token_registers_a_bridge_and_nothing_else() -> None:
    world = World()
    bridge = replace(world.resource, id=uuid7(), kind="bridge", external_ref="gate")
    world.store.resource_rows[bridge.id] = bridge
    assert await refusal(world, await wish(world, resource_handle="gate")) == "kind_mismatch"
    wanted = await wish(world, token=await world.token("bridge"), resource_handle="gate")
    assert (await world.enrolment.register(wanted)).node.mesh_ip


async def test_the_resource_is_found_by_id_too_and_must_be_the_one_asked_for() -> None:
    world = World()
    named = {"resource_handle": str(world.resource.id), "requested_resource_id": str(world.resource.id).upper()}
    assert (await world.enrolment.register(await wish(world, **named))).node.mesh_ip
    assert await refusal(world, await wish(world, requested_resource_id=str(uuid7()))) == "resource_not_found"


UNKNOWN = {
    "not a token": "hello",
    "other environment": "psb_prod_{selector}_node_{secret}",
    "other secret": "psb_dev_{selector}_node_" + "a" * 32,
    "other selector": "psb_dev_aaaaaaaaaaaaaaaa_node_" + "a" * 32,
    "upper case": "PSB_DEV_{selector}_NODE_" + "A" * 32,
}


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN.keys())
async def test_an_unknown_token_is_refused_without_a_row(text: str) -> None:
    world = World()
    _, _, selector, _, secret = (await world.token()).split("_")
    attempt = await wish(world, token=text.format(selector=selector, secret=secret))
    assert await refusal(world, attempt) == "token_unknown"
    # An attacker must not fill the chain: the edge counts these.
    assert world.audit.rows == []


async def test_a_second_use_is_consumed() -> None:
    world = World()
    wanted, _ = await register(world)
    assert await refusal(world, replace(wanted, nonce=str(uuid4()))) == "token_consumed"
    assert len(world.enrolled.nodes) == 1


async def test_an_identical_retry_gets_a_fresh_key_for_the_same_node() -> None:
    world = World()
    wanted, first = await register(world)
    world.clock.advance(600)
    world.audit.rows.clear()
    again = await world.enrolment.register(wanted)
    assert again.node.node_id == first.node.node_id
    assert not again.key.matches(first.key)
    assert world.trace[-2:] == ["replace_key", "deliver"]
    assert [row.reason for row in world.audit.rows] == ["granted"]


@pytest.mark.parametrize("difference", ["public key", "time", "project"])
async def test_a_retry_that_differs_collides_and_leaves_a_row(difference: str) -> None:
    world = World()
    wanted, _ = await register(world)
    match difference:
        case "public key":
            wanted = replace(wanted, public_key=OTHER_KEY)
        case "time":
            world.clock.advance(601)
        case "project":
            wanted = replace(wanted, project_id=str(uuid7()))
    world.audit.rows.clear()
    assert await refusal(world, wanted) == "nonce_collision"
    assert [row.context for row in world.audit.rows] == [{"register": ["nonce_collision"]}]
    assert len(world.enrolled.keys) == 1


async def test_without_audit_vault_or_signing_key_no_token_is_used() -> None:
    for break_it in ("audit", "wrapper", "keys", "store"):
        world = World()
        wanted = await wish(world)
        errors: dict[str, PlexError] = {
            "audit": AuditUnavailable(),
            "wrapper": OpenbaoUnavailable(),
            "keys": SigningUnavailable(),
            "store": PoolExhausted(),
        }
        target = {"audit": world.audit, "wrapper": world.wrapper, "keys": world.keys, "store": world.enrolled}
        target[break_it].refusal = errors[break_it]  # type: ignore[attr-defined]  # every fake has it
        assert await refusal(world, wanted) == errors[break_it].code
        assert [row.consumed_at for row in world.store.token_rows.values()] == [None]
        assert world.enrolled.nodes == {}


async def heartbeat(world: World, node: UUID, /, **changes: object) -> tuple[datetime, Wanted]:
    valid = {
        "principal": node_principal(node, world.domain.id),
        "node_id": str(node),
        "client_now": NOW,
        "checksum": CHECKSUM,
        "version": "1.2.3",
        "nat_summary": "{}",
    }
    return await world.enrolment.heartbeat(**(valid | changes))  # type: ignore[arg-type]  # mixed on purpose


BAD_BEATS = {
    "clock ahead": ({"client_now": NOW + timedelta(seconds=61)}, "clock_skew"),
    "clock behind": ({"client_now": NOW - timedelta(seconds=61)}, "clock_skew"),
    "no checksum": ({"checksum": b""}, "binary_checksum_empty"),
    "short checksum": ({"checksum": CHECKSUM[:31]}, "binary_checksum_empty"),
    "no version": ({"version": ""}, "binary_version_empty"),
}


@pytest.mark.parametrize(("changes", "code"), BAD_BEATS.values(), ids=BAD_BEATS.keys())
async def test_a_bad_heartbeat_has_its_code(changes: dict[str, object], code: str) -> None:
    world = World()
    _, enrolled = await register(world)
    with pytest.raises(PlexError) as raised:
        await heartbeat(world, enrolled.node.node_id, **changes)
    assert raised.value.code == code
    assert world.enrolled.heartbeats == []


async def test_a_heartbeat_within_a_minute_is_taken() -> None:
    world = World()
    _, enrolled = await register(world)
    rows = len(world.audit.rows)
    for skew in (-60, 0, 60):
        taken = await heartbeat(world, enrolled.node.node_id, client_now=NOW + timedelta(seconds=skew))
        assert taken == (NOW, Wanted(rotate_keys=False, reconcile=False))
    world.enrolled.pending.add(enrolled.node.node_id)
    assert await heartbeat(world, enrolled.node.node_id) == (NOW, Wanted(rotate_keys=True, reconcile=False))
    assert len(world.audit.rows) == rows


async def test_another_nodes_heartbeat_is_refused_with_a_row() -> None:
    world = World()
    _, enrolled = await register(world)
    world.audit.rows.clear()
    with pytest.raises(PlexError) as raised:
        await heartbeat(world, uuid7(), node_id=str(enrolled.node.node_id))
    assert raised.value.code == "node_id_mismatch"
    assert [row.context for row in world.audit.rows] == [{"heartbeat": ["node_id_mismatch"]}]


async def test_a_node_that_is_gone_is_told_to_register_again() -> None:
    world = World()
    with pytest.raises(PlexError) as raised:
        await heartbeat(world, uuid7())
    assert raised.value.http == 401


async def test_another_nodes_key_leaves_a_refusal_and_no_grant() -> None:
    world = World()
    await register(world)
    second = replace(world.resource, id=uuid7(), external_ref="edge-b")
    world.store.resource_rows[second.id] = second
    wanted = await wish(world, resource_handle="edge-b")
    assert await refusal(world, wanted) == "public_key_invalid"
    assert [(row.reason, row.context) for row in world.audit.rows] == [
        ("insufficient_relation", {"register": ["public_key_invalid"]})
    ]


class Stale:
    """A store whose first look at a token is one from before."""

    def __init__(self, store: Any, token: BootstrapToken) -> None:
        self._store, self._before = store, [token]

    async def find_token(self, selector: str) -> BootstrapToken | None:
        return self._before.pop() if self._before else await self._store.find_token(selector)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize(
    ("change", "code"),
    [({}, "allocator_contention"), ({"nonce": str(uuid4())}, "token_consumed")],
    ids=["sent twice", "another"],
)
async def test_who_asks_while_the_same_request_is_answered_comes_back_for_its_key(
    change: dict[str, str], code: str
) -> None:
    world = World()
    wanted = await wish(world)
    (before,) = world.enrolled.directory.token_rows.values()
    await world.enrolment.register(wanted)
    late = replace(world.enrolment, store=Stale(world.enrolled, before))
    with pytest.raises(PlexError) as raised:
        await late.register(replace(wanted, **change))  # type: ignore[arg-type]  # as above
    assert raised.value.code == code
