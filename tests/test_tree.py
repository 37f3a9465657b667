"""The shape of the repository, tested: what docs/how-to.md promises about where things are."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("access", "audit", "gateway", "identity", "mesh", "secrets")
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
VAGUE = {"utils", "helpers", "common", "base", "misc", "manager"}
LONGEST_FILE = 420


def tracked() -> list[Path]:
    """Files that git tracks, or will track with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def sources() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and not GENERATED.search(path.name)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_its_process_settings_runbook_and_owner(service: str) -> None:
    for needed in (
        f"services/{service}/__main__.py",
        f"services/{service}/tests",
        f"deploy/config/{service}.toml",
        f"docs/runbooks/{service}.md",
    ):
        assert (ROOT / needed).exists(), needed
    assert f"/services/{service}/" in (ROOT / "CODEOWNERS").read_text()


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "gateway"])
def test_a_grpc_service_has_rules_ports_and_a_schema_of_its_own(service: str) -> None:
    folder = ROOT / "services" / service
    for needed in ("model.py", "ports.py", "columns.py", "grpc_api.py", "migrations"):
        split = sorted(folder.glob(f"grpc_*{Path(needed).suffix}")) if needed == "grpc_api.py" else []
        assert split or (folder / needed).exists(), f"services/{service}/{needed}"
    assert (ROOT / "proto" / "plexsphere" / service / "v1").is_dir()


def test_the_gateway_has_no_database_and_no_vault() -> None:
    banned = {"asyncpg", "alembic", "sqlalchemy", "hvac", "authzed"}
    for path in (ROOT / "services" / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            roots = {name.split(".")[0] for name in names} | {name for name in names if name == "libs.bao"}
            assert not roots & (banned | {"libs.bao", "libs.pg"}), f"{path}: {roots}"


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [path for path in sources() if path.stem in VAGUE] == []


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "gateway"])
def test_migrations_are_one_line(service: str) -> None:
    files = sorted((ROOT / "services" / service / "migrations").glob("*.py"))
    numbers = [f"{number:04}" for number in range(1, len(files) + 1)]
    assert [path.name[:4] for path in files] == numbers
    for path, number, before in zip(files, numbers, ["", *numbers], strict=False):
        text = path.read_text()
        assert f'revision = "{number}"' in text
        assert f'down_revision = "{before}"' in text or not before


def test_each_decision_has_a_number_of_its_own() -> None:
    records = sorted(path.name[:4] for path in (ROOT / "docs/decisions").glob("*.md"))
    assert records == [f"{number:04}" for number in range(1, len(records) + 1)]


def test_a_decision_that_is_named_is_there() -> None:
    named = re.compile(r"docs/decisions/[0-9]{4}(?:-[a-z0-9-]+\.md)?")
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".hcl", ".yaml", ".yml"}:
            for page in named.findall(path.read_text()):
                assert [*ROOT.glob(page + "*")], f"{path.relative_to(ROOT)}: {page}"


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in sources()
        if (count := len(path.read_text().splitlines())) > LONGEST_FILE
    }
    assert long == {}


def test_a_suppression_names_its_rule() -> None:
    bare = re.compile(r"#\s*(noqa|type:\s*ignore)\s*($|[^:\[\s])")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line) and path != Path(__file__)
    ]
    assert found == []


def test_no_test_is_skipped_or_expected_to_fail_and_none_patches() -> None:
    banned = re.compile(r"mark\.(skip|xfail)|pytest\.(skip|xfail|importorskip)\(|mock\.patch|monkeypatch\.setattr")
    found = [
        str(path.relative_to(ROOT)) for path in sources() if path != Path(__file__) and banned.search(path.read_text())
    ]
    assert found == []


def test_every_test_module_says_what_it_needs() -> None:
    unmarked = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.name.startswith("test_")
        and not re.search(r"^pytestmark = .*(unit|integration|e2e|compose)", path.read_text(), re.MULTILINE)
    ]
    assert unmarked == []


def test_no_index_or_registry_address_is_in_any_file() -> None:
    lock = re.compile(r"--(extra-)?index-url|find-links|\"resolved\": *\"http|registry *= *http|source = \{ registry")
    found = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in {".lock", ".json", ".toml", ".txt", ".cfg", ".ini", ".yml", ".yaml", ""}
        and path.name != "uv.lock"
        and path.stat().st_size < 2_000_000
        and lock.search(path.read_text(errors="replace"))
    ]
    assert found == []


def test_every_locked_requirement_has_a_hash() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())
    assert [block.splitlines()[0] for block in blocks if "==" in block and "--hash=sha256:" not in block] == []


def test_no_binary_is_committed() -> None:
    assert [str(path.relative_to(ROOT)) for path in tracked() if b"\0" in path.read_bytes()[:8000]] == []


def test_every_make_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z0-9-]+):(?!=)(.*)$", makefile, re.MULTILINE)
    assert [name for name, rest in targets if "##" not in rest] == []


def test_caller_lists_name_only_processes_that_exist() -> None:
    for service in SERVICES:
        with (ROOT / "deploy" / "config" / f"{service}.toml").open("rb") as file:
            callers = tomllib.load(file).get("callers", {})
        for name, allowed in callers.items():
            assert set(allowed) <= {*SERVICES, "operator", "probe"}, f"{service}: {name}"
