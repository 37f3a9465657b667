"""A reader finds whatever is changed in an export or an archive, and where."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.archive import Segment, pack
from libs.chain import GENESIS, Divergence, entry_hash
from libs.export import Exported, Head, NotAnExport, end_line, entry_line, head_line, read_head
from libs.tlog.checkpoint import Checkpoint
from libs.tlog.note import VerifierKey, seal_note
from libs.tlog.tree import Run
from libs.witness import Known, Witness

pytestmark = pytest.mark.unit

CHAIN, ENTRIES = "platform", 9
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
KEY = VerifierKey(f"log/{CHAIN}", PRIVATE.public_key().public_bytes_raw())


def chain_of(contents: list[bytes]) -> list[Exported]:
    made, before = [], GENESIS
    for seq, content in enumerate(contents, 1):
        own = entry_hash(before, hashlib.sha256(content).digest())
        made.append(Exported(seq, before, own, content))
        before = own
    return made


def content(seq: int, what: str = "x", chain: str = CHAIN) -> bytes:
    return json.dumps({"chain": chain, "seq": seq, "what": what}).encode()


def checkpoint(entries: list[Exported], size: int) -> Checkpoint:
    run = Run()
    for entry in entries[:size]:
        run.push(entry.entry_hash)
    return Checkpoint(KEY.name, size, run.root())


def note(signed: Checkpoint, private: Ed25519PrivateKey = PRIVATE) -> str:
    key = VerifierKey(KEY.name, private.public_key().public_bytes_raw())
    return seal_note(signed.text(), key, private.sign(signed.text().encode()))


CONTENTS = [content(seq) for seq in range(1, ENTRIES + 1)]
CHAINED = chain_of(CONTENTS)
LINES = [*map(entry_line, CHAINED), end_line(ENTRIES)]


def judged(lines: list[bytes], witness: Witness | None = None, last: int = ENTRIES) -> Divergence | None:
    if witness is None:
        witness = Witness(CHAIN)
        assert witness.expect(checkpoint(CHAINED, ENTRIES)) is None
    return witness.lines(iter(lines), last, lambda _: None)


def kind(found: Divergence | None) -> tuple[int, str] | None:
    return (found.seq, found.kind) if found else None


def test_what_is_untouched_raises_no_alarm_and_is_proven() -> None:
    for size in range(1, ENTRIES + 1):
        witness = Witness(CHAIN)
        assert witness.expect(signed := checkpoint(CHAINED, size)) is None
        assert judged(LINES, witness) is None
        assert (witness.proven.size, witness.proven.root) == (size, signed.root)


@settings(max_examples=300)
@given(st.integers(1, ENTRIES), st.integers(0, 10_000), st.integers(1, 255))
def test_any_change_of_any_byte_of_an_entry_is_found_at_it(seq: int, place: int, change: int) -> None:
    line = bytearray(LINES[seq - 1])
    line[place % len(line)] ^= change
    # Lines come as they are split.
    changed = b"".join([*LINES[: seq - 1], bytes(line), *LINES[seq:]])
    found = judged(changed.splitlines(keepends=True))
    assert found is not None
    assert found.seq == seq


@given(st.integers(0, ENTRIES), st.integers(0, ENTRIES))
@example(0, ENTRIES)
def test_a_chain_is_followed_in_any_steps(known: int, size: int) -> None:
    first = Witness(CHAIN)
    for entry in CHAINED[:known]:
        assert first.push(entry) is None
    if known:
        assert first.expect(checkpoint(CHAINED, known)) is None
    later = Witness(CHAIN, first.proven)
    found = later.expect(checkpoint(CHAINED, size))
    if size < known:
        assert kind(found) == (size + 1, "older")
    else:
        assert found is None
        assert judged([*map(entry_line, CHAINED[known:]), end_line(ENTRIES - known)], later) is None


FORKED = chain_of([*CONTENTS[:4], content(5, "framed"), *CONTENTS[5:]])
WRONG: dict[str, tuple[list[bytes], tuple[int, str]]] = {
    "one removed": ([*LINES[:3], *LINES[4:]], (4, "gap")),
    "the last removed": ([*LINES[:8], end_line(8)], (9, "gap")),
    "two swapped": ([*LINES[:3], LINES[4], LINES[3], *LINES[5:]], (4, "gap")),
    "one twice": ([*LINES[:3], *LINES[2:]], (4, "gap")),
    "recomputed": ([*map(entry_line, FORKED), end_line(ENTRIES)], (ENTRIES, "root")),
    "another chain's": (
        [entry_line(one) for one in chain_of([content(seq, chain="other") for seq in range(1, ENTRIES + 1)])],
        (1, "content"),
    ),
    "no entry": ([*LINES[:3], b"{}\n", *LINES[4:]], (4, "form")),
    "something after its end": ([*LINES, LINES[0]], (ENTRIES + 1, "form")),
    "another end": ([*LINES[:-1], end_line(ENTRIES - 1)], (ENTRIES + 1, "form")),
    "no end": (LINES[:-1], (ENTRIES + 1, "incomplete")),
    "broken off between lines": (LINES[:5], (6, "incomplete")),
    "broken off within a line": ([*LINES[:5], LINES[5][:-9]], (6, "incomplete")),
    "nothing": ([], (1, "incomplete")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_where_it_is(name: str) -> None:
    lines, expected = WRONG[name]
    assert kind(judged(lines)) == expected


def test_a_chain_that_ends_before_what_was_signed_is_short() -> None:
    witness = Witness(CHAIN)
    witness.expect(checkpoint(CHAINED, ENTRIES))
    assert kind(judged([*LINES[:6], end_line(6)], witness, 6)) == (7, "truncated")


def test_a_history_that_does_not_go_on_from_what_is_known_is_found() -> None:
    known = Witness(CHAIN)
    for entry in CHAINED[:6]:
        known.push(entry)
    known.expect(checkpoint(CHAINED, 6))
    rest = [*map(entry_line, FORKED[6:]), end_line(3)]
    assert kind(judged(rest, Witness(CHAIN, known.proven))) == (7, "link")
    # Even where the hash at the end is forged to fit, the roots do not.
    forged = Witness(CHAIN, replace(known.proven, entry_hash=FORKED[5].entry_hash))
    assert forged.expect(checkpoint(FORKED, ENTRIES)) is None
    assert kind(judged(rest, forged)) == (ENTRIES, "root")
    same = Witness(CHAIN, known.proven)
    assert kind(same.expect(checkpoint(FORKED, 6))) == (6, "root")
    whole = Witness(CHAIN)
    assert whole.expect(checkpoint(CHAINED, 6)) is None
    assert kind(judged([*map(entry_line, FORKED), end_line(ENTRIES)], whole)) == (6, "root")
    assert kind(whole.expect(checkpoint(FORKED, 6))) == (6, "fork")


# The head -------------------------------------------------------------------------------------------------------------


def test_a_head_is_read_in_one_form_only() -> None:
    signed = note(checkpoint(CHAINED, ENTRIES))
    for head in (Head(CHAIN, 1, ENTRIES, signed, str(KEY)), Head(CHAIN, 4, 3)):
        assert read_head(head_line(head)) == head


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[:-1],
        lambda line: line.replace(b":1,", b":2,", 1),
        lambda line: line.replace(b'"from":1', b'"from":"1"'),
        lambda line: line.replace(b'"from":1', b'"from": 1'),
        lambda line: line.replace(b"null", b"7"),
        lambda line: line.replace(b"null", b'{"note":"n"}'),
        lambda line: line.replace(b'"platform"', b"[]"),
        lambda _: b"[" * 100_000,
        lambda _: b"\xff",
    ],
)
def test_what_is_no_head_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(NotAnExport):
        read_head(change(head_line(Head(CHAIN, 1, 9))))


# The archive ----------------------------------------------------------------------------------------------------------


def segments(*lasts: int, contents: list[bytes] = CONTENTS) -> list[Segment]:
    made, first, entries = [], 1, chain_of(contents)
    for last in lasts:
        signed = note(checkpoint(entries, last))
        made.append(Segment(CHAIN, first, entries[first - 1].prev_hash, tuple(contents[first - 1 : last]), signed))
        first = last + 1
    return made


def judged_archive(objects: list[bytes]) -> tuple[int, str] | None:
    return kind(Witness(CHAIN).segments(objects, [KEY], lambda _: None))


def test_an_archive_proves_itself_from_its_notes() -> None:
    witness = Witness(CHAIN)
    assert witness.segments(map(pack, segments(4, 5, 9)), [KEY], lambda _: None) is None
    assert witness.proven == Known(9, CHAINED[-1].entry_hash, witness.proven.parts)
    assert witness.proven.root == checkpoint(CHAINED, 9).root


FIRST, SECOND, THIRD = segments(4, 5, 9)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
ALTERED: dict[str, tuple[list[Segment], tuple[int, str]]] = {
    "an entry altered": ([FIRST, replace(SECOND, entries=(content(5, "framed"),)), THIRD], (5, "root")),
    "an entry of another place": ([replace(FIRST, entries=tuple(CONTENTS[1:5])), SECOND, THIRD], (1, "content")),
    "one removed": ([FIRST, THIRD], (5, "gap")),
    "the first removed": ([SECOND, THIRD], (1, "gap")),
    "two swapped": ([FIRST, THIRD, SECOND], (5, "gap")),
    "another hash before": ([FIRST, replace(SECOND, prev_hash=bytes(32)), THIRD], (5, "link")),
    "another chain's": ([FIRST, replace(SECOND, chain="other"), THIRD], (5, "gap")),
    "an older note": ([FIRST, replace(SECOND, checkpoint=FIRST.checkpoint), THIRD], (5, "note")),
    "a note that nobody signed": ([replace(FIRST, checkpoint=note(checkpoint(CHAINED, 4), OTHER))], (1, "note")),
    "less than was signed": ([replace(FIRST, checkpoint=THIRD.checkpoint)], (5, "truncated")),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_archive_that_is_not_as_it_was_is_named(name: str) -> None:
    altered, expected = ALTERED[name]
    assert judged_archive([pack(one) for one in altered]) == expected


def test_what_cannot_be_read_is_named() -> None:
    assert judged_archive([pack(FIRST), pack(SECOND)[:-3], pack(THIRD)]) == (5, "form")
