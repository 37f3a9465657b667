"""schema.validation.yaml against the real SpiceDB."""

import re
from pathlib import Path

import pytest
import yaml

from services.identity.model import Tuple
from services.identity.spicedb import SCHEMA, SpiceDb

pytestmark = pytest.mark.integration

VALIDATION = SCHEMA.with_name("schema.validation.yaml")
LINE = re.compile(r"([a-z]+:[a-z-]+)#([a-z_]+)@([a-z]+:[a-z-]+)")


def read(line: str) -> Tuple:
    match = LINE.fullmatch(line.strip())
    assert match is not None, line
    return Tuple(match[1], match[2], match[3])


async def test_every_assertion_holds_on_the_real_spicedb(spicedb: SpiceDb) -> None:
    content = yaml.safe_load(VALIDATION.read_text())
    assert VALIDATION.parent / Path(content["schemaFile"]) == SCHEMA
    rows = [read(line) for line in content["relationships"].splitlines()]
    wanted = {read(line): True for line in content["assertions"]["assertTrue"]}
    wanted |= {read(line): False for line in content["assertions"]["assertFalse"]}
    await spicedb.touch(rows)
    try:
        answers = await spicedb.check([(one.subject, one.relation, one.resource) for one in wanted])
    finally:
        await spicedb.delete(rows)
    wrong = [one for (one, expected), seen in zip(wanted.items(), answers, strict=True) if expected != seen]
    assert wrong == []


def test_every_definition_and_permission_is_asserted() -> None:
    content = yaml.safe_load(VALIDATION.read_text())
    asserted = {read(line) for lines in content["assertions"].values() for line in lines}
    covered = {(one.resource.split(":")[0], one.relation) for one in asserted}
    definitions = re.split(r"^definition ", SCHEMA.read_text(), flags=re.MULTILINE)[1:]
    declared = {
        (text.split(" ")[0], permission)
        for text in definitions
        for permission in re.findall(r"permission ([a-z_]+) =", text)
    }
    assert sorted(declared - covered) == []
