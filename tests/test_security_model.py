"""docs/security-model.md is true: its paths and tests exist, active rows are replayed, the posture is what runs."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "security-model.md"
COLUMNS = ("row", "attacker", "control", "code", "posture", "service", "integration", "wire")
ROWS = {"F-1", "F-2", "F-3", "F-4", "F-5", "F-6", "S-1", "A-1", "A-2", "A-3", "A-4", "A-5"}


@dataclass(frozen=True)
class Row:
    cells: dict[str, str]

    def paths(self, *columns: str) -> list[str]:
        return [path for column in columns for path in re.findall(r"`([^`]+/[^`]+)`", self.cells[column])]


def rows() -> dict[str, Row]:
    found = {}
    for line in PAGE.read_text().splitlines():
        if re.match(r"\| [FSA]-\d ", line):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == len(COLUMNS), line
            found[cells[0]] = Row(dict(zip(COLUMNS, cells, strict=True)))
    return found


def test_every_threat_has_its_row() -> None:
    assert set(rows()) == ROWS


@pytest.mark.parametrize("name", sorted(ROWS))
def test_code_and_tests_of_a_row_exist(name: str) -> None:
    row = rows()[name]
    assert row.paths("code")
    for reference in row.paths("code", "service", "integration", "wire"):
        path, _, function = reference.partition("::")
        assert (ROOT / path).is_file(), reference
        if function:
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            nodes = ast.walk(ast.parse((ROOT / path).read_text()))
            assert function in {node.name for node in nodes if isinstance(node, functions)}, reference


@pytest.mark.parametrize("name", sorted(ROWS))
def test_an_active_row_is_replayed_over_the_wire_and_a_partial_one_says_what_is_missing(name: str) -> None:
    row, missing = rows()[name], PAGE.read_text().split("## What is missing")[1].split("## Residual")[0]
    assert row.cells["posture"] in {"active", "partial"}
    if row.cells["posture"] == "active":
        assert all(path.startswith("tests/e2e/") for path in row.paths("wire"))
        assert row.paths("wire")
    assert (f"**{name}**" in missing) is (row.cells["posture"] == "partial")
