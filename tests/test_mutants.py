"""The controls that `make mutants` removes are where it says, and so are the attacks on them."""

import ast
from pathlib import Path

import pytest

from tools.mutant import Mutant
from tools.mutants import MUTANTS, ROOT

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_control_and_its_attack_are_where_the_mutant_says(mutant: Mutant) -> None:
    for file, control, _ in mutant.edits:
        assert control in (ROOT / file).read_text(), file
    path, _, name = mutant.attack.partition("::")
    assert not name or name in functions(ROOT / path)


def functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
    }
