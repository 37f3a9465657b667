"""All golden vectors, through the command that authors of agents use."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.conformance import app

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).resolve().parents[2] / "tests" / "vectors"
FILES = {
    "envelope": ("envelope-golden.json", 216),
    "secret-body": ("secret-body.json", 39),
    "nsk": ("nsk.json", 50),
    "audit-chain": ("audit-chain.json", 29),
}
EXPECTATIONS = {"valid", "expect", "canonical_hex", "agent_accepts", "agent_verdict", "advisory", "why"}


@pytest.mark.parametrize("kind", FILES)
def test_every_case_gets_its_verdict(kind: str) -> None:
    name, count = FILES[kind]
    result = CliRunner().invoke(app, [kind, str(VECTORS / name)])
    assert result.exit_code == 0, result.output
    assert f"{count} cases, 0 failing" in result.output


@pytest.mark.parametrize("kind", FILES)
def test_a_file_without_expectations_gets_the_same_verdicts(kind: str, tmp_path: Path) -> None:
    name, _ = FILES[kind]
    content = json.loads((VECTORS / name).read_text())
    bare = {
        key: [{k: v for k, v in case.items() if k not in EXPECTATIONS} for case in cases]
        for key, cases in content.items()
        if isinstance(cases, list)
    }
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    runner = CliRunner()
    full = runner.invoke(app, [kind, str(VECTORS / name), "--json"])
    stripped = runner.invoke(app, [kind, str(tmp_path / "bare.json"), "--json"])
    assert stripped.exit_code == 0, stripped.output
    assert json.loads(stripped.stdout)["cases"] == json.loads(full.stdout)["cases"]


def test_a_wrong_expectation_fails_the_run(tmp_path: Path) -> None:
    content = json.loads((VECTORS / "nsk.json").read_text())
    content["cases"][0]["valid"] = False
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["nsk", str(tmp_path / "wrong.json")])
    assert result.exit_code == 1
    assert "FAIL agent" in result.output


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": [1]}', '{"cases": [{}]}'])
def test_a_file_of_another_format_is_wrong_usage(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    assert CliRunner().invoke(app, ["envelope", str(tmp_path / "other.json")]).exit_code == 2
