"""The gate: every envelope that is not right is dropped with its reason, and a port that fails is never skipped."""

import base64
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from nacl.signing import SigningKey

from libs.clock import SystemClock, rfc3339
from libs.envelope import Trust
from libs.errors import EventStreamUnavailable, Forbidden, NotFound
from libs.ids import uuid7
from services.gateway.gate import PENDING_EVERY_S, holes
from services.gateway.patience import AGAIN_S, FIRST_S, Patience
from services.gateway.ports import Message, Place, Ports
from services.gateway.tests.five import Bench, FakeMesh

pytestmark = pytest.mark.unit

NAMES = ("event_stream", "nonce_store", "signature_verifier", "relation_checker", "node_repo")


def ports(provided: tuple[bool, ...]) -> Ports:
    return Ports(
        **{name: cast("Any", object()) if there else None for name, there in zip(NAMES, provided, strict=True)}
    )


def test_missing_names_what_is_not_there() -> None:
    assert Ports().missing == NAMES
    assert ports((True, True, False, True, True)).missing == ("signature_verifier",)


async def passage(bench: Bench) -> tuple[list[int], list[tuple[int, str]]]:
    """Send everything through the gate; returns which sequences passed, and why others did not."""
    found = await bench.gate.admit(bench.mesh.messages, 0, time.time_ns())
    return [one.sequence for one in found.admitted], [(one.sequence, one.reason) for one in found.refused]


async def test_what_mesh_published_passes() -> None:
    bench = Bench()
    for kind in ("domain", "node", "project"):
        scope = f"domain:{bench.mesh.domain}" if kind == "domain" else f"{kind}:{uuid7()}"
        bench.mesh.put(bench.mesh.sign(scope=scope))
    assert await passage(bench) == ([1, 2, 3], [])


OTHER = SigningKey.generate()


def at(seconds: float) -> str:
    return rfc3339(SystemClock().now() + timedelta(seconds=seconds))


def altered(member: str, value: str) -> Callable[[FakeMesh], bytes]:
    """Change one member of a valid envelope after it was signed."""

    def change(mesh: FakeMesh) -> bytes:
        found = json.loads(mesh.sign())
        found[member] = value if member != "payload" else {"forged": True}
        return json.dumps(found, separators=(",", ":")).encode()

    return change


def signature(change: Callable[[bytes], bytes]) -> Callable[[FakeMesh], bytes]:
    """Change the signature of a valid envelope."""

    def build(mesh: FakeMesh) -> bytes:
        found = json.loads(mesh.sign())
        raw = change(base64.b64decode(found["signature"]))
        return json.dumps(found | {"signature": base64.b64encode(raw).decode()}, separators=(",", ":")).encode()

    return build


# Each row: what the attacker puts on the bus, and the reason that must be counted. What the log says comes last, so an
# envelope that is right in itself is refused there.
FORGERIES: dict[str, tuple[Callable[[FakeMesh], bytes], str]] = {
    "no JSON": (lambda _: b"{", "parse"),
    "more than a node takes, which is not even parsed": (lambda _: b"{" * 60_001, "too_long"),
    "an unsigned envelope": (lambda mesh: mesh.sign()[:-1].split(b',"signature"')[0] + b"}", "missing_signature"),
    "signed by an own key under the Domain's name": (lambda mesh: mesh.sign(key=OTHER), "signature"),
    "signed by an own key under its own name": (
        lambda mesh: mesh.sign(key=OTHER, key_id="evk_" + "0" * 32),
        "unknown_key",
    ),
    "another id": (altered("id", str(uuid7())), "signature"),
    "another type": (altered("type", "rotate_keys"), "subject_mismatch"),
    "another scope": (altered("scope", f"node:{uuid7()}"), "subject_mismatch"),
    "another key id": (altered("key_id", "evk_" + "1" * 32), "unknown_key"),
    "another time": (altered("issued_at", at(-1)), "signature"),
    "another payload": (altered("payload", ""), "signature"),
    "a truncated signature": (signature(lambda raw: raw[:-1]), "signature_form"),
    "a swapped signature": (signature(lambda raw: raw[32:] + raw[:32]), "signature"),
    "a signature of zeros": (signature(lambda _: bytes(64)), "signature"),
    "a stale envelope": (lambda mesh: mesh.sign(issued_at=at(-301)), "stale"),
    "an envelope from the future": (lambda mesh: mesh.sign(issued_at=at(301)), "future"),
    "a scope that nobody knows": (lambda mesh: mesh.sign(scope="fleet:all"), "scope"),
    "a scope in capitals": (lambda mesh: mesh.sign(scope=f"domain:{mesh.domain}".upper()), "scope"),
    "the scope of another Domain": (lambda mesh: mesh.sign(scope=f"domain:{uuid7()}"), "scope"),
    "an id that is no UUID": (lambda mesh: mesh.sign(identifier="1"), "nonce_form"),
    "an id in capitals": (lambda mesh: mesh.sign(identifier=str(uuid7()).upper()), "nonce_form"),
    "a duplicate member": (lambda mesh: mesh.sign()[:-1] + b',"payload":{}}', "duplicate_member"),
    "a member in another case": (lambda mesh: mesh.sign()[:-1] + b',"Payload":{}}', "folded_member"),
    "signed by the right key and never published": (lambda mesh: mesh.sign(), "nonce_unknown"),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_is_dropped_and_valid_events_pass_around_it(name: str) -> None:
    forge, reason = FORGERIES[name]
    bench = Bench()
    bench.mesh.put(bench.mesh.sign())
    data = forge(bench.mesh)
    try:
        scope = json.loads(data)["scope"].lower()
        kind = "action_request"
    except (ValueError, KeyError):
        scope, kind = f"domain:{bench.mesh.domain}", "action_request"
    own = f"domain:{bench.mesh.domain}"
    subject = f"events.{bench.mesh.domain}.{(own if reason == 'subject_mismatch' else scope).replace(':', '.')}.{kind}"
    bench.mesh.put(data, subject, logged=False)
    bench.mesh.put(bench.mesh.sign())
    # A subject that nobody may have is refused before its envelope is looked at.
    wanted = "subject" if scope.startswith("fleet") else reason
    assert await passage(bench) == ([1, 3], [(2, wanted)])


async def test_an_envelope_under_another_subject_is_dropped() -> None:
    bench = Bench()
    node = f"node:{uuid7()}"
    data = bench.mesh.sign(scope=node)
    bench.mesh.put(data)
    for subject in (
        f"events.{bench.mesh.domain}.node.{uuid7()}.action_request",
        f"events.{bench.mesh.domain}.domain.{bench.mesh.domain}.action_request",
        f"events.{bench.mesh.domain}.{node.replace(':', '.')}.rotate_keys",
        "events.x",
    ):
        bench.mesh.put(data, subject, logged=False)
    assert await passage(bench) == (
        [1],
        [(2, "subject_mismatch"), (3, "subject_mismatch"), (4, "subject_mismatch"), (5, "subject")],
    )


async def test_each_domains_key_is_good_for_its_own_subjects_only() -> None:
    bench, other = Bench(), FakeMesh()
    bench.mesh.trusts |= other.trusts
    scope = f"node:{uuid7()}"
    foreign = other.sign(scope=scope)
    bench.mesh.put(foreign, f"events.{bench.mesh.domain}.{scope.replace(':', '.')}.action_request", logged=False)
    assert await passage(bench) == ([], [(1, "unknown_key")])


async def test_a_replay_is_dropped_wherever_it_stands() -> None:
    bench = Bench()
    data = bench.mesh.sign()
    bench.mesh.put(data)
    bench.mesh.put(data, bench.mesh.messages[0].subject, logged=False)
    assert await passage(bench) == ([1], [(2, "nonce_replayed")])


async def test_the_previous_key_counts_strictly_before_its_end() -> None:
    bench = Bench()
    end = time.time_ns() + 60_000_000_000
    public = bytes(bench.mesh.key.verify_key)
    bench.mesh.trusts[bench.mesh.domain] = {bench.mesh.kid: Trust("", b"", bench.mesh.kid, public, end)}
    bench.mesh.put(bench.mesh.sign())
    assert [one.sequence for one in (await bench.gate.admit(bench.mesh.messages, 0, end - 1)).admitted] == [1]
    late = await bench.gate.admit(bench.mesh.messages, 0, end)
    assert [one.reason for one in late.refused] == ["unknown_key"]


async def test_what_is_not_noted_yet_is_waited_for() -> None:
    bench = Bench()
    bench.mesh.put(bench.mesh.sign())
    bench.mesh.pending = 3
    assert await passage(bench) == ([1], [])


async def test_a_second_copy_of_what_was_never_noted_is_waited_for_as_well() -> None:
    bench = Bench()
    data = bench.mesh.sign()
    first = bench.mesh.put(data)
    bench.mesh.pending = 10_000
    assert await passage(bench) == ([], [(first, "nonce_pending")])
    # Its owner asks again: another place, and the gate reads it before mesh has noted it.
    del bench.mesh.log[first]
    second = bench.mesh.put(data)
    bench.mesh.pending = 3
    found = await bench.gate.admit(bench.mesh.messages[1:], 0, time.time_ns())
    assert [one.sequence for one in found.admitted] == [second]


async def test_a_second_copy_that_is_noted_with_what_stands_behind_it_is_not_passed_over() -> None:
    bench = Bench()
    data = bench.mesh.sign()
    first = bench.mesh.put(data)
    bench.mesh.pending = 10_000
    await passage(bench)
    del bench.mesh.log[first]
    places = [bench.mesh.put(data), bench.mesh.put(bench.mesh.sign())]
    # Both are asked about for longer than is waited for the copy, and not as long as for the other.
    bench.mesh.pending = 2 * round(1.25 * AGAIN_S / PENDING_EVERY_S)
    found = await bench.gate.admit(bench.mesh.messages[1:], 0, time.time_ns())
    assert [one.sequence for one in found.admitted] == places


@pytest.mark.parametrize(
    ("after", "there", "until", "wanted"),
    [
        (0, [2], 0, [(1, 1)]),
        (5, [7], 5, [(6, 6)]),
        (5, [7], 6, [(6, 6)]),
        (5, [6, 9], 11, [(7, 8), (10, 11)]),
        (5, [6, 7], 0, []),
        (5, [], 8, [(6, 8)]),
        (5, [4], 5, []),
    ],
)
def test_holes_are_what_is_not_there(after: int, there: list[int], until: int, wanted: list[tuple[int, int]]) -> None:
    assert holes(after, there, until) == wanted


async def test_who_repeats_what_was_never_noted_does_not_hold_up_the_gate() -> None:
    bench = Bench()
    bench.mesh.put(bench.mesh.sign())
    bench.mesh.pending = 1_000_000
    started = time.monotonic()
    for _ in range(50):
        assert await passage(bench) == ([], [(1, "nonce_pending")])
    # Two seconds for the first, one for all the others, and what was regained meanwhile.
    assert 2 <= time.monotonic() - started < 5


def test_patience_comes_back_a_tenth_of_the_time() -> None:
    patience, one = Patience(), uuid7()
    assert patience.wait_s(one, 100) == FIRST_S
    patience.give_up([one])
    assert patience.wait_s(one, 100) == AGAIN_S
    patience.spend(100, 101)
    assert patience.wait_s(one, 101) == 0
    assert patience.wait_s(one, 106) == pytest.approx(0.5)
    assert patience.wait_s(one, 1000) == AGAIN_S


async def test_what_the_stream_lost_comes_from_the_log_in_its_place() -> None:
    bench = Bench()
    for lost in (False, True, True, False):
        bench.mesh.put(bench.mesh.sign(), lost=lost)
    found = await bench.gate.admit(bench.mesh.messages, 0, time.time_ns())
    assert [one.sequence for one in found.admitted] == [1, 2, 3, 4]


async def test_what_is_brought_out_of_order_is_let_through_in_order() -> None:
    bench = Bench()
    for _ in range(3):
        bench.mesh.put(bench.mesh.sign())
    found = await bench.gate.admit([bench.mesh.messages[at] for at in (2, 0, 1)], 0, time.time_ns())
    assert [one.sequence for one in found.admitted] == [1, 2, 3]


async def test_what_the_log_holds_is_verified_all_the_same() -> None:
    bench = Bench()
    bench.mesh.put(bench.mesh.sign(key=OTHER), lost=True)
    found = await bench.gate.admit((), 0, time.time_ns(), 1)
    assert (found.admitted, [one.reason for one in found.refused]) == ([], ["signature"])


@pytest.mark.parametrize("port", ["nonces", "keys"])
async def test_a_port_that_fails_is_never_skipped(port: str) -> None:
    bench = Bench()
    bench.mesh.put(bench.mesh.sign())
    bench.mesh.down.add(port)
    with pytest.raises(EventStreamUnavailable):
        await bench.gate.admit(bench.mesh.messages, 0, time.time_ns())


async def test_relation_comes_before_existence() -> None:
    bench, node = Bench(), uuid7()
    bench.fleet.refused = {node}
    with pytest.raises(Forbidden):
        await bench.gate.node(node)
    bench.fleet.refused = set()
    with pytest.raises(NotFound):
        await bench.gate.node(node)
    bench.fleet.places[node] = place = Place(bench.mesh.domain, uuid7())
    assert await bench.gate.node(node) == place


async def test_each_envelope_is_verified_once() -> None:
    from libs.telemetry import VERIFIED

    bench = Bench()
    for _ in range(10):
        bench.mesh.put(bench.mesh.sign())
    before = VERIFIED._value.get()
    await passage(bench)
    assert VERIFIED._value.get() - before == 10


def test_a_message_says_nothing_by_itself() -> None:
    assert Message(1, "s", b"").sequence == 1
