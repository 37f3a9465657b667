"""The envelope: what is signed is believed, every change is refused, and nothing raises but the refusal."""

import base64
import datetime
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from libs.canon import DEEPEST
from libs.envelope import (
    LARGEST,
    WINDOW_NS,
    Envelope,
    EnvelopeRefused,
    Trust,
    assemble,
    build,
    instant,
    parse,
    verify,
)

pytestmark = pytest.mark.unit

OLD, NEW = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
MEGA = 1_000_000
ISSUED_AT = "2026-04-15T10:30:00.25Z"
NOW = instant(ISSUED_AT)[0]
TRUST = Trust("evk_new", bytes(NEW.verify_key), "evk_old", bytes(OLD.verify_key), NOW + 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\b\f"), min_size=1, max_size=20)
PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def signed(payload: bytes = b'{"a":[1.0,"<"]}', key_id: str = "evk_new", key: SigningKey = NEW) -> bytes:
    text = build("0190a8b8", "policy_updated", "domain:d", key_id, ISSUED_AT, payload)
    return assemble(text, key.sign(text).signature)


GOOD = signed()
MUTATED = {
    "two values": GOOD + b"{}",
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "duplicate member": GOOD[:-1] + b',"type":"policy_updated"}',
    "duplicate member by escape": GOOD[:-1] + b',"t\\u0079pe":"policy_updated"}',
    "duplicate unknown member": GOOD[:-1] + b',"x":1,"x":1}',
    "folded member": GOOD[:-1] + b',"SCOPE":"domain:d"}',
    "folded member, long s": GOOD[:-1] + ',"\u017fcope":"domain:d"}'.encode(),
    "folded member, Kelvin sign": GOOD[:-1] + ',"\u212aey_id":"evk_new"}'.encode(),
    "folded member by escape": GOOD[:-1] + b',"\\u017fcope":"domain:d"}',
    "newline inside base64": GOOD.replace(b'"signature":"', b'"signature":"\\n'),
    "url-safe base64": GOOD.replace(b'"signature":"', b'"signature":"_'),
    "unpadded base64": GOOD.replace(b'=="', b'"'),
    "escape inside the time": GOOD.replace(b"2026-04", b"2026\\u002d04"),
    "time as a number": GOOD.replace(b'"' + ISSUED_AT.encode() + b'"', b"1776249000"),
    "signature as a list": GOOD.replace(b'"signature":', b'"signature":[],"s":'),
    "no payload": GOOD.replace(b'"payload":', b'"unknown":'),
    "number text of equal value": GOOD.replace(b"1.0", b"1.00"),
    "unknown key id": GOOD.replace(b"evk_new", b"evk_neu"),
}


@pytest.mark.parametrize("wire", MUTATED.values(), ids=MUTATED.keys())
def test_a_mutation_is_refused(wire: bytes) -> None:
    assert wire != GOOD
    with pytest.raises(EnvelopeRefused):
        verify(wire, TRUST, NOW)


@pytest.mark.parametrize("member", ["nonce", "ißued_at", "s\u0131gnature", "payloads", ""])
def test_an_unknown_member_is_ignored(member: str) -> None:
    wire = GOOD[:-1] + b"," + json.dumps({member: 1}).encode()[1:]
    assert verify(wire, TRUST, NOW) == parse(GOOD)


@given(TEXTS, TEXTS, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\b\f")), PAYLOADS)
def test_what_is_signed_comes_back(identifier: str, kind: str, scope: str, payload: object) -> None:
    text = build(identifier, kind, scope, "evk_new", ISSUED_AT, json.dumps(payload, indent=1).encode())
    envelope = verify(assemble(text, NEW.sign(text).signature), TRUST, NOW)
    assert (envelope.id, envelope.type, envelope.scope, envelope.key_id) == (identifier, kind, scope, "evk_new")
    assert json.loads(envelope.payload) == payload
    assert envelope.canonical() == text


def test_any_flipped_bit_is_refused() -> None:
    for bit in range(8 * len(GOOD)):
        wire = bytearray(GOOD)
        wire[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeRefused):
            verify(bytes(wire), TRUST, NOW)


def test_any_flipped_bit_of_the_signature_or_key_is_refused() -> None:
    text = parse(GOOD).canonical()
    signature = NEW.sign(text).signature
    for bit in range(8 * len(signature)):
        other = bytearray(signature)
        other[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeRefused, match=r"^signature$"):
            verify(assemble(text, bytes(other)), TRUST, NOW)
    for bit in range(8 * len(TRUST.key)):
        key = bytearray(TRUST.key)
        key[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeRefused, match=r"^signature$"):
            verify(GOOD, Trust("evk_new", bytes(key)), NOW)


@given(st.data())
def test_no_splice_raises_anything_but_the_refusal(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 12)))
    middle = data.draw(st.binary(max_size=12) | st.sampled_from([b"null", b'"', b"{}", b"[" * 50, b"\\ud800", b"\xff"]))
    wire = GOOD[:start] + middle + GOOD[end:]
    try:
        envelope = verify(wire, TRUST, NOW)
    except EnvelopeRefused:
        return
    assert envelope == parse(GOOD)


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_but_the_refusal(wire: bytes) -> None:
    with pytest.raises(EnvelopeRefused):
        verify(wire, TRUST, NOW)


@pytest.mark.parametrize(
    "wire",
    [b"[" * MEGA, b'{"a":' * 200_000, b'{"payload":' + b"9" * MEGA + b"}",
     b'{"id":"' + b"\xff" * MEGA + b'"}',
     b'{"payload":[' + b"[]," * 333_333 + b"0]}", b'{"issued_at":"2026-04-15T10:30:00.' + b"1" * MEGA + b'Z"}',
     b'{"signature":"' + b"A" * MEGA + b'"}', b"{" + b'"a\\u0000":0,' * 80_000 + b"}",
     b'{"' + b"K" * MEGA + b'":1}'],
    ids=["depth of lists", "depth of objects", "number", "not UTF-8", "wide", "fraction", "signature", "names", "name"],
)  # fmt: skip
def test_a_bomb_is_refused_within_a_second(wire: bytes) -> None:
    started = time.process_time()
    with pytest.raises(EnvelopeRefused):
        verify(wire, TRUST, NOW)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("age_ns", "reason"), [(WINDOW_NS, ""), (WINDOW_NS + 1, "stale"), (-WINDOW_NS, ""), (-WINDOW_NS - 1, "future")]
)
def test_the_window_holds_its_limit(age_ns: int, reason: str) -> None:
    assert _reason(GOOD, TRUST, NOW + age_ns) == reason


@pytest.mark.parametrize(("left_ns", "reason"), [(1, ""), (0, "unknown_key"), (-1, "unknown_key")])
def test_the_previous_key_counts_strictly_before_its_end(left_ns: int, reason: str) -> None:
    trust = Trust("evk_new", bytes(NEW.verify_key), "evk_old", bytes(OLD.verify_key), NOW + left_ns)
    assert _reason(signed(key_id="evk_old", key=OLD), trust, NOW) == reason


def test_another_key_under_a_trusted_id_is_refused() -> None:
    assert _reason(signed(key=OLD), TRUST, NOW) == "signature"
    assert _reason(signed(key_id="evk_old", key=NEW), TRUST, NOW) == "signature"


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xee" + b"\xff" * 30 + b"\x7f", b"", bytes(31)])
def test_weak_material_is_refused(key: bytes) -> None:
    forged = assemble(parse(GOOD).canonical(), b"\x01" + bytes(63))
    assert _reason(forged, Trust("evk_new", key), NOW) in {"signature", "unknown_key"}


def test_checks_come_in_their_order() -> None:
    """Form, then age, then key, then signature."""
    broken = GOOD.replace(b"1.0", b"1.1").replace(b"evk_new", b"evk_neu")
    assert _reason(broken + b"x", TRUST, NOW + WINDOW_NS + 1) == "parse"
    assert _reason(broken, TRUST, NOW + WINDOW_NS + 1) == "stale"
    assert _reason(broken, TRUST, NOW) == "unknown_key"
    assert _reason(GOOD.replace(b"1.0", b"1.1"), TRUST, NOW) == "signature"


def _reason(wire: bytes, trust: Trust, now_ns: int) -> str:
    try:
        assert isinstance(verify(wire, trust, now_ns), Envelope)
    except EnvelopeRefused as refused:
        return refused.reason
    return ""


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("identifier", "", "missing_member"),
        ("kind", "", "missing_member"),
        ("key_id", "", "missing_member"),
        ("scope", "a\bb", "unstable_member"),
        ("key_id", "a\fb", "unstable_member"),
        ("kind", "\ud800", "member_text"),
        ("issued_at", "yesterday", "issued_at"),
        ("issued_at", "2026-04-15T10:30:00+00:00", "issued_at"),
        ("issued_at", "2026-04-15T12:30:00+02:00", "issued_at"),
        ("issued_at", "2026-04-15T10:30:00.10Z", "issued_at"),
        ("issued_at", "0001-01-01T00:00:00Z", "issued_at"),
        ("payload", b"{", "payload"),
        ("payload", b"", "payload"),
        ("payload", b'"\xff"', "payload"),
        ("payload", b"[" * DEEPEST + b"]" * DEEPEST, "payload"),
    ],
)
def test_what_a_receiver_may_refuse_is_never_signed(field: str, value: str | bytes, reason: str) -> None:
    fields: dict[str, object] = {
        "identifier": "0190a8b8", "kind": "policy_updated", "scope": "domain:d", "key_id": "evk_new",
        "issued_at": ISSUED_AT, "payload": b"null",
    }  # fmt: skip
    with pytest.raises(EnvelopeRefused) as refused:
        build(**{**fields, field: value})  # type: ignore[arg-type]  # one of them is of the other type
    assert refused.value.reason == reason


def test_a_payload_as_deep_as_can_be_verifies() -> None:
    assert _reason(signed(b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1)), TRUST, NOW) == ""


def test_the_longest_line_is_60000_bytes() -> None:
    room = LARGEST - len(signed(b'""'))
    assert len(signed(b'"' + b"a" * room + b'"')) == LARGEST
    with pytest.raises(EnvelopeRefused, match="too_long"):
        signed(b'"' + b"a" * (room + 1) + b'"')
    with pytest.raises(EnvelopeRefused, match="signature_form"):
        assemble(parse(GOOD).canonical(), base64.b64encode(bytes(64)))


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MINUTE, MICROSECOND = datetime.timedelta(minutes=1), datetime.timedelta(microseconds=1)
OFFSETS = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: datetime.timezone(minutes * MINUTE))
TIMES = st.integers(-(10**15), 10**15).map(lambda micros: EPOCH + micros * MICROSECOND)


@given(TIMES, OFFSETS)
def test_times_agree_with_datetime(utc: datetime.datetime, offset: datetime.timezone) -> None:
    at = utc.astimezone(offset)
    nanoseconds, text = instant(at.isoformat())
    assert nanoseconds == (utc - EPOCH) // MICROSECOND * 1000
    assert datetime.datetime.fromisoformat(text) == at
    assert instant(text) == (nanoseconds, text)
    assert not text.endswith("+00:00")


@pytest.mark.parametrize(
    "text",
    ["", "2026-04-15", "2026-04-15T10:30:00", "2026-04-15t10:30:00Z", "2026-04-15T10:30:00z", "2026-04-15T24:00:00Z",
     "2026-04-15T23:59:60Z", "2026-02-29T00:00:00Z", "2026-04-15T10:30:00.Z", "2026-04-15T10:30:00,5Z",
     "2026-04-15T1:30:00Z",
     "2026-04-15T10:30:00+24:00", "2026-04-15T10:30:00+01:60", "2026-04-15T10:30:00+0100", "10000-01-01T00:00:00Z",
     "٢٠٢٦-04-15T10:30:00Z", "2026-04-15T10:30:00Z\n", " 2026-04-15T10:30:00Z", "2026-13-01T00:00:00Z"],
)  # fmt: skip
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        instant(text)


def test_an_offset_beyond_the_calendar_is_only_far_away() -> None:
    assert instant("0001-01-01T00:00:00+01:00")[0] < instant("0001-01-01T00:00:00Z")[0]
    assert instant("9999-12-31T23:59:59-23:59")[0] > instant("9999-12-31T23:59:59Z")[0]
