"""The OpenAPI document: the published contract, our extensions, and every status code that can occur, merged at start.

Responses only narrow and requests only widen against the published contract; a test compares the two.
"""

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

JSON = dict[str, Any]

FOLDER = Path(__file__).parent / "openapi"
METHODS = ("get", "put", "post", "delete", "patch")
SAFE = frozenset({"get"})
# Sign-out always succeeds for the caller, so it never answers 401 or 403 and is open to whoever asks.
SIGN_OUT = "DeleteAuthSession"
# Answered from memory: no service behind them can be unavailable.
STATIC = frozenset({"GetVersion", "GetOpenAPI", "GetDocs"})
LIMITED = frozenset(
    {"PostRegister", "PostAuthSignIn", "PostAuthDeviceCode", "PostAuthServiceToken", "PostAuthBackchannelLogout"}
)
JSON_BODY, FORM, OCTETS = "application/json", "application/x-www-form-urlencoded", "application/octet-stream"


@dataclass(frozen=True)
class Operation:
    """One operation of the document, with references resolved."""

    id: str
    method: str
    path: str
    security: tuple[str, ...]
    parameters: tuple[JSON, ...]
    body: JSON | None
    body_required: bool
    statuses: frozenset[int]

    @property
    def media(self) -> str:
        """Media type of the body; empty without one."""
        return next(iter(self.body)) if self.body else ""


def load(public_url: str, provisioned: Collection[str], version: str) -> JSON:
    """Return the served document; operations that are not provisioned declare 501."""
    document: JSON = json.loads((FOLDER / "published.json").read_text())
    extensions: JSON = json.loads((FOLDER / "extensions.json").read_text())
    merge(document, extensions, provisioned)
    document["info"] |= {"title": "plexsphere security core", "x-build": version}
    document["servers"] = [{"url": public_url}]
    return document


def merge(document: JSON, extensions: Mapping[str, Any], provisioned: Collection[str]) -> None:
    """Put the extensions and all statuses into the published document."""
    schemas = document["components"]["schemas"]
    schemas.update(copy.deepcopy(extensions["schemas"]))
    for name, properties in extensions["schema_properties"].items():
        schemas[name]["properties"].update(copy.deepcopy(properties))
    for name, members in extensions["schema_required"].items():
        schemas[name]["required"] = [*schemas[name]["required"], *members]
    for path, methods in extensions["paths"].items():
        document["paths"].setdefault(path, {}).update(copy.deepcopy(methods))
    for path in document["paths"].values():
        for method in METHODS:
            if method in path:
                _complete(document, method, path[method], extensions, provisioned)


def _complete(
    document: JSON, method: str, operation: JSON, extensions: Mapping[str, Any], provisioned: Collection[str]
) -> None:
    name = operation["operationId"]
    if name in extensions["security"]:
        operation["security"] = extensions["security"][name]
    if name in extensions["parameters"]:
        operation["parameters"] = copy.deepcopy(extensions["parameters"][name])
    security = _schemes(operation.get("security", document["security"]))
    wanted = possible(method, operation, security) | set(extensions["statuses"].get(name, ()))
    if name not in provisioned:
        wanted.add("501")
    responses = operation["responses"]
    for status, headers in extensions["headers"].get(name, {}).items():
        responses[status].setdefault("headers", {}).update(copy.deepcopy(headers))
    for status in sorted(wanted - set(responses)):
        schema = "PermissionDenied" if status == "403" else "Problem"
        responses[status] = {
            "description": HTTPStatus(int(status)).phrase,
            "content": {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        }
    for status, header in (("401", "WWW-Authenticate"), ("429", "Retry-After"), ("503", "Retry-After")):
        if status in responses:
            responses[status].setdefault("headers", {}).setdefault(header, {"schema": {"type": "string"}})


def possible(method: str, operation: JSON, security: Collection[str]) -> set[str]:
    """Return the statuses that the edge itself may give to an operation, whatever its handler does."""
    name = operation["operationId"]
    has_body = "requestBody" in operation
    secured = bool(security) and name != SIGN_OUT
    found = {
        "400": has_body or bool(operation.get("parameters")),
        "401": secured,
        "403": secured and "sessionCookie" in security and method not in SAFE,
        "413": has_body,
        "429": secured or name in LIMITED,
        "500": True,
        "503": name not in STATIC,
    }
    return {status for status, can_be in found.items() if can_be}


def operations(document: JSON) -> list[Operation]:
    """Return all operations of the document."""
    found = []
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method not in methods:
                continue
            raw = methods[method]
            body = raw.get("requestBody")
            found.append(
                Operation(
                    id=raw["operationId"],
                    method=method.upper(),
                    path=path,
                    security=_schemes(raw.get("security", document["security"])),
                    parameters=tuple(_resolve(document, parameter) for parameter in raw.get("parameters", ())),
                    body=body["content"] if body else None,
                    body_required=bool(body and body.get("required")),
                    statuses=frozenset(int(status) for status in raw["responses"]),
                )
            )
    return found


def _schemes(security: Any) -> tuple[str, ...]:
    return tuple(name for alternative in security for name in alternative)


def _resolve(document: JSON, parameter: JSON) -> JSON:
    if "$ref" not in parameter:
        return parameter
    value: Any = document
    for part in parameter["$ref"].removeprefix("#/").split("/"):
        value = value[part]
    resolved: JSON = value
    return resolved
