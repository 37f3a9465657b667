"""What we sign and prove is believed by a verifier that is not ours, and what it refuses is refused by us as well."""

import metamorphic_log as foreign
import pytest

from libs.tests.test_tlog_notes import ENTRIES, GO_KEY, GO_NOTE, KEY, MALFORMED, NOTE, ORIGIN, OTHER, PROOF, signed
from libs.tlog.checkpoint import Checkpoint, open_checkpoint
from libs.tlog.note import open_note
from libs.tlog.proof import parse_proof
from libs.tlog.tree import Node, Run, consistency, inclusion, leaf_hash, prove
from libs.tlog.verify import NotProven

pytestmark = pytest.mark.unit

RUN = Run()
STORED, NOTES = dict[Node, bytes](), dict[int, str]()
for _number, _entry in enumerate(ENTRIES, 1):
    STORED |= dict(RUN.push(_entry))
    NOTES[_number] = signed(Checkpoint(ORIGIN, _number, RUN.root()).text())
PAIRS = [(first, last) for last in NOTES for first in range(1, last + 1)]


def test_the_foreign_verifier_believes_what_go_signed_and_nobody_else() -> None:
    assert foreign.verify_signed_note(GO_NOTE, [GO_KEY]) == 1
    with pytest.raises(foreign.VerifyError):
        foreign.verify_signed_note(GO_NOTE.replace("answer", "question"), [GO_KEY])
    with pytest.raises(foreign.VerifyError):
        foreign.verify_signed_note(NOTE, [GO_KEY])


@pytest.mark.parametrize("size", NOTES)
def test_a_checkpoint_of_ours_is_believed_with_its_key_alone(size: int) -> None:
    shown, own = foreign.checkpoint_verify(NOTES[size], [str(KEY)]), open_checkpoint(NOTES[size], ORIGIN, [KEY])
    assert (shown.origin, shown.size, shown.root, shown.extensions) == (own.origin, own.size, own.root, [])
    with pytest.raises(foreign.VerifyError):
        foreign.checkpoint_verify(NOTES[size], [str(OTHER)])


@pytest.mark.parametrize(("first", "last"), PAIRS)
def test_proofs_of_ours_are_believed(first: int, last: int) -> None:
    path = prove(inclusion(first - 1, last), STORED)
    foreign.checkpoint_verify_inclusion(NOTES[last], [str(KEY)], first - 1, leaf_hash(ENTRIES[first - 1]), path)
    with pytest.raises(foreign.VerifyError):
        foreign.checkpoint_verify_inclusion(NOTES[last], [str(KEY)], first - 1, leaf_hash(b"another"), path)
    between = prove(consistency(first, last), STORED)
    foreign.checkpoint_verify_consistency(NOTES[first], NOTES[last], [str(KEY)], between)


def test_a_proof_in_a_file_is_what_the_foreign_verifier_needs() -> None:
    proof = parse_proof(PROOF)
    foreign.checkpoint_verify_inclusion(
        proof.note, [str(KEY)], proof.index, leaf_hash(ENTRIES[proof.index]), list(proof.hashes)
    )


@pytest.mark.parametrize("at", range(len(NOTE)))
def test_both_refuse_a_checkpoint_of_which_a_character_is_another_one(at: int) -> None:
    note = NOTE[:at] + chr(ord(NOTE[at]) ^ 1) + NOTE[at + 1 :]
    with pytest.raises(foreign.VerifyError):
        foreign.checkpoint_verify(note, [str(KEY)])
    with pytest.raises(NotProven):
        open_checkpoint(note, ORIGIN, [KEY])


# How many signatures are too many is everybody's own decision.
@pytest.mark.parametrize("name", [name for name in MALFORMED if name != "too many signatures"])
def test_what_the_foreign_verifier_refuses_we_refuse(name: str) -> None:
    with pytest.raises((foreign.VerifyError, UnicodeError)):
        foreign.verify_signed_note(MALFORMED[name], [str(KEY)])
    with pytest.raises(NotProven):
        open_note(MALFORMED[name], [KEY])
