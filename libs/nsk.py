"""The node bearer: `nsk_<env>_<base64url without padding of node id (16 bytes) and node key (32 bytes)>`.

Parsing says nothing about authority.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from uuid import UUID

from libs.custody import Secret, take
from libs.errors import NodeUnauthorized

ID_BYTES = 16
KEY_BYTES = 32
TEXT = re.compile(r"[A-Za-z0-9_-]{64}")
TAG = re.compile(r"[!-^`-~]+")  # printable ASCII but for the underscore, which ends it


@dataclass(frozen=True)
class NodeBearer:
    """A parsed node bearer."""

    environment: str
    node_id: UUID
    key: Secret


def parse(text: str) -> NodeBearer:
    """Read a node bearer; raises NodeUnauthorized for anything that is not exactly one."""
    parts = text.split("_", 2)
    if len(parts) != 3 or parts[0] != "nsk":  # noqa: PLR2004 — as above
        raise NodeUnauthorized("not a node bearer")
    if not TAG.fullmatch(parts[1]) or not TEXT.fullmatch(parts[2]):
        raise NodeUnauthorized("not a node bearer")
    try:
        decoded = take(base64.b64decode(parts[2], altchars=b"-_", validate=True))
    except binascii.Error:
        raise NodeUnauthorized("not a node bearer") from None
    with decoded, memoryview(decoded.reveal()) as raw:
        return NodeBearer(parts[1], UUID(bytes=bytes(raw[:ID_BYTES])), Secret(raw[ID_BYTES:]))


def parse_header(value: str) -> NodeBearer:
    """Read an `Authorization` header with a node bearer (RFC 6750, 2.1)."""
    scheme, _, text = value.partition(" ")
    if scheme.lower() != "bearer":
        raise NodeUnauthorized("not a bearer")
    return parse(text)


def format_bearer(environment: str, node_id: UUID, key: Secret) -> str:
    """Write a node bearer; raises ValueError for what `parse` would not read back."""
    if not TAG.fullmatch(environment) or len(key) != KEY_BYTES:
        raise ValueError("not the parts of a node bearer")
    raw = node_id.bytes + bytes(key.reveal())
    return f"nsk_{environment}_" + base64.urlsafe_b64encode(raw).decode()
