"""Cursors: opaque, one spelling, bound to their list and their caller."""

import pytest

from libs.cursor import Cursors
from libs.custody import Secret
from libs.errors import CursorBindingMismatch, InvalidCursor

pytestmark = pytest.mark.unit

CURSORS = Cursors(Secret(b"k" * 32))
AT = {"name": "db-password", "seq": 7}
SEALED = CURSORS.seal("secrets", "user:1", AT)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_it_opens_to_the_position() -> None:
    assert CURSORS.open("secrets", "user:1", SEALED) == AT
    assert Cursors(Secret(b"k" * 32)).open("secrets", "user:1", SEALED) == AT


def test_another_callers_is_told_apart_from_another_lists() -> None:
    with pytest.raises(CursorBindingMismatch):
        CURSORS.open("secrets", "user:2", SEALED)
    with pytest.raises(InvalidCursor):
        CURSORS.open("nodes", "user:1", SEALED)
    with pytest.raises(InvalidCursor):
        CURSORS.open("nodes", "user:2", SEALED)


@pytest.mark.parametrize("position", range(len(SEALED)))
def test_an_altered_one_is_refused_at_every_letter(position: int) -> None:
    for letter in LETTERS:
        if letter != SEALED[position]:
            with pytest.raises(InvalidCursor):
                CURSORS.open("secrets", "user:1", SEALED[:position] + letter + SEALED[position + 1 :])


@pytest.mark.parametrize(
    "cursor",
    ["", "A", "=", SEALED + "=", SEALED + "==", SEALED + "A", SEALED[:-1], SEALED[1:], SEALED + "\n", " " + SEALED,
     "é" + SEALED, SEALED.replace("-", "+").replace("_", "/") + "!", "A" * 43, "\0"],
)  # fmt: skip
def test_what_was_not_sealed_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        CURSORS.open("secrets", "user:1", cursor)


def test_another_key_is_refused() -> None:
    with pytest.raises(InvalidCursor):
        Cursors(Secret(b"x" * 32)).open("secrets", "user:1", SEALED)


def test_it_does_not_name_its_caller() -> None:
    shown = CURSORS.seal("secrets", "user:somebody-known", AT)
    assert "c29tZWJvZHk" not in shown
