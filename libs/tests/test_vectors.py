"""All golden vectors, through the command that authors of agents use."""

import json
import subprocess
import sys
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
EXPECTATIONS = {
    "valid",
    "expect",
    "canonical_hex",
    "agent_accepts",
    "agent_verdict",
    "advisory",
    "why",
    "plaintext_hex",
}


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


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 200_000, "\ufeff", '{"cases": 3}', '{"cases": "abc"}', '{"cases": {}}', '{"cases": [1]}',
     '{"cases": [{}]}', '{"cases": [{"authorization": null, "envelope_hex": 1, "rows": null, "nsk_b64": 3}]}'],
)  # fmt: skip
def test_a_file_of_another_format_is_wrong_usage(kind: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    result = CliRunner().invoke(app, [kind, str(tmp_path / "other.json")])
    assert result.exit_code == 2
    assert "other.json" in result.stderr


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["nsk", str(tmp_path / "none.json")]).exit_code == 2
    assert CliRunner().invoke(app, ["nsk", str(tmp_path)]).exit_code == 2


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "cli.conformance", "nsk", str(VECTORS / "nsk.json"), "--json"]
    done = subprocess.run(command, cwd=VECTORS.parents[1], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["cases"]) == 50


def test_a_segment_without_the_rows_before_it_trusts_its_first_link(tmp_path: Path) -> None:
    content = json.loads((VECTORS / "audit-chain.json").read_text())
    chain = next(chain for chain in content["chains"] if chain["name"] == "segment-middle")
    chain["rows"] = [row for row in chain["rows"] if row["seq"] >= chain["segment_from"]]
    (tmp_path / "segment.json").write_text(json.dumps({"chains": [chain]}))
    result = CliRunner().invoke(app, ["audit-chain", str(tmp_path / "segment.json")])
    assert result.exit_code == 0, result.output
