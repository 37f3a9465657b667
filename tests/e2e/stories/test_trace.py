"""One trace crosses edge, services and backends, and the correlation id joins answer, log and audit row."""

import asyncio
import json

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.stories.main_job import entries

pytestmark = pytest.mark.e2e


def spans(scene: Scene) -> list[dict[str, str]]:
    logs = scene.story.world.logs()
    return [json.loads(line) for name, text in logs.items() if ".trace." in name for line in text.splitlines()]


async def test_a_secret_read_is_one_trace_from_the_edge_to_the_backends(scene: Scene) -> None:
    answer = await scene.read(scene.story.node_a)
    correlation = answer.headers["X-Correlation-Id"]
    await asyncio.sleep(0.3)
    gateway = scene.story.world.logs()["gateway.log"].decode()
    line = next(json.loads(one) for one in gateway.splitlines() if correlation in one and "trace_id" in one)
    seen = [span for span in spans(scene) if span["trace"] == line["trace_id"]]
    assert {span["service"] for span in seen} >= {"gateway", "secrets", "audit", "identity"}
    names = " ".join(span["name"] for span in seen)
    for hop in (
        "FetchNodeSecret",
        "AuditAppendService/Append",
        "RelationsService/BulkCheck",
        "spicedb.check",
        "bao.",
        "pg.",
    ):
        assert hop in names, hop
    assert sum(not span["parent"] for span in seen) == 1
    scene.story.operator = scene.operator
    assert correlation in {row["correlation_id"] for row in await entries(scene.story)}
