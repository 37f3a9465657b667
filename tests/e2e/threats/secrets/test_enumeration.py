"""F-2: names cannot be found out. What a node may not know of costs, answers and asks the same, whatever it is."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from tests.e2e.attacker import eventually
from tests.e2e.conftest import Scene
from tests.e2e.enrolling import Desk
from tests.e2e.outside import Answer, Edge, Node, random_secret
from tests.e2e.stories.main_job import entries
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

# All as long as each other, as a client sends them, so that no header tells them apart either.
NEVER = "never-ex"
NAMES = {
    "another Domain's": "domain-2",
    "another project's": "projec-2",
    "destroyed": "destroyd",
    "upper case": "UPPER-CA",
    "a slash": "a%2Fbcde",
    "NUL": "abcde%00",
    "not UTF-8": "abcde%FF",
    "a digit first": "1-abcdef",
}
OCTETS = {"If-Match": "0", "Content-Type": "application/octet-stream"}
FETCH = "secrets /plexsphere.secrets.v1.SecretsService/FetchNodeSecret"
OWN = {"X-Correlation-Id", "Date"}


@dataclass
class Prober:
    """A node that asks for names, and what its questions did inside."""

    scene: Scene
    node: Node
    asked: dict[str, Answer] = field(default_factory=dict)

    async def ask(self, name: str) -> Answer:
        """Ask for a name, waiting for the limits."""
        answer = await self.node.read(self.scene.edge, name)
        while answer.status == 429:
            await asyncio.sleep(int(answer.headers["Retry-After"]))
            answer = await self.node.read(self.scene.edge, name)
        return answer

    async def asked_for(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        """Ask for a name, and return the answer without what is of this request alone."""
        # So that the edge knows the node each time.
        await self.ask(NEVER)
        answer = self.asked[name] = await self.ask(name)
        body = answer.body.replace(name.encode(), b"*").replace(answer.headers["X-Correlation-Id"].encode(), b"*")
        return answer.status, body, {key: value for key, value in answer.headers.items() if key not in OWN}

    async def steps(self, name: str) -> list[str]:
        """Return what every process did for a question, in its order."""
        world, correlation = self.scene.story.world, self.asked[name].headers["X-Correlation-Id"]
        found: list[str] = []

        async def written() -> bool:
            found[:] = spans(world, correlation)
            # Both end with the answer, and everything else before them.
            return {"gateway GetNodeSecret", FETCH} <= set(found)

        await eventually(written, 5)
        return found


def spans(world: World, correlation: str) -> list[str]:
    """Return service and name of all spans of a request, in the order in which they began."""
    logs = world.logs()
    line = next((one for one in logs["gateway.log"].splitlines() if correlation.encode() in one), b"{}")
    trace = json.loads(line).get("trace_id", "no trace")
    rows = [
        json.loads(one)
        for name, text in logs.items()
        if ".trace." in name
        for one in text.splitlines()
        if trace.encode() in one
    ]
    return [f"{row['service']} {row['name']}" for row in sorted(rows, key=lambda row: row["start"])]


async def put(operator: Edge, project: str, name: str) -> None:
    """Store a value under a name that is free."""
    path = f"/v1/projects/{project}/secrets/{name}"
    stored = await operator.call("PUT", path, random_secret(), headers=OCTETS)
    assert stored.status == 201, stored.body


@pytest_asyncio.fixture
async def prober(scene: Scene) -> Prober:
    """A node, and secrets wherever it may not look."""
    operator, story = scene.operator, scene.story
    body = {"domain_id": story.domain_id, "name": "Next", "slug": f"next-{random_secret()[6:14].decode()}"}
    neighbour = await operator.call("POST", "/v1/projects", body)
    assert neighbour.status == 201, neighbour.body
    elsewhere = await Desk.open(operator)
    await put(operator, neighbour.json["id"], NAMES["another project's"])
    await put(operator, elsewhere.project_id, NAMES["another Domain's"])
    await put(operator, story.project_id, NAMES["destroyed"])
    gone = await operator.call("DELETE", f"/v1/projects/{story.project_id}/secrets/{NAMES['destroyed']}")
    assert gone.status == 204
    return Prober(scene, await scene.newcomer(f"prober-{random_secret()[6:14].decode()}"))


async def test_what_a_node_may_not_know_of_is_the_same_to_the_byte_and_to_the_query(prober: Prober) -> None:
    expected = await prober.asked_for(NEVER)
    assert expected[0] == 404
    assert prober.asked[NEVER].code == "secret_not_found"
    steps = await prober.steps(NEVER)
    inside = [step for step in steps if step.startswith("secrets ")]
    queries = ("spend", "spend_all", "find_secret", "find_secrets")
    assert inside == [FETCH, *(f"secrets pg.{query}" for query in queries)]
    for what, name in NAMES.items():
        assert await prober.asked_for(name) == expected, what
        assert await prober.steps(name) == steps, what
    # A name of any length, too, although what comes back quotes it.
    long = await prober.ask("a" * 2_000)
    assert str(long) == str(prober.asked[NEVER])
    # Nothing was authorised, so nothing is in the chain.
    prober.scene.story.operator = prober.scene.operator
    recorded = {row["correlation_id"] for row in await entries(prober.scene.story)}
    assert not recorded & {answer.headers["X-Correlation-Id"] for answer in prober.asked.values()}


@pytest.mark.parametrize("name", [NEVER, NAMES["upper case"]])
async def test_a_name_that_is_not_there_costs_what_a_read_does(scene: Scene, name: str) -> None:
    node = await scene.newcomer(f"costs-{random_secret()[6:14].decode()}")
    answers = await asyncio.gather(*(node.read(scene.edge, name) for _ in range(30)))
    assert {str(answer) for answer in answers} == {"404 secret_not_found", "429 per_node_rate_limited"}


async def test_head_says_the_same_of_everything(prober: Prober) -> None:
    node = prober.node
    edge = prober.scene.edge.as_bearer(node.bearer)
    seen = set()
    for name in ("db-password", NEVER, *NAMES.values()):
        answer = await edge.call("HEAD", f"/v1/nodes/{node.node_id}/secrets/{name}")
        size = int(answer.headers.pop("Content-Length")) - len(name)
        shown = {key: value for key, value in answer.headers.items() if key not in OWN}
        seen.add((answer.status, answer.body, size, json.dumps(shown, sort_keys=True)))
    assert len(seen) == 1
    assert seen.pop()[0] == 405
