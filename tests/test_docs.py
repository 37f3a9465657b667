"""Every `plexctl` command that a page shows exists, with the options that it shows."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.plexctl import app
from devstack.rotate import THINGS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SHOWN = re.compile(r"\bplexctl ([a-z][^`|>;#)\n]*)")


def shown() -> list[tuple[str, str]]:
    return [(str(page.relative_to(ROOT)), words) for page in PAGES for words in SHOWN.findall(page.read_text())]


@pytest.mark.parametrize(("page", "words"), sorted(set(shown())))
def test_a_command_that_a_page_shows_exists(page: str, words: str) -> None:
    command: Any = typer.main.get_command(app)
    left = shlex.split(words)
    while left and hasattr(command, "commands"):
        name = left.pop(0)
        assert name in command.commands, f"{page}: plexctl {words}"
        command = command.commands[name]
    command.make_parser(typer.Context(command)).parse_args(left)


def test_the_pages_show_commands() -> None:
    assert len(shown()) > 60


def test_the_runbook_has_every_rotation_and_a_test_that_exists_for_it() -> None:
    page = (ROOT / "docs/runbooks/platform.md").read_text()
    assert {f"plexctl dev rotate {thing}" for thing in THINGS} <= set(page.splitlines())
    tests = re.findall(r"`([a-z0-9/_]+/test_[a-z_]+\.py)`", page)
    assert len(tests) > len(THINGS)
    assert [test for test in tests if not (ROOT / test).exists()] == []
