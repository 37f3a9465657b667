"""Node bearer, secret body and chain: what was written is read back, and every change of it is refused."""

import base64
import hashlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.chain import GENESIS, Divergence, Link, entry_hash, verify
from libs.custody import Secret
from libs.errors import NodeUnauthorized
from libs.nsk import format_bearer, parse, parse_header
from libs.seal import LARGEST_CIPHERTEXT, SealError, seal, unseal

pytestmark = pytest.mark.unit

KEYS = st.binary(min_size=32, max_size=32)
TAGS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="_"), min_size=1, max_size=12)


def _framed(raw: bytes) -> str:
    return "nsk_dev_" + base64.urlsafe_b64encode(raw).decode()


@given(TAGS, st.uuids(), KEYS)
def test_a_node_bearer_comes_back(environment: str, node_id: UUID, key: bytes) -> None:
    bearer = parse_header("Bearer " + format_bearer(environment, node_id, Secret(key)))
    assert (bearer.environment, bearer.node_id) == (environment, node_id)
    assert bearer.key.matches(key)
    assert key.hex() not in repr(bearer)


@given(st.text(max_size=90) | st.binary(max_size=60).map(_framed))
def test_no_text_raises_anything_but_the_refusal(text: str) -> None:
    for value in (text, "Bearer " + text, "bearer nsk_" + text):
        try:
            bearer = parse_header(value)
        except NodeUnauthorized:
            continue
        assert value.split(" ", 1)[1] == format_bearer(bearer.environment, bearer.node_id, bearer.key)


def test_any_flipped_bit_of_a_node_bearer_is_another_or_none() -> None:
    """It has no checksum: what still parses is another environment, node or key."""
    text = format_bearer("dev", UUID(int=7), Secret(bytes(range(32))))
    for bit in range(8 * len(text)):
        raw = bytearray(text.encode())
        raw[bit // 8] ^= 1 << bit % 8
        try:
            other = parse(raw.decode("latin-1"))
        except NodeUnauthorized:
            continue
        assert (other.environment, other.node_id, bytes(other.key.reveal())) != ("dev", UUID(int=7), bytes(range(32)))


@pytest.mark.parametrize(
    ("environment", "length"), [("", 32), ("a_b", 32), ("a b", 32), ("é", 32), ("dev", 31), ("dev", 33)]
)
def test_what_would_not_parse_is_never_written(environment: str, length: int) -> None:
    with pytest.raises(ValueError, match="parts of a node bearer"):
        format_bearer(environment, UUID(int=7), Secret(bytes(length)))


@given(KEYS, st.binary(max_size=300))
def test_a_sealed_secret_opens_with_its_key_alone(key: bytes, plain: bytes) -> None:
    body = seal(Secret(key), plain)
    assert unseal(Secret(key), body) == plain
    assert len(body) == len(plain) + 28
    with pytest.raises(SealError, match="tag"):
        unseal(Secret(hashlib.sha256(key).digest()), body)


def test_any_flipped_bit_of_a_body_or_key_is_refused() -> None:
    key = bytes(range(32))
    body = seal(Secret(key), b"hunter2")
    for bit in range(8 * len(body)):
        other = bytearray(body)
        other[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError, match="tag"):
            unseal(Secret(key), bytes(other))
    for bit in range(8 * len(key)):
        wrong = bytearray(key)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError, match="tag"):
            unseal(Secret(wrong), body)


def test_nonces_differ_and_lengths_are_held() -> None:
    key = Secret(bytes(32))
    assert len({seal(key, b"")[:12] for _ in range(1000)}) == 1000
    largest = bytes(LARGEST_CIPHERTEXT)
    assert unseal(key, seal(key, largest)) == largest
    with pytest.raises(SealError, match="too_long"):
        seal(key, largest + b"x")
    with pytest.raises(SealError, match="too_long"):
        unseal(key, bytes(LARGEST_CIPHERTEXT + 29))
    for length in range(28):
        with pytest.raises(SealError, match="too_short"):
            unseal(key, bytes(length))
    for wrong in (b"", bytes(16), bytes(31), bytes(33)):
        with pytest.raises(SealError, match="key_length"):
            seal(Secret(wrong), b"")
        with pytest.raises(SealError, match="key_length"):
            unseal(Secret(wrong), bytes(40))


CONTENTS = st.lists(st.binary(max_size=20), min_size=1, max_size=8)


def rows(contents: list[bytes], before: bytes = GENESIS) -> list[Link]:
    made = []
    for seq, content in enumerate(contents, 1):
        digest = hashlib.sha256(content).digest()
        after = entry_hash(before, digest)
        made.append(Link(seq, before.hex(), after.hex(), digest))
        before = after
    return made


@given(CONTENTS, st.data())
def test_a_chain_and_each_segment_of_it_verify(contents: list[bytes], data: st.DataObject) -> None:
    links = rows(contents)
    first = data.draw(st.integers(1, len(links)))
    last = data.draw(st.integers(first, len(links)))
    assert verify(links[first - 1 : last], first, last, bytes.fromhex(links[first - 1].prev_hash)) is None
    assert verify([], 1, 0) is None


@given(CONTENTS, st.data())
def test_a_tampered_row_is_found_where_it_is(contents: list[bytes], data: st.DataObject) -> None:
    links = rows(contents)
    at = data.draw(st.integers(0, len(links) - 1))
    row, bit = links[at], data.draw(st.integers(0, 255))
    flipped = (int.from_bytes(row.content_hash, "big") ^ 1 << bit).to_bytes(32, "big")
    links[at] = Link(row.seq, row.prev_hash, row.entry_hash, flipped)
    expected = entry_hash(bytes.fromhex(row.prev_hash), flipped).hex()
    assert verify(links, 1, len(links)) == Divergence(row.seq, expected, row.entry_hash, "hash")
    rewritten = Link(row.seq, row.prev_hash, expected, flipped)
    links[at] = rewritten
    found = verify(links, 1, len(links))
    if at == len(links) - 1:
        assert found is None  # what only an anchor kept elsewhere can show
    else:
        assert found == Divergence(row.seq + 1, expected, row.entry_hash, "link")


@given(CONTENTS, st.data())
def test_a_missing_a_doubled_and_an_exchanged_row_are_found(contents: list[bytes], data: st.DataObject) -> None:
    links = rows([*contents, b"last"])
    at = data.draw(st.integers(0, len(links) - 2))
    assert verify(links[:at] + links[at + 1 :], 1, len(links)) is not None
    assert verify([*links[: at + 1], *links[at:]], 1, len(links)) is not None
    exchanged = [*links[:at], links[at + 1], links[at], *links[at + 2 :]]
    assert verify(exchanged, 1, len(links)) is not None
    assert verify(links[:-1], 1, len(links)) == Divergence(len(links), links[-2].entry_hash, "", "truncated")
