"""What a node is told of its sessions."""

import base64
import datetime
from typing import Any

from libs.clock import rfc3339
from services.access.model import Session, SessionKey


def setup_payload(session: Session, key: SessionKey) -> dict[str, Any]:
    """Return what `session_setup` says: whom to expect, and which key verifies the token. Never the token."""
    return {
        "session_id": str(session.id),
        "domain_id": str(session.domain_id),
        "project_id": str(session.project_id),
        "resource_id": str(session.resource_id),
        "identity_id": str(session.identity_id),
        "kind": session.kind,
        "target": dict(session.target),
        "issued_at": rfc3339(session.issued_at),
        "expires_at": rfc3339(session.expires_at),
        "key_id": key.kid,
        "public_key": base64.b64encode(key.public_key).decode(),
    }


def revoked_payload(session: Session, reason: str, at: datetime.datetime) -> dict[str, Any]:
    """Return what `session_revoked` says."""
    return {
        "session_id": str(session.id),
        "kind": session.kind,
        "revoked_at": rfc3339(at),
        "revoke_reason": reason,
    }
