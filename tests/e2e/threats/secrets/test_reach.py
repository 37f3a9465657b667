"""F-6: a node reads what it is granted while it is, and nobody reads it in its place."""

import asyncio
import base64
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.e2e.outside import Answer, Node, random_secret
from tests.e2e.stories.main_job import SECRET_NAME
from tests.e2e.threats.secrets.conftest import Stage, get

pytestmark = pytest.mark.e2e

DENIED = "403 permission_denied"
ROUNDS = 12
# A second when a key is ended, and five when its time ends; three more on a machine that is busy with other things.
HEARD_WITHIN_S, REMEMBERED_FOR_S = 4.0, 8.0


def key_of(node: Node, key: bytes) -> str:
    """Return a bearer of a node with another key."""
    return replace(node, key=key).bearer


# Whose path is asked for, with which bearer, and what comes of it; B has no grant, C is of another Domain.
CROSS: dict[str, tuple[Callable[[Stage], Node], Callable[[Stage], str], str]] = {
    "B as itself": (lambda s: s.story.node_b, lambda s: s.story.node_b.bearer, DENIED),
    "B as A": (lambda s: s.story.node_a, lambda s: s.story.node_b.bearer, "403 node_id_mismatch"),
    "A as B": (lambda s: s.story.node_b, lambda s: s.story.node_a.bearer, "403 node_id_mismatch"),
    "C as A": (lambda s: s.story.node_a, lambda s: s.scene.story.node_a.bearer, "403 node_id_mismatch"),
    "A as C": (lambda s: s.scene.story.node_a, lambda s: s.story.node_a.bearer, "403 node_id_mismatch"),
    "A as nobody": (
        lambda _: Node("", node_id=str(uuid.uuid4())), lambda s: s.story.node_a.bearer, "403 node_id_mismatch",
    ),
    "A with B's key": (
        lambda s: s.story.node_a, lambda s: key_of(s.story.node_a, s.story.node_b.key), "401 nsk_invalid",
    ),
    "A with C's key": (
        lambda s: s.story.node_a, lambda s: key_of(s.story.node_a, s.scene.story.node_a.key), "401 nsk_invalid",
    ),
    "A with nobody's key": (
        lambda s: s.story.node_a, lambda s: key_of(s.story.node_a, os.urandom(32)), "401 nsk_invalid",
    ),
    "A with half a key": (
        lambda s: s.story.node_a, lambda s: key_of(s.story.node_a, s.story.node_a.key[:16]), "401 unauthorized",
    ),
    "the operator as A": (lambda s: s.story.node_a, lambda s: s.scene.token, "401 unauthorized"),
    "a bootstrap token as A": (lambda s: s.story.node_a, lambda s: s.story.bootstrap[0], "401 unauthorized"),
}  # fmt: skip


@pytest.mark.parametrize("case", CROSS)
async def test_nobody_reads_in_anothers_place(stage: Stage, case: str) -> None:
    path, bearer, said = CROSS[case]
    async with stage.accounted() as answers:
        asked = f"/v1/nodes/{path(stage).node_id}/secrets/{SECRET_NAME}"
        answers.append(await get(stage.scene.edge, asked, bearer(stage)))
        assert str(answers[-1]) == said
        if said == DENIED:
            assert (answers[-1].json["reason"], answers[-1].json["relation_path"]) == ("insufficient_relation", [])


async def test_the_same_name_is_another_secret_in_another_domain_or_project(stage: Stage) -> None:
    other = await stage.operate(
        "POST", "/v1/projects", {"domain_id": stage.story.domain_id, "name": "O", "slug": f"o-{uuid.uuid4().hex[:8]}"}
    )
    project = other.json["id"]
    neighbour, foreign = await stage.newcomer(project), stage.scene.story.node_a
    async with stage.accounted() as answers:
        answers.append(await stage.read(neighbour))
        assert str(answers[-1]) == "404 secret_not_found"
        # Nor can it be granted: a reader is of the secret's own project.
        for stranger in (neighbour, foreign):
            path = f"/v1/projects/{stage.story.project_id}/secrets/{SECRET_NAME}/readers/{stranger.node_id}"
            assert (await stage.story.operator.call("PUT", path)).status == 404
        value = random_secret()
        await stage.put(value, 0, project_id=project)
        await stage.grant(neighbour, project_id=project)
        answers.extend([await stage.read(node) for node in (neighbour, stage.story.node_a)])
        assert neighbour.open(answers[-2].body) == value
        assert stage.story.node_a.open(answers[-1].body) == stage.story.value
    theirs = await stage.scene.read(foreign)
    assert foreign.open(theirs.body) == stage.scene.story.value != stage.story.value


async def test_a_revoked_grant_is_refused_at_once_every_time(stage: Stage) -> None:
    node = await stage.newcomer()
    async with stage.accounted() as answers:
        for _ in range(ROUNDS):
            await stage.rest()
            reader = await stage.grant(node)
            answers.append(await stage.read(node))
            assert node.open(answers[-1].body) == stage.story.value
            # Readers that are under way may be granted or not; who asks once the revoke has answered is not.
            under_way = [asyncio.create_task(stage.read(node)) for _ in range(3)]
            await stage.operate("DELETE", reader)
            late = await asyncio.gather(*(stage.read(node) for _ in range(3)))
            assert {str(answer) for answer in late} == {DENIED}
            answers.extend([*late, *await asyncio.gather(*under_way)])


async def dies(stage: Stage, node: Node, answers: list[Answer], within_s: float = HEARD_WITHIN_S) -> None:
    """Read until the key is refused, which it is soon, and then several times at once."""
    began = time.monotonic()
    while not answers or str(answers[-1]) != "401 nsk_revoked":
        assert time.monotonic() - began < within_s
        await stage.rest()
        answers.append(await stage.read(node))
        assert answers[-1].status == 401 or node.open(answers[-1].body)
    late = await asyncio.gather(*(stage.read(node) for _ in range(4)))
    assert {str(answer) for answer in late} == {"401 nsk_revoked"}
    answers.extend(late)


async def test_a_revoked_key_reads_nothing(stage: Stage) -> None:
    node = await stage.newcomer()
    await stage.grant(node)
    async with stage.accounted() as answers:
        answers.append(await stage.read(node))
        assert node.open(answers[-1].body) == stage.story.value
        await stage.operate("POST", f"/v1/nodes/{node.node_id}/secret-key/revoke")
        await dies(stage, node, answers)


async def rotated(stage: Stage, node: Node) -> Node:
    """Renew a node's key."""
    answer = await stage.scene.edge.as_bearer(node.bearer).call("POST", f"/v1/nodes/{node.node_id}/secret-key/rotate")
    assert answer.status == 200, answer.body
    return replace(node, key=base64.b64decode(answer.json["nsk"]))


async def test_an_old_key_reads_for_its_grace_and_never_after_it(stage: Stage) -> None:
    oldest = await stage.newcomer()
    await stage.grant(oldest)
    old = await rotated(stage, oldest)
    async with stage.accounted() as answers:
        # In its grace what is sent is for the key that asked.
        answers.append(await stage.read(oldest))
        assert oldest.open(answers[-1].body) == stage.story.value
        fresh = await rotated(stage, old)
        # Of two old keys only the newer one has a grace.
        await dies(stage, oldest, answers)
        for node in (old, fresh):
            answers.append(await stage.read(node))
            assert node.open(answers[-1].body) == stage.story.value
        kids = {answer.headers["X-Plexsphere-Secret-KID"] for answer in answers if answer.status == 200}
        assert len(kids) == 3
        ends = "UPDATE identity.node_secret_keys SET valid_until = now() WHERE node_id = $1 AND valid_until > now()"
        await stage.dba.execute(ends, old.node_id)
        await dies(stage, old, answers, REMEMBERED_FOR_S)
        await stage.rest()
        answers.append(await stage.read(fresh))
        assert fresh.open(answers[-1].body) == stage.story.value


async def test_a_node_of_a_deleted_project_reads_nothing(stage: Stage) -> None:
    made = await stage.operate(
        "POST", "/v1/projects", {"domain_id": stage.story.domain_id, "name": "D", "slug": f"d-{uuid.uuid4().hex[:8]}"}
    )
    project = made.json["id"]
    node = await stage.newcomer(project)
    value = random_secret()
    await stage.put(value, 0, project_id=project)
    await stage.grant(node, project_id=project)
    async with stage.accounted() as answers:
        answers.append(await stage.read(node))
        assert node.open(answers[-1].body) == value
        refused = await stage.story.operator.call("DELETE", f"/v1/projects/{project}")
        assert str(refused) == "409 project_not_empty"
        await stage.operate("DELETE", f"/v1/resources/{node.handle}")
        await dies(stage, node, answers)
        await stage.operate("DELETE", f"/v1/projects/{project}")
        answers.append(await stage.read(node))
        assert str(answers[-1]) == "401 nsk_revoked"
