"""F-2 and F-6 over the wire: no bytes without a row, none for another node, none in bulk."""

import asyncio

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.stories.main_job import SECRET_NAME, action, entries

pytestmark = pytest.mark.e2e


async def rows(scene: Scene) -> list[tuple[str, str]]:
    """Reason and correlation id of every secret read in the chain."""
    scene.story.operator = scene.operator
    found = await entries(scene.story)
    return [(row["reason"], row["correlation_id"]) for row in found if action(row) == "secret.read"]


async def test_a_granted_and_a_denied_read_are_one_row_each(scene: Scene) -> None:
    granted = await scene.read(scene.story.node_a)
    denied = await scene.read(scene.story.node_b)
    assert (granted.status, denied.status) == (200, 403)
    seen = await rows(scene)
    assert seen.count(("granted", granted.headers["X-Correlation-Id"])) == 1
    assert seen.count(("insufficient_relation", denied.headers["X-Correlation-Id"])) == 1


async def test_another_nodes_path_is_refused_with_a_valid_bearer(scene: Scene) -> None:
    answer = await scene.story.node_b.read(scene.edge, SECRET_NAME, scene.story.node_a.node_id)
    assert str(answer) == "403 node_id_mismatch"
    assert scene.story.value not in answer.body


async def test_a_revoked_grant_is_refused_at_once_every_time(scene: Scene) -> None:
    node = await scene.newcomer("revoked-often")
    reader = f"{scene.secret_path}/readers/{node.node_id}"
    for _ in range(5):
        assert (await scene.operator.call("PUT", reader)).status == 204
        assert (await scene.read(node)).status == 200
        assert (await scene.operator.call("DELETE", reader)).status == 204
        assert str(await scene.read(node)) == "403 permission_denied"


async def test_a_deregistered_nodes_bearer_is_worth_nothing(scene: Scene) -> None:
    node = await scene.newcomer("deregistered")
    assert (await scene.operator.call("PUT", f"{scene.secret_path}/readers/{node.node_id}")).status == 204
    assert (await scene.read(node)).status == 200
    listed = await scene.operator.call("GET", f"/v1/projects/{scene.story.project_id}/resources?limit=200")
    resource = next(row["id"] for row in listed.json["items"] if row.get("external_ref") == "deregistered")
    assert (await scene.operator.call("DELETE", f"/v1/resources/{resource}")).status == 204
    assert str(await node.read(scene.edge, SECRET_NAME)) == "401 nsk_revoked"


async def test_bytes_released_are_granted_rows_to_the_unit_while_audit_dies(scene: Scene) -> None:
    node = await scene.newcomer("audit-dies")
    assert (await scene.operator.call("PUT", f"{scene.secret_path}/readers/{node.node_id}")).status == 204
    reads = [asyncio.create_task(node.read(scene.edge, SECRET_NAME)) for _ in range(8)]
    await asyncio.sleep(0.03)
    await scene.story.world.kill("audit")
    try:
        answers = await asyncio.gather(*reads)
        late = await node.read(scene.edge, SECRET_NAME)
    finally:
        await scene.story.world.start("audit")
    assert late.status in {503, 429}
    assert "X-Plexsphere-Secret-KID" not in late.headers
    released = {answer.headers["X-Correlation-Id"] for answer in answers if answer.status == 200}
    assert {answer.status for answer in answers} <= {200, 429, 503}
    granted = {correlation for reason, correlation in await rows(scene) if reason == "granted"}
    assert released <= granted


@pytest.mark.parametrize("backend", ["openbao", "spicedb", "postgres"])
async def test_a_backend_that_is_gone_is_a_refusal_and_comes_back(scene: Scene, backend: str) -> None:
    await scene.read(scene.story.node_a)
    await scene.story.world.kill(backend)
    try:
        answer = await scene.story.node_a.read(scene.edge, SECRET_NAME)
    finally:
        await scene.story.world.start(backend)
    assert answer.status in {503, 429}, answer.body
    assert "X-Plexsphere-Secret-KID" not in answer.headers
    for _ in range(40):
        answer = await scene.read(scene.story.node_a)
        if answer.status == 200:
            return
        assert answer.status == 503, f"{answer}: a dependency that is coming back must never look like a denial"
        await asyncio.sleep(0.25)
    raise AssertionError(f"{backend} is back and the read still answers {answer}")


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "db-password%2f..", "DB-PASSWORD", "db\u2010password", "a" * 64, "db-password%00", "%"]
)
async def test_name_tricks_find_nothing(scene: Scene, name: str) -> None:
    answer = await scene.story.node_a.read(scene.edge, name)
    assert answer.status in {400, 404, 429}
    assert scene.story.value not in answer.body


async def test_head_and_ranges_give_nothing_away(scene: Scene) -> None:
    node = scene.story.node_a
    path = f"/v1/nodes/{node.node_id}/secrets/{SECRET_NAME}"
    head = await scene.edge.as_bearer(node.bearer).call("HEAD", path)
    assert head.status == 405
    assert "X-Plexsphere-Secret-KID" not in head.headers
    ranged = await scene.edge.as_bearer(node.bearer).call("GET", path, headers={"Range": "bytes=0-3"})
    assert ranged.status in {200, 429}
