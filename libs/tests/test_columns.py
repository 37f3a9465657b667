"""The column guard's rule: what is not declared, not there, or not checked, is named."""

import pytest

from libs.columns import CHECKED, ColumnClass, compare

pytestmark = pytest.mark.unit

DECLARED = {
    "nodes": {"name": ColumnClass.METADATA, "wrapped_key": ColumnClass.CIPHERTEXT},
    "tokens": {"digest": ColumnClass.HASH},
}
FOUND = {("nodes", "name"): False, ("nodes", "wrapped_key"): True, ("tokens", "digest"): True}


def test_a_schema_as_declared_passes() -> None:
    assert compare(FOUND, DECLARED) == []
    assert compare(FOUND | {("nodes", "name"): True}, DECLARED) == []
    assert compare({}, {}) == []


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (FOUND | {("nodes", "bearer"): True}, ["nodes.bearer has no class"]),
        (FOUND | {("dumps", "body"): False}, ["dumps.body has no class"]),
        ({k: v for k, v in FOUND.items() if k[0] != "tokens"}, ["tokens.digest is declared and does not exist"]),
        (FOUND | {("tokens", "digest"): False}, ["tokens.digest is hash and has no CHECK on its form"]),
        (FOUND | {("nodes", "wrapped_key"): False}, ["nodes.wrapped_key is ciphertext and has no CHECK on its form"]),
    ],
)
def test_what_is_wrong_is_named(found: dict[tuple[str, str], bool], wrong: list[str]) -> None:
    assert compare(found, DECLARED) == wrong


def test_all_that_is_wrong_is_named_at_once() -> None:
    assert len(compare({("nodes", "bearer"): True, ("tokens", "digest"): False}, DECLARED)) == 4


def test_what_hides_a_secret_needs_a_check() -> None:
    assert {ColumnClass.CIPHERTEXT, ColumnClass.HASH} == CHECKED
