"""docs/how-to.md is typed line by line into a shell: what it shows works, and what it says is refused is refused."""

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
# A comment behind a command names the refusal that it meets.
REFUSED = re.compile(r" # (\d{3} [a-z0-9_]+)$")
AFTER = "\nprintf '\\0%s\\0' $?\n"


async def test_every_line_does_what_the_page_says(world: World, tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs/how-to.md").read_text())
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 50
    script = "exec 2>&1\n" + "".join(line + AFTER for line in lines)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    # As after `make setup`, but for the state folder, which a person leaves at its default.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, cwd=tmp_path, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": path, "PLEX_STATE": str(world.state), "XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    out, _ = await shell.communicate()
    *answers, _ = out.decode().split("\0")
    wrong = []
    for line, said, status in zip(lines, answers[::2], answers[1::2], strict=True):
        refusal = REFUSED.search(line)
        if (status == "0") == bool(refusal) or (refusal and refusal[1] not in said):
            wrong.append(f"{line}\n{said}")
    assert wrong == [], "\n".join(wrong)
