"""F-6: no trick with a name, a version or a path finds anything."""

import re

import pytest

from tests.e2e.outside import random_secret
from tests.e2e.stories.main_job import SECRET_NAME as NAME
from tests.e2e.threats.secrets.conftest import Stage, send

pytestmark = pytest.mark.e2e

# As they stand on the wire.
NAMES = {
    "parent folder": "..",
    "parent folder, encoded": "%2e%2e",
    "over the parent folder": f"x/../{NAME}",
    "over the parent folder, encoded": f"%2e%2e%2f{NAME}",
    "to the parent folder, encoded": f"{NAME}%2f..",
    "overlong encoding of a dot": f"%c0%ae/{NAME}",
    "slash behind": f"{NAME}/",
    "dot behind": f"{NAME}/.",
    "encoded slash": f"a%2f{NAME}",
    "slash encoded twice": f"a%252f{NAME}",
    "hyphen encoded twice": "db%252dpassword",
    "upper case": "DB-PASSWORD",
    "one upper case": "Db-password",
    "look-alike of a hyphen": "db%E2%80%90password",
    "look-alike of an a": "db-p%D0%B0ssword",
    "full-width letter": "%EF%BD%84b-password",
    "letter that folds to k": "db-pass%E2%84%AA",
    "NUL": f"{NAME}%00",
    "NUL before": f"%00{NAME}",
    "line feed": f"{NAME}%0a",
    "space": f"{NAME}%20",
    "space before": f"%20{NAME}",
    "parameter of a segment": f"{NAME};version=1",
    "encoded query": f"{NAME}%3fversion=1",
    "encoded fragment": f"{NAME}%23",
    "wildcard": "*",
    "pattern of a database": "db%25",
    "quote": "db-password'--",
    "not an encoding": "%zz",
    "half an encoding": f"{NAME}%",
    "not UTF-8": "%ff",
    "63 characters": "a" * 63,
    "64 characters": "a" * 64,
    "8,000 characters": "a" * 8000,
    "none": "",
    "digit first": f"0{NAME}",
    "one character less": NAME[:-1],
    "one character more": f"{NAME}-",
}
BAD, NONE = "400 invalid_query_parameter", "404 secret_version_not_found"
VERSIONS = {
    "0": BAD,
    "-1": BAD,
    "-0": BAD,
    "4": NONE,
    "2147483647": NONE,
    "2147483648": BAD,
    "9223372036854775808": BAD,
    "18446744073709551617": BAD,
    "1" * 500: BAD,
    "2": NONE,
    "": BAD,
    "abc": BAD,
    "latest": BAD,
    "01": BAD,
    "1.0": BAD,
    "1e0": BAD,
    "+1": BAD,
    "%2b1": BAD,
    "0x1": BAD,
    "%201": BAD,
    "1%0a": BAD,
    "1%00": BAD,
    "%D9%A1": BAD,
    "1,3": BAD,
    "1&version=1": BAD,
    "1&version=3": BAD,
    "3&version=1": BAD,
}
SECRETS = "SELECT count(*) FROM secrets.secrets"
SERVED = {"": 3, "?version=3": 3, "?version=1": 1, "?Version=1": 3, "?version%5b%5d=1": 3}


async def test_name_tricks_find_nothing(stage: Stage) -> None:
    async with stage.accounted() as answers:
        for trick, name in NAMES.items():
            await stage.rest()
            answers.append(await stage.read(stage.story.node_a, name))
            assert str(answers[-1]) in {"404 not_found", "404 secret_not_found"}, f"{trick}: {answers[-1]}"


async def test_nobody_writes_a_name_that_nobody_could_read(stage: Stage) -> None:
    before = await stage.dba.fetchval(SECRETS)
    for trick, name in NAMES.items():
        if not re.fullmatch("[a-z][a-z0-9_-]{0,62}", name):
            path = f"/v1/projects/{stage.story.project_id}/secrets/{name}"
            refused = await send(stage.scene.operator, "PUT", path, random_secret(), {"If-Match": "0"})
            assert refused.status in {400, 404, 405}, f"{trick}: {refused} {refused.body!r}"
            assert refused.code
    assert await stage.dba.fetchval(SECRETS) == before


async def test_a_name_is_the_same_one_however_it_is_encoded(stage: Stage) -> None:
    """What RFC 3986, section 2.3, calls equivalent is one name with one row each, and nothing else is."""
    async with stage.accounted() as answers:
        for name in (NAME, "%64b-password", "db%2Dpassword", "db%2dpassword"):
            answers.append(await stage.read(stage.story.node_a, name))
            assert stage.story.node_a.open(answers[-1].body) == stage.story.value


async def test_version_tricks_find_no_other_version(stage: Stage) -> None:
    """Version 2 was destroyed, 3 is the current one."""
    node, name = stage.story.node_a, "versions"
    values = [random_secret() for _ in range(3)]
    for before, value in enumerate(values):
        await stage.put(value, before, name=name)
    await stage.grant(node, name=name)
    path = f"/v1/projects/{stage.story.project_id}/secrets/{name}/versions/2"
    await stage.operate("DELETE", path)
    async with stage.accounted() as answers:
        for version, said in VERSIONS.items():
            await stage.rest()
            answers.append(await stage.read(node, name, query=f"?version={version}"))
            assert str(answers[-1]) == said, version
        for query, current in SERVED.items():
            await stage.rest()
            answers.append(await stage.read(node, name, query=query))
            assert answers[-1].headers["X-Plexsphere-Secret-Version"] == str(current)
            assert node.open(answers[-1].body) == values[current - 1]


async def test_a_destroyed_secret_is_as_one_that_never_was(stage: Stage) -> None:
    node, name, value = stage.story.node_a, "destroyed", random_secret()
    await stage.put(value, 0, name=name)
    await stage.grant(node, name=name)
    async with stage.accounted() as answers:
        answers.append(await stage.read(node, name))
        assert node.open(answers[-1].body) == value
        await stage.operate("DELETE", f"/v1/projects/{stage.story.project_id}/secrets/{name}")
        for query in ("", "?version=1", "?version=2"):
            answers.append(await stage.read(node, name, query=query))
            assert str(answers[-1]) == "404 secret_not_found"
        # A new one of that name is another secret: nobody reads it by a grant of the old one.
        await stage.put(random_secret(), 0, name=name)
        for query in ("", "?version=1"):
            answers.append(await stage.read(node, name, query=query))
            assert str(answers[-1]) == "403 permission_denied"


async def test_head_ranges_and_conditions_give_nothing_away(stage: Stage) -> None:
    node, path = stage.story.node_a, f"/v1/nodes/{stage.story.node_a.node_id}/secrets/{NAME}"
    edge = stage.scene.edge.as_bearer(node.bearer)
    async with stage.accounted() as answers:
        for method in ("HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE"):
            refused = await edge.call(method, path)
            assert refused.status == 405, method
            assert "X-Plexsphere-Secret-KID" not in refused.headers
        for headers in ({"Range": "bytes=0-3"}, {"If-None-Match": "*"}, {"If-Modified-Since": "now"}):
            answers.append(await edge.call("GET", path, headers=headers))
            assert node.open(answers[-1].body) == stage.story.value
            assert not {"ETag", "Last-Modified", "Content-Range"} & answers[-1].headers.keys()
