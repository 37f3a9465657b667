"""Requests against the served document: parameters and bodies, compiled once at start."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from libs import errors
from libs.clock import parse_rfc3339
from services.gateway.bodies import require_storable
from services.gateway.document import JSON, OCTETS, Operation

FORMATS = FormatChecker(formats=())
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
TIME_TEXT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9:]{8}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})")
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
BOUNDS = {"int32": 2**31, "int64": 2**63}
# No request line is longer.
LONGEST_PARAMETER = 8190
# OAuth and OpenID Connect have their endpoints ignore what they do not know (RFC 6749, section 3.2).
OPEN_BODIES = frozenset(
    {"PostAuthDeviceCode", "PostAuthDeviceToken", "PostAuthServiceToken", "PostAuthBackchannelLogout"}
)
# A name that cannot be costs a node what any other does, and gets the same answer.
LEFT_TO_SERVICE = ("GetNodeSecret", "name")
IMMUTABLE_SLUG = frozenset({"PatchDomain", "PatchProject"})


@FORMATS.checks("uuid")
def is_uuid(value: object) -> bool:
    """Say whether a text is a UUID."""
    return not isinstance(value, str) or UUID_TEXT.fullmatch(value) is not None


@FORMATS.checks("date-time", raises=(ValueError, OverflowError))
def is_time(value: object) -> bool:
    """Say whether a text is an RFC 3339 time."""
    if not isinstance(value, str):
        return True
    return TIME_TEXT.fullmatch(value) is not None and parse_rfc3339(value.upper()) is not None


@FORMATS.checks("uri", raises=ValueError)
def is_uri(value: object) -> bool:
    """Say whether a text is an absolute URI with a host."""
    if not isinstance(value, str):
        return True
    parts = urlsplit(value)
    return bool(parts.scheme and parts.hostname) and value.isascii() and not re.search(r"\s", value)


@FORMATS.checks("int32")
def is_int32(value: object) -> bool:
    """Say whether a number fits 32 bits."""
    return not isinstance(value, int) or -BOUNDS["int32"] <= value < BOUNDS["int32"]


@FORMATS.checks("int64")
def is_int64(value: object) -> bool:
    """Say whether a number fits 64 bits."""
    return not isinstance(value, int) or -BOUNDS["int64"] <= value < BOUNDS["int64"]


@dataclass(frozen=True)
class Rules:
    """What one operation asks of its requests."""

    operation: Operation
    body: Draft202012Validator | None
    parameters: Mapping[tuple[str, str], Draft202012Validator]

    def path(self, raw: Mapping[str, str]) -> dict[str, Any]:
        """Return the path parameters; ids in canonical form."""
        taken = {}
        for parameter in self.operation.parameters:
            name = parameter["name"]
            if parameter["in"] == "path":
                unseen = (self.operation.id, name) == LEFT_TO_SERVICE
                taken[name] = raw[name] if unseen else self._value(parameter, raw[name], self._bad_path)
        return taken

    def query(self, raw: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Return the query parameters that were given, or their defaults; unknown ones are ignored."""
        given: dict[str, str] = {}
        for name, value in raw:
            if name in given and ("query", name) in self.parameters:
                raise errors.InvalidQuery(f"{name} occurs twice")
            given[name] = value
        taken: dict[str, Any] = {}
        for parameter in self.operation.parameters:
            name = parameter["name"]
            if parameter["in"] != "query":
                continue
            if name in given:
                taken[name] = self._value(parameter, given[name], bad_query)
            elif parameter.get("required"):
                raise errors.InvalidQuery(f"{name} is missing")
            elif "default" in parameter["schema"]:
                taken[name] = parameter["schema"]["default"]
        return taken

    def _value(self, parameter: JSON, text: str, refuse: Callable[[str], errors.PlexError]) -> Any:
        name, schema = parameter["name"], parameter["schema"]
        value: Any = text
        try:
            require_storable(text)
        except errors.InvalidRequest:
            raise refuse(name) from None
        if schema.get("type") == "integer":
            if not INTEGER.fullmatch(text):
                raise refuse(name)
            value = int(text)
            if not is_int64(value) or (schema.get("format") != "int64" and not is_int32(value)):
                raise refuse(name)
        elif len(text) > LONGEST_PARAMETER:
            raise refuse(name)
        if not self.parameters[parameter["in"], name].is_valid(value):
            raise refuse(name)
        return str(UUID(text)) if schema.get("format") == "uuid" else value

    def _bad_path(self, name: str) -> errors.PlexError:
        # Where the published contract knows no 400, an id that cannot exist is an id that does not.
        if self.operation.id in NO_BAD_PATH:
            return errors.NotFound()
        return errors.InvalidPath(f"{name} is not valid")

    def check_body(self, value: Any) -> None:
        """Raise the operation's refusal of a body that does not match its schema, naming the member."""
        if self.operation.id in IMMUTABLE_SLUG and isinstance(value, dict) and "slug" in value:
            raise errors.SlugImmutable
        if self.operation.method == "PATCH" and value == {}:
            raise errors.EmptyPatch
        if self.body is None:
            return
        found = min(self.body.iter_errors(value), key=_rank, default=None)
        if found is not None:
            raise refusal(self.operation.id, found)


def bad_query(name: str) -> errors.PlexError:
    """Return the refusal of a query parameter."""
    kinds: dict[str, type[errors.PlexError]] = {"limit": errors.InvalidLimit, "cursor": errors.InvalidCursor}
    return kinds[name]() if name in kinds else errors.InvalidQuery(f"{name} is not valid")


# Operations whose published form has 404 and no 400 for their path.
NO_BAD_PATH = frozenset(
    {
        "DeleteAuthTokenByID", "PostAuthTokenRotate", "GetAdminIdPByID", "DeleteAdminIdPByID", "DeleteAdminTokenByID",
        "PostAdminTokenRotate", "GetNodeState", "GetNodeSecret", "GetNodeReachability", "PostNodeKeysRotate",
        "GetNodeKeysRotatePreview", "GetBootstrapTokenMetadata", "RevokeBootstrapToken", "GetResource", "AttachSession",
    }
)  # fmt: skip


def _rank(error: ValidationError) -> tuple[bool, bool, list[str]]:
    # Registration checks the key before anything else, so its refusal comes first.
    path = [str(part) for part in error.absolute_path]
    return path != ["public_key"], error.validator == "additionalProperties", path


def body_error(operation: str) -> type[errors.PlexError]:
    """Return what an operation calls a body that is not valid."""
    return errors.MalformedHeartbeat if operation == "PostNodeHeartbeat" else errors.InvalidRequest


def refusal(operation: str, found: ValidationError) -> errors.PlexError:
    """Return the operation's refusal for what its schema found; it names the member and never the value."""
    path = [str(part) for part in found.absolute_path]
    member = ".".join(path)[:128] or "the body"
    rule = str(found.validator)
    if rule == "required":
        wanted, instance = cast("list[str]", found.validator_value), cast("JSON", found.instance)
        absent = next((name for name in wanted if name not in instance), "")
        member, rule = ".".join([*path, absent]), "missing"
    elif rule == "additionalProperties" and found.validator_value is False:
        unknown = min(set(cast("JSON", found.instance)) - set(cast("JSON", found.schema)["properties"]))
        member, rule = ".".join([*path, unknown[:64]])[-128:], "unknown"
    told = {"missing": "is missing", "unknown": "is not known here"}
    detail = f"{member} {told.get(rule, f'does not have the right {rule}')}"
    if operation == "PostRegister":
        if path == ["public_key"]:
            return errors.PublicKeyInvalid()
        if rule in {"format", "pattern", "minLength", "maxLength"}:
            return errors.Unprocessable(detail)
    if operation == "PostNodeHeartbeat" and rule in {"minLength", "maxLength", "missing"}:
        if member == "binary_checksum":
            return errors.BinaryChecksumEmpty()
        if member == "binary_version":
            return errors.BinaryVersionEmpty()
    kind = body_error(operation)
    if operation == "IssueSession" and path == ["target"] and rule == "unknown":
        kind = errors.InvalidTarget
    if operation in {"CreateDomain", "PatchDomain"} and member.startswith("reachability"):
        kind = errors.InvalidReachabilityPolicy
    return kind(detail)


def closed(schema: Any) -> Any:
    """Return a schema whose objects have no other members than those that it names, at any depth."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # A limit that is ignored for a slip of the pen is no limit: a role without its caveat never ends.
    shut = {"additionalProperties": False} if schema.get("type") == "object" and "properties" in schema else {}
    return shut | {name: closed(part) for name, part in schema.items()}


def compile_rules(document: JSON, wanted: Iterable[Operation]) -> list[Rules]:
    """Return the rules of operations."""
    components: JSON = document["components"]
    shut = closed(components)

    def validator(schema: JSON, components: JSON = components) -> Draft202012Validator:
        return Draft202012Validator({"allOf": [schema], "components": components}, format_checker=FORMATS)

    def compiled(operation: Operation) -> Rules:
        body = None
        if operation.body is not None and operation.media != OCTETS:
            schema = operation.body[operation.media]["schema"]
            body = validator(schema) if operation.id in OPEN_BODIES else validator(closed(schema), shut)
        parameters = {
            (parameter["in"], parameter["name"]): validator(parameter["schema"]) for parameter in operation.parameters
        }
        return Rules(operation, body, parameters)

    return [compiled(operation) for operation in wanted]
