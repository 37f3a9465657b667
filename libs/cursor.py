"""Cursors of lists: opaque, signed with HMAC-SHA256 (RFC 2104), bound to their list and their caller."""

import base64
import hashlib
import hmac
import json
from typing import Any

from libs.custody import Secret
from libs.errors import CursorBindingMismatch, InvalidCursor

TAG = 32


class Cursors:
    """Seals and opens cursors under one key, shared by the replicas of a service."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    def seal(self, of: str, caller: str, position: dict[str, Any]) -> str:
        """Return a cursor for a position in the list `of`."""
        body = json.dumps({"of": of, "by": self._bind(caller), "at": position}, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._tag(body) + body).decode().rstrip("=")

    def open(self, of: str, caller: str, cursor: str) -> dict[str, Any]:
        """Return the position; raises InvalidCursor when altered or another list's, CursorBindingMismatch otherwise."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise InvalidCursor from None
        # Base64 has several spellings of the same bytes; only the one that was sealed is ours.
        if base64.urlsafe_b64encode(raw).decode().rstrip("=") != cursor:
            raise InvalidCursor
        tag, body = raw[:TAG], raw[TAG:]
        if not hmac.compare_digest(tag, self._tag(body)):
            raise InvalidCursor
        content = json.loads(body)
        if content["of"] != of:
            raise InvalidCursor
        if content["by"] != self._bind(caller):
            raise CursorBindingMismatch
        position: dict[str, Any] = content["at"]
        return position

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key.reveal(), b"plexsphere-cursor\0" + body, hashlib.sha256)

    def _bind(self, caller: str) -> str:
        return hmac.digest(self._key.reveal(), b"plexsphere-caller\0" + caller.encode(), hashlib.sha256).hex()[:32]
