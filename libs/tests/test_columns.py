"""The column guard's rule: what is not declared, not there, not of its form, or named like a secret, is named."""

from dataclasses import replace

import pytest

from libs.columns import ALLOWED, Column, compare
from libs.columns import ColumnClass as Is

pytestmark = pytest.mark.unit

DECLARED = {"nodes": {"name": Is.METADATA, "wrapped_key": Is.CIPHERTEXT}, "tokens": {"digest": Is.HASH}}
NAME = Column("s", "nodes", "name", "text")
WRAPPED = Column(
    "s", "nodes", "wrapped_key", "text", ("CHECK ((wrapped_key ~ '^vault:v[0-9]+:[A-Za-z0-9+/]{80}$'::text))",)
)
DIGEST = Column("s", "tokens", "digest", "bytea", ("CHECK ((length(digest) = 32))",))
FOUND = [NAME, WRAPPED, DIGEST]


def test_a_schema_as_declared_passes() -> None:
    assert compare(FOUND, DECLARED) == []
    assert compare([replace(NAME, checks=("CHECK ((name <> ''::text))",)), WRAPPED, DIGEST], DECLARED) == []
    assert compare([*FOUND, Column("s", "nodes", "created_at", "timestamp with time zone")], DECLARED) == []
    assert compare([], {}) == []


@pytest.mark.parametrize(
    "kind",
    ["text", "citext", "bytea", "jsonb", "hstore", "bit varying", "numeric", "integer[]", "uuid[]", "s.small"],
)
def test_every_type_that_can_hold_a_secret_needs_a_class(kind: str) -> None:
    wrong = compare([*FOUND, Column("s", "nodes", "note", kind)], DECLARED)
    assert wrong == [f"s.nodes.note ({kind}) has no class: declare it in services/s/columns.py"]


@pytest.mark.parametrize(
    "check",
    [
        "CHECK ((digest <> ''::bytea))",
        "CHECK ((length(digest) = 16))",
        "CHECK ((length(digest) <= 32))",
        "CHECK ((length(name) = 32))",
        "CHECK ((length(digest) = 32)) NOT VALID",
        "CHECK ((length(digest) = 32)) NOT ENFORCED",
        "CHECK (((length(digest) = 32) OR (digest IS NOT NULL)))",
    ],
)
def test_a_check_that_is_not_the_form_of_a_hash_does_not_count(check: str) -> None:
    wrong = compare([NAME, WRAPPED, replace(DIGEST, checks=(check,))], DECLARED)
    assert [text.partition(" and ")[0] for text in wrong] == ["s.tokens.digest is hash"]


@pytest.mark.parametrize("least", ["{60,}", "{64}", "{79}", "+", "*", "{1,200}"])
def test_ciphertext_that_a_plaintext_key_is_long_enough_for_does_not_count(least: str) -> None:
    check = WRAPPED.checks[0].replace("{80}", least)
    assert (
        "s.nodes.wrapped_key is ciphertext" in compare([NAME, replace(WRAPPED, checks=(check,)), DIGEST], DECLARED)[0]
    )


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("'^kv/idp/[a-z0-9][a-z0-9-]{0,62}$'", 0),
        ("'^secrets/[0-9a-f-]{36}/[0-9a-f-]{36}$'", 0),
        ("'^kv/idp/.*$'", 1),
        ("'^kv/idp/[a-z]'", 1),
        ("'^[a-z]+$'", 1),
    ],
)
def test_a_reference_is_a_path(text: str, faults: int) -> None:
    column = Column("s", "bindings", "client_secret_ref", "text", (f"CHECK ((client_secret_ref ~ {text}::text))",))
    assert len(compare([column], {"bindings": {"client_secret_ref": Is.REFERENCE}})) == faults


@pytest.mark.parametrize(
    "name",
    ["nsk", "nodeKey", "client_secret", "api_token", "password", "bearer", "private_key", "set_cookie", "pkce_verifier",
     "user_code", "otp", "apikey", "client_assertion", "credentials", "plaintext"],
)  # fmt: skip
def test_a_name_that_speaks_of_a_secret_is_no_metadata(name: str) -> None:
    for kind in (Is.METADATA, Is.IDENTIFIER, Is.PERSONAL, Is.PUBLIC_KEY):
        checks = (f"CHECK ((length({name}) = 32))",)
        wrong = compare([Column("s", "nodes", name, "bytea", checks)], {"nodes": {name: kind}})
        assert any(f"s.nodes.{name} speaks of a secret and is {kind}" in text for text in wrong)


def test_a_random_uuid_can_be_a_secret_and_an_id_is_none() -> None:
    assert "speaks of a secret and is plaintext" in compare([Column("s", "t", "token", "uuid")], {})[0]
    assert compare([Column("s", "t", "token_id", "uuid"), Column("s", "t", "key_version", "integer")], {}) == []


def test_what_is_allowed_says_why() -> None:
    assert compare([Column("s", "t", "refused_code", "text")], {"t": {"refused_code": Is.METADATA}}) == []
    assert all(len(why) > 10 for why in ALLOWED.values())


def test_a_public_key_is_called_one_and_has_the_length_of_one() -> None:
    column = Column("s", "nodes", "public_key", "bytea", ("CHECK ((length(public_key) = 32))",))
    assert compare([column], {"nodes": {"public_key": Is.PUBLIC_KEY}}) == []
    assert len(compare([replace(column, checks=())], {"nodes": {"public_key": Is.PUBLIC_KEY}})) == 1


def test_what_is_missing_is_named_and_all_that_is_wrong_at_once() -> None:
    assert compare(FOUND[:2], DECLARED) == ["tokens.digest is declared and does not exist"]
    assert len(compare([Column("s", "nodes", "bearer", "text"), replace(DIGEST, checks=())], DECLARED)) == 5


def test_an_older_revision_may_lack_columns_and_forms_and_never_a_class() -> None:
    assert compare([replace(DIGEST, checks=())], DECLARED, complete=False) == []
    assert len(compare([Column("s", "nodes", "note", "text")], DECLARED, complete=False)) == 1
    assert len(compare([Column("s", "nodes", "nsk", "text")], {"nodes": {"nsk": Is.METADATA}}, complete=False)) == 1
