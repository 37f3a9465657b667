"""Notes, checkpoints and proofs in files: foreign ones are read, ours are strict, and every change is refused."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import LARGEST, MOST_SIGNATURES, VerifierKey, open_note, parse_key, seal_note
from libs.tlog.proof import Proof, parse_proof
from libs.tlog.tree import Run, inclusion, prove
from libs.tlog.verify import NotProven

pytestmark = pytest.mark.unit

# The example of golang.org/x/mod/sumdb/note, whose format c2sp.org/signed-note describes.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    GO_TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

ORIGIN = "plexsphere.example/audit/one"


def pair(number: int, name: str = ORIGIN) -> tuple[VerifierKey, Ed25519PrivateKey]:
    private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return VerifierKey(name, private.public_key().public_bytes_raw()), private


KEY, PRIVATE = pair(1)
OTHER, OTHER_PRIVATE = pair(2)
ENTRIES = [bytes([number]) * 32 for number in range(11)]
RUN = Run()
STORED = {node: value for entry in ENTRIES for node, value in RUN.push(entry)}
TEXT = Checkpoint(ORIGIN, 11, RUN.root()).text()
NOTE = seal_note(TEXT, KEY, PRIVATE.sign(TEXT.encode()))
PROOF = str(Proof(4, tuple(prove(inclusion(4, 11), STORED)), NOTE))


def signed(text: str) -> str:
    return seal_note(text, KEY, PRIVATE.sign(text.encode()))


def test_a_foreign_note_is_read_and_its_key_written_as_it_came() -> None:
    key = parse_key(GO_KEY)
    assert str(key) == GO_KEY
    assert open_note(GO_NOTE, [key]) == GO_TEXT
    with pytest.raises(NotProven):
        open_note(GO_NOTE.replace("answer", "question"), [key])


@pytest.mark.parametrize("at", range(len(GO_KEY)))
def test_no_part_of_a_verifier_key_can_be_changed_or_left_out(at: int) -> None:
    for text in (GO_KEY[:at], GO_KEY[at + 1 :], GO_KEY[:at] + chr(ord(GO_KEY[at]) ^ 1) + GO_KEY[at + 1 :]):
        with pytest.raises(NotProven):
            parse_key(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b", "a\x01b"])
def test_a_name_fits_a_signature_line(name: str) -> None:
    with pytest.raises(NotProven):
        VerifierKey(name, KEY.public_key)


def test_a_key_is_of_one_kind_and_length() -> None:
    name, key_id, _ = str(KEY).split("+", 2)
    other = base64.b64encode(bytes([2]) + KEY.public_key).decode()
    with pytest.raises(NotProven, match="not Ed25519"):
        parse_key(f"{name}+{key_id}+{other}")
    with pytest.raises(NotProven, match="not Ed25519"):
        VerifierKey(ORIGIN, KEY.public_key[:-1])


def test_a_signature_that_is_not_the_keys_makes_no_note() -> None:
    with pytest.raises(NotProven):
        seal_note(TEXT, KEY, OTHER_PRIVATE.sign(TEXT.encode()))


def test_signatures_of_others_are_ignored_and_ours_is_required() -> None:
    cosigned = NOTE + OTHER.line(OTHER_PRIVATE.sign(TEXT.encode())) + OTHER.line(b"of another algorithm")
    assert open_note(cosigned, [KEY]) == open_note(cosigned.replace("\n\n", "\n\n"), [KEY]) == TEXT
    first, *rest = cosigned.split("\n\n")[1].splitlines(keepends=True)
    assert open_note(TEXT + "\n" + "".join([*rest[:1], first]), [KEY, OTHER]) == TEXT
    for keys in ([], [pair(3)[0]], [VerifierKey("another.example", KEY.public_key)]):
        with pytest.raises(NotProven, match="nobody"):
            open_note(cosigned, keys)


def test_a_false_signature_under_our_name_refuses_the_note() -> None:
    for line in (KEY.line(OTHER_PRIVATE.sign(TEXT.encode())), KEY.line(bytes(64)), KEY.line(b"short")):
        for note in (NOTE + line, TEXT + "\n" + line):
            with pytest.raises(NotProven, match="not the key's"):
                open_note(note, [KEY])


LINE = NOTE.removeprefix(TEXT + "\n")
MALFORMED = {
    "nothing": "",
    "no signature": TEXT + "\n",
    "no gap": TEXT + LINE,
    "no newline at the end": NOTE[:-1],
    "more after it": NOTE + "x",
    "an empty line after it": NOTE + "\n",
    "carriage returns": NOTE.replace("\n", "\r\n"),
    "a tab": NOTE.replace("11", "1\t1"),
    "a null": NOTE.replace("11", "11\0"),
    "half a character": NOTE.replace("11", "\ud800"),
    "another dash": NOTE.replace("—", "-"),
    "two spaces": NOTE.replace("— ", "—  "),
    "a name with a plus": TEXT + "\n" + LINE + LINE.replace(ORIGIN, "a+b"),
    "no name": TEXT + "\n" + LINE + LINE.replace(ORIGIN, ""),
    "a signature of nothing": TEXT + "\n" + LINE + "— a AAAAAA==\n",
    "base64 without padding": NOTE.replace("=\n", "\n"),
    "base64 with a space": NOTE[:-10] + " " + NOTE[-10:],
    "too many signatures": TEXT + "\n" + LINE * (MOST_SIGNATURES + 1),
    "too large": "x" * LARGEST + "\n\n" + LINE,
    "changed text": NOTE.replace("\n11\n", "\n12\n"),
}


@pytest.mark.parametrize("text", ["a\tb\n", "a\0\n", "a\r\n", "x" * LARGEST + "\n"])
def test_a_text_that_no_note_may_have_is_refused_although_it_is_signed(text: str) -> None:
    with pytest.raises(NotProven, match=r"characters|too large"):
        open_note(signed(text), [KEY])


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_exactly_a_signed_note_is_refused(name: str) -> None:
    with pytest.raises(NotProven):
        open_note(MALFORMED[name], [KEY])


def test_as_many_signatures_as_everybody_must_accept_are_read() -> None:
    assert open_note(NOTE + OTHER.line(bytes(5000)) * 15, [KEY]) == TEXT


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    assert open_checkpoint(NOTE, ORIGIN, [OTHER, KEY]) == Checkpoint(ORIGIN, 11, RUN.root())
    empty = Checkpoint(ORIGIN, 0, Run().root())
    assert open_checkpoint(signed(empty.text()), ORIGIN, [KEY]) == empty


ROOT = base64.b64encode(RUN.root()).decode()
NO_CHECKPOINT = {
    "another log": f"plexsphere.example/audit/two\n11\n{ROOT}\n",
    "no root": f"{ORIGIN}\n11\n",
    "an extension": f"{ORIGIN}\n11\n{ROOT}\nmore\n",
    "an empty line": f"{ORIGIN}\n11\n{ROOT}\n\n",
    "a leading zero": f"{ORIGIN}\n011\n{ROOT}\n",
    "a sign": f"{ORIGIN}\n+11\n{ROOT}\n",
    "negative": f"{ORIGIN}\n-11\n{ROOT}\n",
    "other digits": f"{ORIGIN}\n\u0661\u0661\n{ROOT}\n",
    "too large a size": f"{ORIGIN}\n{2**63}\n{ROOT}\n",
    "a short root": f"{ORIGIN}\n11\n{base64.b64encode(bytes(31)).decode()}\n",
    "a root in hex": f"{ORIGIN}\n11\n{RUN.root().hex()}\n",
    "a root with loose bits": f"{ORIGIN}\n11\n{ROOT[:-2]}{chr(ord(ROOT[-2]) + 1)}=\n",
}


@pytest.mark.parametrize("name", NO_CHECKPOINT)
def test_what_is_not_exactly_a_checkpoint_is_refused_although_it_is_signed(name: str) -> None:
    with pytest.raises(NotProven):
        open_checkpoint(signed(NO_CHECKPOINT[name]), ORIGIN, [KEY])


def test_a_proof_in_a_file_is_verified_with_the_key_alone() -> None:
    proof = parse_proof(PROOF)
    assert str(proof) == PROOF
    assert proof.verify(ENTRIES[4], ORIGIN, [KEY]).size == 11
    for entry, origin, key in ((ENTRIES[5], ORIGIN, KEY), (ENTRIES[4], "other", KEY), (ENTRIES[4], ORIGIN, OTHER)):
        with pytest.raises(NotProven):
            proof.verify(entry, origin, [key])


def test_a_log_of_one_has_a_proof_without_hashes_and_extra_is_kept() -> None:
    run = Run()
    run.push(b"only")
    note = signed(Checkpoint(ORIGIN, 1, run.root()).text())
    for extra in (b"", b"what nobody vouches for"):
        text = str(Proof(0, (), note, extra))
        assert text.startswith("c2sp.org/tlog-proof@v1\n" + ("extra " if extra else "index 0\n\n" + ORIGIN))
        assert parse_proof(text) == Proof(0, (), note, extra)
        assert parse_proof(text).verify(b"only", ORIGIN, [KEY]).size == 1


NO_PROOF = {
    "nothing": "",
    "another header": PROOF.replace("@v1", "@v2"),
    "no index": PROOF.replace("index 4\n", ""),
    "a leading zero": PROOF.replace("index 4", "index 04"),
    "index before extra": PROOF.replace("index 4\n", "index 4\nextra AAAA\n"),
    "no gap": PROOF.replace("\n\n", "\n"),
    "a short hash": PROOF.replace("index 4\n", "index 4\nAAAA\n"),
    "another index": PROOF.replace("index 4", "index 5"),
    "an index beyond": PROOF.replace("index 4", "index 11"),
    "one hash more": PROOF.replace("index 4\n", "index 4\n" + ROOT + "\n"),
    "many hashes": PROOF.replace("index 4\n", "index 4\n" + (ROOT + "\n") * 64),
    "too large": PROOF.replace("index", "extra " + "A" * LARGEST + "\nindex"),
}


@pytest.mark.parametrize("name", NO_PROOF)
def test_what_is_not_exactly_the_proof_is_refused(name: str) -> None:
    with pytest.raises(NotProven):
        parse_proof(NO_PROOF[name]).verify(ENTRIES[4], ORIGIN, [KEY])


@given(st.integers(0, len(PROOF) - 1), st.characters())
def test_no_character_of_a_proof_can_be_another(at: int, character: str) -> None:
    changed = PROOF[:at] + character + PROOF[at + 1 :]
    if changed == PROOF:
        return
    with pytest.raises(NotProven):
        parse_proof(changed).verify(ENTRIES[4], ORIGIN, [KEY])
