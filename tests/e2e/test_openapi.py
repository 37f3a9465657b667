"""The served document is true: requests made from it never find a bug, nor an answer outside of its schema."""

import asyncio
import json
import ssl
import urllib.request
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.conftest import operator_token
from tests.e2e.outside import Outside
from tests.e2e.stories.main_job import Story
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
# They end the session that the others need, or stream.
LEFT_OUT = {"PostAuthSignOutGlobal", "DeleteAuthSession", "GetNodeEvents", "AttachSession"}
EXAMPLES = 6


@pytest.fixture(scope="session")
def document(world: World) -> dict[str, Any]:
    trust = ssl.create_default_context(cafile=world.ca_file)
    with urllib.request.urlopen(world.edge_url + "/v1/openapi.json", context=trust) as answer:
        served: dict[str, Any] = json.load(answer)
    return served


async def operators(world: World) -> str:
    async with Outside(world.edge_url, world.ca_file) as outside:
        return await operator_token(outside)


@pytest.mark.parametrize("caller", ["operator", "node", "nobody"])
def test_no_request_finds_a_bug_or_leaves_the_document(
    world: World, set_scene: Story, document: dict[str, Any], caller: str
) -> None:
    token = asyncio.run(operators(world)) if caller == "operator" else ""
    bearer = {"operator": token, "node": set_scene.node_a.bearer, "nobody": ""}[caller]
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    schema = schemathesis.openapi.from_dict(document)
    tried = 0
    results: Any = schema.get_all_operations()
    for result in results:
        operation = result.ok()
        if operation.definition.raw.get("operationId") in LEFT_OUT:
            continue
        tried += 1

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def probe(case: Any) -> None:
            response = case.call(base_url=world.edge_url, headers=headers, verify=world.ca_file)
            declared = "501" in case.operation.definition.raw["responses"]
            if response.status_code != 501 or not declared:
                assert response.status_code < 500, f"{case.method} {case.path}: {response.status_code} {response.text}"
            case.validate_response(response, checks=CHECKS)

        probe()
    assert tried > 80
