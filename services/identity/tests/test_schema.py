"""schema.validation.yaml against the real SpiceDB."""

import json
import re
from pathlib import Path

import pytest
import yaml

from services.identity.model import Caveat, Tuple
from services.identity.relations import Question
from services.identity.schema import SCHEMA
from services.identity.spicedb import SpiceDb

pytestmark = pytest.mark.integration

VALIDATION = SCHEMA.with_name("schema.validation.yaml")
LINE = re.compile(r"([a-z]+:[a-z-]+)#([a-z_]+)@([a-z]+:[a-z-]+)(?:\[([a-z_]+):({.*})\])?(?: with ({.*}))?")
ASSERTED: dict[str, bool | None] = {"assertTrue": True, "assertFalse": False, "assertCaveated": None}


def match(line: str) -> re.Match[str]:
    found = LINE.fullmatch(line.strip())
    assert found is not None, line
    return found


def row(line: str) -> Tuple:
    found = match(line)
    return Tuple(found[1], found[2], found[3], Caveat(found[4], json.loads(found[5])) if found[4] else None)


def question(line: str) -> Question:
    found = match(line)
    return Question(found[3], found[2], found[1], json.loads(found[6] or "{}"))


async def test_every_assertion_holds_on_the_real_spicedb(spicedb: SpiceDb) -> None:
    content = yaml.safe_load(VALIDATION.read_text())
    assert VALIDATION.parent / Path(content["schemaFile"]) == SCHEMA
    rows = [row(line) for line in content["relationships"].splitlines()]
    wanted = [(line, expected) for name, expected in ASSERTED.items() for line in content["assertions"][name]]
    await spicedb.touch(rows)
    try:
        answers = await spicedb.check([question(line) for line, _ in wanted])
    finally:
        await spicedb.delete(rows)
    wrong = [line for (line, expected), seen in zip(wanted, answers, strict=True) if expected is not seen]
    assert wrong == []


def test_every_definition_and_permission_is_asserted() -> None:
    content = yaml.safe_load(VALIDATION.read_text())
    asserted = {match(line) for lines in content["assertions"].values() for line in lines}
    covered = {(one[1].split(":")[0], one[2]) for one in asserted}
    definitions = re.split(r"^definition ", SCHEMA.read_text(), flags=re.MULTILINE)[1:]
    declared = {
        (text.split(" ")[0], permission)
        for text in definitions
        for permission in re.findall(r"permission ([a-z_]+) =", text)
    }
    assert sorted(declared - covered) == []
