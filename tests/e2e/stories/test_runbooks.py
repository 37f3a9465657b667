"""The commands of the runbooks are typed into a shell, each once: whoever is woken can rely on them."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What only a fault, or a person's key, gives a meaning to; tests of that fault run it.
ELSEWHERE = ("plexctl audit acknowledge-restore", "plexctl audit check-restore")


async def test_every_command_of_a_runbook_works(world: World, tmp_path: Path) -> None:
    pages = sorted((ROOT / "docs/runbooks").glob("*.md"))
    blocks = [block for page in pages for block in BLOCK.findall(page.read_text())]
    lines = sorted({line for block in blocks for line in block.splitlines() if not line.startswith(ELSEWHERE)})
    assert len(blocks) >= len(pages)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PLEX_STATE": str(world.state)}
    for line in lines:
        shell = await asyncio.create_subprocess_exec("bash", "-ec", line, cwd=tmp_path, env=env)
        assert await shell.wait() == 0, line
