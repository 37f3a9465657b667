"""F-1: an attacker who holds the broker writes envelopes of his own; none gets through, each is counted and audited."""

import base64
import datetime
import uuid
from collections.abc import Awaitable, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.e2e.attacker import eventually, sign_in_vault, signed, wire
from tests.e2e.listener import publish
from tests.e2e.outside import JSON
from tests.e2e.threats.mesh.conftest import Arena

pytestmark = pytest.mark.e2e

OWN = Ed25519PrivateKey.generate()
# The order of the curve's group (RFC 8032, 5.1): added to S it gives a second spelling of the same signature.
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493

# What the attacker writes, from a genuine envelope: its subject, its bytes, and the reason that must be counted.
Attack = Callable[[Arena, str, JSON], Awaitable[tuple[str, bytes]]]
ATTACKS: dict[str, tuple[Attack, str]] = {}


def attack(name: str, reason: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS[name] = (function, reason)
        return function

    return add


def fresh(envelope: JSON, **changes: object) -> JSON:
    """Return an envelope with another id and the time of now."""
    return {**envelope, "id": str(uuid7()), "issued_at": later(0), **changes}


def uuid7() -> uuid.UUID:
    milliseconds = int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | uuid.uuid4().int & ((1 << 62) - 1))


def changed_signature(envelope: JSON, change: Callable[[bytes], bytes]) -> bytes:
    raw = change(base64.b64decode(envelope["signature"]))
    return wire({**envelope, "signature": base64.b64encode(raw).decode()})


def later(seconds: int) -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    # As it is signed: a zero at the end of the fraction would make every tenth forgery one of the signature.
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".") + "Z"


@attack("signed with an own key under the Domain's key id", "signature")
async def own_key(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, signed(fresh(envelope), OWN)


@attack("signed with an own key under an own key id", "unknown_key")
async def own_key_id(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, signed(fresh(envelope, key_id="evk_" + "0" * 32), OWN)


@attack("signed by another Domain's key", "unknown_key")
async def foreign_key(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    foreign = fresh(envelope, key_id=arena.other.node_a.signing_key_id)
    return subject, await sign_in_vault(arena.world, arena.other.domain_id, foreign)


@attack("another Domain's event under this Domain's subject", "scope")
async def foreign_event(arena: Arena, subject: str, _: JSON) -> tuple[str, bytes]:
    other = arena.other
    identifier = await publish(arena.operator, other.domain_id, f"domain:{other.domain_id}")
    return subject, (await arena.broker.find(identifier))[2]


@attack("another Domain's event for its node under this Domain's subject", "subject_mismatch")
async def foreign_node_event(arena: Arena, _: str, __: JSON) -> tuple[str, bytes]:
    other = arena.other
    identifier = await publish(arena.operator, other.domain_id, f"node:{other.node_a.node_id}")
    mine = f"events.{arena.domain}.node.{arena.story.node_a.node_id}.action_request"
    return mine, (await arena.broker.find(identifier))[2]


@attack("an event for node B under node A's subject", "subject_mismatch")
async def cross_node(arena: Arena, _: str, __: JSON) -> tuple[str, bytes]:
    story = arena.story
    identifier = await arena.publish(f"node:{story.node_b.node_id}")
    data = (await arena.broker.find(identifier))[2]
    return f"events.{arena.domain}.node.{story.node_a.node_id}.action_request", data


ALTERED: dict[str, tuple[Callable[[Arena], object], str]] = {
    "id": (lambda _: str(uuid7()), "signature"),
    "type": (lambda _: "rotate_keys", "subject_mismatch"),
    "scope": (lambda arena: f"node:{arena.story.node_b.node_id}", "subject_mismatch"),
    "key_id": (lambda _: "evk_" + "f" * 32, "unknown_key"),
    "issued_at": (lambda _: later(-2), "signature"),
    "payload": (lambda _: {"do": "wipe"}, "signature"),
}
for member, (value, why) in ALTERED.items():

    @attack(f"the signed member {member} altered", why)
    async def altered(
        arena: Arena,
        subject: str,
        envelope: JSON,
        member: str = member,
        value: Callable[[Arena], object] = value,
    ) -> tuple[str, bytes]:
        return subject, wire({**envelope, member: value(arena)})


@attack("type and subject altered together", "signature")
async def altered_together(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject.replace("action_request", "rotate_keys"), wire({**envelope, "type": "rotate_keys"})


@attack("a truncated signature", "signature_form")
async def truncated(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, changed_signature(envelope, lambda raw: raw[:-1])


@attack("no signature", "missing_signature")
async def unsigned(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, wire({name: value for name, value in envelope.items() if name != "signature"})


@attack("the signature of another envelope", "signature")
async def swapped(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    another = (await arena.genuine())[2]
    return subject, wire({**envelope, "signature": another["signature"]})


@attack("a malleable signature: S plus the group's order", "signature")
async def malleable(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    def add(raw: bytes) -> bytes:
        return raw[:32] + (int.from_bytes(raw[32:], "little") + GROUP_ORDER).to_bytes(32, "little")

    return subject, changed_signature(envelope, add)


@attack("a signature of small order", "signature")
async def small_order(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, changed_signature(envelope, lambda _: bytes([1]) + bytes(63))


@attack("base64 that is not canonical", "signature_form")
async def loose_base64(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    text = envelope["signature"]
    # The last character before the padding has four bits that decode to nothing.
    loose = text[:85] + chr(ord(text[85]) + 1) + "=="
    assert base64.b64decode(loose) == base64.b64decode(text)
    return subject, wire({**envelope, "signature": loose})


@attack("a duplicate member", "duplicate_member")
async def duplicate(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, wire(envelope)[:-1] + b',"payload":{"do":"wipe"}}'


@attack("a member in another case", "folded_member")
async def folded(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, wire(envelope)[:-1] + b',"PAYLOAD":{"do":"wipe"}}'


@attack("replayed under a new sequence", "nonce_replayed")
async def replayed(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, (await arena.broker.find(envelope["id"]))[2]


@attack("replayed with an unknown member that is not signed", "nonce_altered")
async def padded(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, wire(envelope)[:-1] + b',"note":"harmless"}'


@attack("signed by the right key and never published by mesh", "nonce_unknown")
async def never_published(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, await sign_in_vault(arena.world, arena.domain, fresh(envelope))


@attack("signed by the right key, stale", "stale")
async def stale(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, await sign_in_vault(arena.world, arena.domain, fresh(envelope, issued_at=later(-301)))


@attack("signed by the right key, from the future", "future")
async def future(arena: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, await sign_in_vault(arena.world, arena.domain, fresh(envelope, issued_at=later(330)))


@attack("signed by the right key for a scope that nobody knows", "subject")
async def unknown_scope(arena: Arena, _: str, envelope: JSON) -> tuple[str, bytes]:
    data = await sign_in_vault(arena.world, arena.domain, fresh(envelope, scope="fleet:all"))
    return f"events.{arena.domain}.fleet.all.action_request", data


@attack("something that is no JSON", "parse")
async def garbage(_: Arena, subject: str, __: JSON) -> tuple[str, bytes]:
    return subject, b"\x00\xff{"


@attack("a frame of its own inside the bytes", "parse")
async def injected(_: Arena, subject: str, envelope: JSON) -> tuple[str, bytes]:
    return subject, wire(envelope) + b"\n\nid: 999999\nevent: action_request\ndata: {}\n\n"


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_forgery_reaches_nobody_is_counted_and_audited(arena: Arena, name: str) -> None:
    forge, reason = ATTACKS[name]
    async with arena.listen() as node, arena.listen(arena.story.node_b) as other:
        genuine, subject, envelope = await arena.genuine()
        before = await arena.refused()
        target, data = await forge(arena, subject, envelope)
        place = await arena.broker.put(target, data)
        # Valid events keep flowing, and what comes after the forgery was read after it.
        after = await arena.publish()
        for listener in (node, other):
            await listener.until(genuine)
            await listener.until(after)
    for listener in (node, other):
        assert place not in [heard.sequence for heard in listener.heard]
        assert {heard.verdict for heard in listener.heard} == {"ok"}
        assert len(listener.ids) == len(listener.heard)
    assert await arena.refused() - before == {reason: 1}
    await arena.recorded(reason, "/v1/platform" if reason == "subject" else "")


async def test_a_flood_of_forgeries_does_not_grow_the_chain(arena: Arena) -> None:
    async with arena.listen() as node:
        _, subject, envelope = await arena.genuine()
        before = (await arena.operator.call("GET", f"/v1/domains/{arena.domain}/audit/entries?limit=1")).json
        forged, start = signed(fresh(envelope), OWN), await arena.broker.last()
        for _ in range(5000):
            await arena.broker.nats.publish(subject, forged)

        async def absorbed() -> bool:
            return await arena.broker.last() >= start + 5000

        # Each is synchronised to disk, so the broker is busy for a while; it is not what is attacked here.
        await eventually(absorbed, 60)
        after = await arena.publish()
        await node.until(after, 20)
    assert {heard.verdict for heard in node.heard} == {"ok"}
    page = await arena.operator.call("GET", f"/v1/domains/{arena.domain}/audit/entries?limit=1")
    # The two publishes, and at most a row for the reason in each of the minutes that this took.
    assert page.json["items"][0]["seq"] - before["items"][0]["seq"] <= 1 + 2 + 2
