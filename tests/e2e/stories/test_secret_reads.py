"""A secret read to the letter of the contract: sizes, versions, headers, and its one row."""

import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.freeze import frozen
from tests.e2e.outside import JSON, Answer, Node, random_secret
from tests.e2e.stories.main_job import action, entries

pytestmark = pytest.mark.e2e

LARGEST = 1024 * 1024 - 28


@dataclass
class Reader:
    """A node with a grant, and the operator who writes what it reads."""

    scene: Scene
    node: Node
    name: str

    @property
    def path(self) -> str:
        return f"/v1/projects/{self.scene.story.project_id}/secrets/{self.name}"

    async def put(self, value: bytes, expected: int = 0) -> Answer:
        """Write a version, and grant the first one."""
        headers = {"If-Match": str(expected), "Content-Type": "application/octet-stream"}
        answer = await self.scene.operator.call("PUT", self.path, value, headers=headers)
        if answer.status == 201:
            granted = await self.scene.operator.call("PUT", f"{self.path}/readers/{self.node.node_id}")
            assert granted.status == 204
        return answer

    async def get(self, query: str = "", **headers: str) -> Answer:
        """Read as the node."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        path = f"/v1/nodes/{self.node.node_id}/secrets/{self.name}{query}"
        return await self.scene.edge.as_bearer(self.node.bearer).call("GET", path, headers=sent)

    async def rows(self, answer: Answer) -> list[JSON]:
        """Return the rows of a read."""
        correlation = answer.headers["X-Correlation-Id"]
        story = replace(self.scene.story, operator=self.scene.operator)
        found = [row for row in await entries(story) if row["correlation_id"] == correlation]
        assert {action(row) for row in found} <= {"secret.read"}
        return found


async def reader(scene: Scene) -> Reader:
    tag = random_secret()[6:14].decode()
    return Reader(scene, await scene.newcomer(f"reads-{tag}"), f"s{tag}")


async def test_the_largest_value_is_read_back_and_one_byte_more_is_not_taken(scene: Scene) -> None:
    one, value = await reader(scene), random_secret() * 20_000
    refused = await one.put(value[: LARGEST + 1])
    assert str(refused) == "413 request_body_too_large"
    assert str(await one.get()) == "404 secret_not_found"
    assert (await one.put(value[:LARGEST])).status == 201
    answer = await one.get()
    assert (answer.status, len(answer.body)) == (200, 1024 * 1024)
    assert one.node.open(answer.body) == value[:LARGEST]
    assert (await one.put(b"", 1)).status == 200
    assert one.node.open((await one.get()).body) == b""


async def test_a_read_is_whole_plain_and_kept_by_nobody(scene: Scene) -> None:
    one, value = await reader(scene), b"compressible" * 500
    await one.put(value)
    plain = await one.get()
    asked: dict[str, dict[str, str]] = {
        "compressed": {"Accept_Encoding": "gzip, deflate, br, zstd, *;q=0.1"},
        "a range": {"Range": "bytes=0-3"},
        "ranges of what it knows": {"Range": "bytes=0-3,8-", "If_Range": '"1"'},
        "unless it is the same": {"If_None_Match": "*", "If_Modified_Since": "Wed, 01 Jan 2098 00:00:00 GMT"},
    }
    for what, headers in asked.items():
        answer = await one.get(**headers)
        assert (answer.status, one.node.open(answer.body)) == (200, value), what
        assert answer.body[:12] != plain.body[:12]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Type"] == "application/octet-stream"
        for absent in ("ETag", "Last-Modified", "Content-Encoding", "Content-Range", "Expires", "Vary"):
            assert absent not in answer.headers, f"{what}: {absent}"


async def test_a_version_is_what_was_asked_for_or_the_current_one(scene: Scene) -> None:
    one, values = await reader(scene), [random_secret() for _ in range(3)]
    for before, value in enumerate(values):
        assert (await one.put(value, before)).status in {200, 201}
    assert (await scene.operator.call("DELETE", f"{one.path}/versions/2")).status == 204
    for query, version in (("", 3), ("?version=1", 1), ("?version=3", 3)):
        answer = await one.get(query)
        assert (answer.headers["X-Plexsphere-Secret-Version"], one.node.open(answer.body)) == (
            str(version),
            values[version - 1],
        )
        assert [(row["reason"], row["decision"]["caveat_context"]["version"]) for row in await one.rows(answer)] == [
            ("granted", [str(version)])
        ]
    for wanted in ("2", "4", "2147483647"):
        missing = await one.get(f"?version={wanted}")
        assert str(missing) == "404 secret_version_not_found"
        (row,) = await one.rows(missing)
        assert (row["reason"], row["decision"]["caveat_context"]["version"]) == ("granted", [wanted])


@pytest.mark.parametrize(
    "query",
    ["=0", "=-1", "=2147483648", "=9" * 30, "=one", "=1.0", "=%2B1", "=01", "=", "=1&version=1", "=0x1", "=1%00"],
)
async def test_what_is_no_version_is_refused_before_anything_is_asked(scene: Scene, query: str) -> None:
    node = scene.story.node_a
    path = f"/v1/nodes/{node.node_id}/secrets/db-password?version{query}"
    answer = await scene.edge.as_bearer(node.bearer).call("GET", path)
    assert str(answer) == "400 invalid_query_parameter"


async def test_a_row_says_who_read_which_version_under_which_key_and_nothing_of_the_value(scene: Scene) -> None:
    one = await reader(scene)
    contexts = []
    for before, value in enumerate((b"short", random_secret() * 1_000)):
        await one.put(value, before)
        answer = await one.get()
        (row,) = await one.rows(answer)
        context: dict[str, Any] = row["decision"]["caveat_context"]
        assert context.pop("version") == [answer.headers["X-Plexsphere-Secret-Version"]]
        assert (row["reason"], row["relation"], row["object"]["type"]) == ("granted", "read", "secret")
        contexts.append((context, row["object"], row["subject"]))
    assert contexts[0] == contexts[1]
    assert contexts[0][0] == {
        "action": ["secret.read"],
        "kid": [answer.headers["X-Plexsphere-Secret-KID"]],
        "node": [one.node.node_id],
        "limiter": ["within_limits"],
    }


@pytest.mark.parametrize(
    ("backend", "code", "rows"), [("openbao", "openbao_unavailable", ["granted"]), ("audit", "audit_unavailable", [])]
)
async def test_what_hangs_is_named_before_the_edge_gives_up(
    scene: Scene, backend: str, code: str, rows: list[str]
) -> None:
    one, value = await reader(scene), random_secret()
    await one.put(value)
    assert (await one.get()).status == 200
    started = time.monotonic()
    async with frozen(scene.story.world, backend):
        answer = await one.get()
    assert time.monotonic() - started < 8
    assert str(answer) == f"503 {code}"
    assert "X-Plexsphere-Secret-KID" not in answer.headers
    # A row that was on its way to a frozen process may still come: it is one too many, and never one too few.
    reasons = [row["reason"] for row in await one.rows(answer)]
    assert reasons == rows or (backend == "audit" and reasons == ["granted"])
