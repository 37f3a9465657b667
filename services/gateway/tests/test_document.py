"""The served document against the published one: responses only narrow, requests only widen."""

import json
from typing import Any

import pytest

from services.gateway.document import FOLDER, METHODS, load, operations

pytestmark = pytest.mark.unit

JSON = dict[str, Any]
PUBLISHED: JSON = json.loads((FOLDER / "published.json").read_text())
SERVED = load("https://edge.test", {"GetHealth", "CreateDomain", "GetNodeEvents"}, "1")


def each() -> list[tuple[JSON, JSON]]:
    return [
        (methods[method], SERVED["paths"][path][method])
        for path, methods in PUBLISHED["paths"].items()
        for method in METHODS
        if method in methods
    ]


def security(document: JSON, operation: JSON) -> set[str]:
    """The alternatives of which one is enough."""
    alternatives: list[JSON] = operation["security"] if "security" in operation else document["security"]
    return {json.dumps(one, sort_keys=True) for one in alternatives}


def names(schemas: JSON, schema: Any, found: set[str]) -> set[str]:
    """Every schema that a schema refers to."""
    if isinstance(schema, list):
        for one in schema:
            names(schemas, one, found)
    elif isinstance(schema, dict):
        if "$ref" in schema and (name := schema["$ref"].rsplit("/", 1)[-1]) not in found:
            found.add(name)
            names(schemas, schemas[name], found)
        for one in schema.values():
            names(schemas, one, found)
    return found


def test_all_84_operations_are_there() -> None:
    assert len(each()) == 84
    assert all(old["operationId"] == new["operationId"] for old, new in each())


def test_responses_only_narrow() -> None:
    schemas = PUBLISHED["components"]["schemas"]
    for old, new in each():
        for status, response in old["responses"].items():
            assert new["responses"][status]["content" if "content" in response else "description"] == (
                response["content"] if "content" in response else response["description"]
            )
            for header in response.get("headers", {}):
                assert header in new["responses"][status]["headers"]
    answered = names(schemas, [one["responses"] for one, _ in each()], set())
    for name in answered:
        old, new = schemas[name], SERVED["components"]["schemas"][name]
        assert set(old.get("required", ())) <= set(new.get("required", ()))
        for member, schema in old.get("properties", {}).items():
            assert new["properties"][member] == schema
        assert old | {"required": 0, "properties": 0} == new | {"required": 0, "properties": 0}


def test_requests_only_widen() -> None:
    schemas = PUBLISHED["components"]["schemas"]
    for before, after in each():
        assert after.get("requestBody") == before.get("requestBody")
        assert security(PUBLISHED, before) <= security(SERVED, after)
        required = {one["name"] for one in after.get("parameters", ()) if one.get("required")}
        assert required <= {one["name"] for one in before.get("parameters", ()) if one.get("required")}
    for name in names(schemas, [one.get("requestBody") for one, _ in each()], set()):
        old, new = schemas[name], SERVED["components"]["schemas"][name]
        assert set(new.get("required", ())) <= set(old.get("required", ()))
        assert new.get("additionalProperties") == old.get("additionalProperties")
        for member, schema in old.get("properties", {}).items():
            assert new["properties"][member] == schema
        for member in set(new.get("properties", ())) - set(old.get("properties", ())):
            assert new["properties"][member]["x-extension"] is True


def test_every_addition_says_that_it_is_one() -> None:
    for path, methods in SERVED["paths"].items():
        for method in METHODS:
            if method in methods and method not in PUBLISHED["paths"].get(path, {}):
                assert methods[method]["x-extension"] is True
    for name in set(SERVED["components"]["schemas"]) - set(PUBLISHED["components"]["schemas"]):
        assert SERVED["components"]["schemas"][name]["x-extension"] is True


def test_a_problem_has_all_seven_members() -> None:
    seven = {"type", "title", "status", "detail", "instance", "code", "correlation_id"}
    schemas = SERVED["components"]["schemas"]
    assert set(schemas["Problem"]["required"]) == seven
    assert set(schemas["PermissionDenied"]["required"]) == seven | {"reason", "relation_path"}
    for name in ("Problem", "PermissionDenied"):
        assert set(schemas[name]["required"]) <= set(schemas[name]["properties"])


def test_what_can_occur_is_declared() -> None:
    for one in operations(SERVED):
        assert 500 in one.statuses
        if one.security and one.id != "DeleteAuthSession":
            assert {401, 429, 503} <= one.statuses, one.id
        if one.body is not None:
            assert {400, 413} <= one.statuses, one.id
    by_id = {one.id: one for one in operations(SERVED)}
    assert 501 in by_id["GetDomain"].statuses
    assert 501 not in by_id["CreateDomain"].statuses


def test_operation_ids_are_unique() -> None:
    ids = [one.id for one in operations(SERVED)]
    assert len(ids) == len(set(ids))
