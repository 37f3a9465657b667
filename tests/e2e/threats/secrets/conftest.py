"""A Domain whose secrets are attacked, and the account of every byte that left and every row that stands for it."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest
from yarl import URL

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.enrolling import Desk
from tests.e2e.outside import Answer, Edge, Node, Outside
from tests.e2e.stories.main_job import SECRET_NAME, Story, create, issue_tokens, put_secret, register, sign_in
from tests.e2e.world import World

# How many rows an answer may have, by what was answered. Where audit or secrets ended under a request, its row may
# stand although nobody could say so: then a row is one too many, and never one too few.
ROWS: dict[str, tuple[list[str], ...]] = {
    "200": (["granted"],),
    "400 invalid_query_parameter": ([],),
    "401 unauthorized": ([],),
    "401 nsk_invalid": ([],),
    "401 nsk_revoked": ([],),
    "403 node_id_mismatch": ([],),
    "403 permission_denied": (["insufficient_relation"],),
    "404 not_found": ([],),
    "404 secret_not_found": ([],),
    "404 secret_version_not_found": (["granted"],),
    "429 per_node_rate_limited": ([],),
    "429 per_domain_rate_limited": ([],),
    "503 limiter_unavailable": ([],),
    "503 datastore_unavailable": ([],),
    "503 authz_unavailable": ([],),
    "503 audit_unavailable": ([], ["granted"]),
    "503 openbao_unavailable": (["granted"],),
    "503 unavailable": ([], ["granted"]),
}
RELEASING = {"X-Plexsphere-Secret-Version", "X-Plexsphere-Secret-KID"}
LAST = "SELECT coalesce(max(seq), 0) FROM audit.entries WHERE chain = $1"
READS = """
SELECT correlation_id, reason FROM audit.entries
WHERE chain = $1 AND seq > $2 AND context -> 'action' ->> 0 = 'secret.read'
"""
# Whose turn it is in a burst is not what is asked there.
REST = "UPDATE secrets.limit_cells SET tat = '-infinity'"
TOGETHER = 8
READERS = 8
# Half of what a node may, so that more can follow.
AT_ONCE = 5


@dataclass
class Stage:
    """Where secrets are read: node A and the readers have a grant, node B has none."""

    world: World
    scene: Scene
    story: Story
    readers: list[Node]
    dba: asyncpg.Connection

    async def read(self, node: Node, name: str = SECRET_NAME, *, node_id: str = "", query: str = "") -> Answer:
        """Ask for a secret, with a path that goes over the wire as it stands."""
        return await get(self.scene.edge, f"/v1/nodes/{node_id or node.node_id}/secrets/{name}{query}", node.bearer)

    async def burst(self, times: int = AT_ONCE) -> list[Answer]:
        """Let all readers ask at once, each so many times; what is released opens for its reader."""
        nodes = self.readers * times
        answers = await asyncio.gather(*map(self.read, nodes))
        self.opens(answers, nodes)
        return answers

    @asynccontextmanager
    async def bursting(self) -> AsyncIterator["asyncio.Task[list[Answer]]"]:
        """Let all readers read at once; the block begins when some rows are written."""
        await self.rest()
        before = await self.rows()
        asking = asyncio.create_task(self.burst())
        while await self.rows() < before + len(self.readers) and not asking.done():  # noqa: ASYNC110 — another process writes
            await asyncio.sleep(0.002)
        yield asking
        await asking

    async def rows(self) -> int:
        """Return how long the Domain's chain is."""
        return int(await self.dba.fetchval(LAST, self.story.domain_id))

    async def rest(self) -> None:
        """Let the time go by in which limits fill up again."""
        await self.dba.execute(REST)

    async def operate(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Do something as the operator, which must go well."""
        answer = await self.story.operator.call(method, path, body, headers=headers)
        assert answer.status < 300, answer.body
        return answer

    async def put(self, value: bytes, version: int, *, project_id: str = "", name: str = SECRET_NAME) -> None:
        """Write a version of a secret after another one."""
        path = f"/v1/projects/{project_id or self.story.project_id}/secrets/{name}"
        kind = {"If-Match": str(version), "Content-Type": "application/octet-stream"}
        await self.operate("PUT", path, value, **kind)

    async def grant(self, node: Node, *, project_id: str = "", name: str = SECRET_NAME) -> str:
        """Let a node read a secret, and return where that is revoked."""
        path = f"/v1/projects/{project_id or self.story.project_id}/secrets/{name}/readers/{node.node_id}"
        await self.operate("PUT", path)
        return path

    async def newcomer(self, project_id: str = "") -> Node:
        """Register one more node."""
        return await enrol(Desk(self.story.operator, project_id=project_id or self.story.project_id))

    async def reconnect(self) -> None:
        """Connect to the database once more, which may have been killed."""
        self.dba.terminate()
        self.dba = await self.world.superuser()

    async def back(self) -> list[Answer]:
        """Ask until all readers have read, and return all answers: what comes back must never look like a denial."""
        answers: list[Answer] = []

        async def readable() -> bool:
            await self.rest()
            newest = await self.burst(1)
            answers.extend(newest)
            assert {answer.status for answer in newest} <= {200, 503}, [answer.body for answer in newest]
            return all(answer.status == 200 for answer in newest)

        await eventually(readable)
        return answers

    @asynccontextmanager
    async def accounted(self) -> AsyncIterator[list[Answer]]:
        """See that the answers which the block collects are of the contract, and that the chain has exactly their rows.

        Every release has its row, and every row is of an answer here: granted rows are as many as releases, but for
        those whose answer says that something failed behind its row.
        """
        since, answers = await self.rows(), list[Answer]()
        yield answers
        found: dict[str, list[str]] = {}
        for row in await self.dba.fetch(READS, self.story.domain_id, since):
            found.setdefault(row["correlation_id"], []).append(row["reason"])
        for answer in answers:
            rows = found.pop(answer.headers["X-Correlation-Id"], [])
            assert rows in ROWS[str(answer)], f"{answer} has the rows {rows}"
            assert (answer.status == 200) is (answer.headers.keys() >= RELEASING), answer.headers
            assert answer.status == 200 or not RELEASING & answer.headers.keys(), answer.headers
            if answer.status == 200:
                assert answer.headers["Cache-Control"] == "no-store"
            else:
                no_byte(self.story, answer)
        assert found == {}, "rows of reads that nobody made"

    def opens(self, answers: Sequence[Answer], nodes: Sequence[Node]) -> None:
        """See that what was released is for the node that asked."""
        for answer, node in zip(answers, nodes, strict=True):
            assert answer.status != 200 or node.open(answer.body) == self.story.value


async def get(edge: Edge, path: str, bearer: str) -> Answer:
    """Send a path as it stands, with a bearer."""
    return await send(edge.as_bearer(bearer), "GET", path)


async def send(
    edge: Edge, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Send a path as it stands: a client library would tidy it up."""
    url, sent = URL(edge.url + path, encoded=True), edge.caller | (headers or {})
    async with edge.http.request(method, url, data=body, headers=sent, allow_redirects=False) as answer:
        received = {name.decode(): value.decode() for name, value in answer.raw_headers}
        return Answer(answer.status, received, await answer.read())


def no_byte(story: Story, answer: Answer) -> None:
    """See that a refusal is a problem and holds nothing of the value, in clear or under a node's key."""
    assert answer.headers["Content-Type"].startswith("application/problem+json"), answer.headers
    assert set(answer.json) >= {"type", "title", "status", "detail", "instance", "code", "correlation_id"}
    assert story.value not in answer.body
    # Nothing that was sealed hides in what the members say.
    assert answer.body.isascii()
    assert len(answer.body) < 700 + len(answer.json["instance"])


def counted(answers: Sequence[Answer]) -> Counter[str]:
    """Return how often each answer was given."""
    return Counter(map(str, answers))


async def enrol(desk: Desk) -> Node:
    """Adopt a resource and register a node for it."""
    wish, node = await desk.wish(desk.project_id), Node("")
    node.handle = wish["resource_handle"]
    registered = await node.register(desk.operator, desk.project_id, wish["bootstrap_token"])
    assert registered.status == 201, registered.body
    return node


async def enrol_readers(story: Story, operator: Edge, count: int) -> list[Node]:
    """Register nodes and let them read the secret, some at a time."""
    desk, turn = Desk(operator, project_id=story.project_id), asyncio.Semaphore(TOGETHER)

    async def one() -> Node:
        async with turn:
            node = await enrol(desk)
            path = f"/v1/projects/{story.project_id}/secrets/{SECRET_NAME}/readers/{node.node_id}"
            granted = await operator.call("PUT", path)
            assert granted.status == 204, granted.body
            return node

    return await asyncio.gather(*(one() for _ in range(count)))


async def _set_stage(world: World) -> tuple[Story, list[Node]]:
    async with Outside(world.edge_url, world.ca_file) as outside:
        story = Story(world, outside, outside.edge())
        for step in (sign_in, create, issue_tokens, register, put_secret):
            await step(story)
        return story, await enrol_readers(story, story.operator, READERS)


@pytest.fixture(scope="session")
def set_stage(world: World) -> tuple[Story, list[Node]]:
    return asyncio.run(_set_stage(world))


@pytest.fixture
async def stage(world: World, scene: Scene, set_stage: tuple[Story, list[Node]]) -> AsyncIterator[Stage]:
    story, readers = set_stage
    found = Stage(
        world, scene, replace(story, outside=scene.outside, operator=scene.operator), readers, await world.superuser()
    )
    await found.rest()
    yield found
    await found.dba.close()


def configured(config: str, **limits: int) -> str:
    """Return the settings of secrets with other limits."""
    for name, value in limits.items():
        config, changed = re.subn(rf"^{name} = \d+$", f"{name} = {value}", config, flags=re.MULTILINE)
        assert changed, name
    return config
