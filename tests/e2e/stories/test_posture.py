"""A running system reports the posture that docs/security-model.md states, and its document is the served one."""

import pytest

from tests.e2e.conftest import Scene
from tests.test_security_model import rows

pytestmark = pytest.mark.e2e


async def test_the_running_system_reports_the_same_posture(scene: Scene) -> None:
    answer = await scene.operator.call("GET", "/v1/platform/posture")
    assert answer.status == 200, answer.body
    reported = {row["id"]: row["posture"] for row in answer.json["rows"]}
    assert reported == {name: row.cells["posture"] for name, row in rows().items()}
    assert all(bool(row["missing"]) is (row["posture"] == "partial") for row in answer.json["rows"])
