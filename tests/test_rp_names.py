"""The OpenID Foundation's test names of the basic relying party plan, and the wire test that is each of them here."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).resolve().parent / "e2e" / "threats" / "identity"
KEYS, CLAIMS, PROVIDER = "test_id_token_keys.py", "test_id_token_claims.py", "test_id_token_provider.py"
LATER = "test_later_answers.py"
# Where a test is a table, its row stands behind it.
TESTS: dict[str, tuple[str, str, str]] = {
    "invalid-iss": (CLAIMS, "PARTIES", "another issuer"),
    "missing-sub": (CLAIMS, "PARTIES", "without a subject"),
    "invalid-aud": (CLAIMS, "PARTIES", "another audience"),
    "missing-aud": (CLAIMS, "PARTIES", "without an audience"),
    "missing-iat": (CLAIMS, "TIME", "without an issue time"),
    "kid-absent-single-jwks": (KEYS, "KEYS", "without a kid, one key"),
    "kid-absent-multiple-jwks": (KEYS, "KEYS", "without a kid, several keys"),
    "invalid-sig-rs256": (KEYS, "ALGORITHMS", "signed by the attacker"),
    "invalid-sig-es256": (KEYS, "KEYS", "a wrong signature of an elliptic key"),
    "invalid-sig-hs256": (KEYS, "ALGORITHMS", "HS256 with the public key"),
    "idtoken-sig-none": (KEYS, "ALGORITHMS", "none"),
    "nonce-invalid": (CLAIMS, "PARTIES", "another nonce"),
    "signing-key-rotation": (PROVIDER, "test_a_key_that_is_new_before_the_sign_in_is_believed", ""),
    "signing-key-rotation-just-before-signing": (
        PROVIDER,
        "test_a_key_that_is_new_just_before_signing_is_believed",
        "",
    ),
    "userinfo-invalid-sub": (LATER, "test_names_come_from_userinfo_of_the_same_subject_only", ""),
    "refresh-token-invalid-issuer": (LATER, "SAYS", "refresh-token-invalid-issuer"),
    "refresh-token-invalid-sub": (LATER, "SAYS", "refresh-token-invalid-sub"),
}


@pytest.mark.parametrize("name", TESTS)
def test_a_name_is_a_test(name: str) -> None:
    file, where, row = TESTS[name]
    tree = ast.parse((FOLDER / file).read_text())
    if not row:
        assert where in {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
        return
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Dict):
            continue
        if where == ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target):
            assert row in {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
            assert f'@pytest.mark.parametrize("name", {where})' in (FOLDER / file).read_text()
            return
    raise AssertionError(f"{file} has no table {where}")


def test_every_name_of_the_plan_is_here() -> None:
    assert len(TESTS) == 17
