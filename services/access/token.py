"""Session tokens: JWTs (RFC 7519) whose bytes depend on claims and key alone, so that nobody has to store them."""

import base64
import json
from typing import Any

from libs.canon import NotJson, jcs
from services.access.model import Session

TYPE = "plexsphere-session+jwt"
# The published clients know this name; RFC 9864's `Ed25519` is not sent.
ALGORITHM = "EdDSA"


def claims_of(session: Session, issuer: str, acr: str, amr: tuple[str, ...], auth_time: int) -> str:
    """Return the claims of a session as canonical JSON (RFC 8785); times are Unix seconds."""
    issued = int(session.issued_at.timestamp())
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": str(session.identity_id),
        "aud": f"node:{session.node_id}",
        "jti": str(session.id),
        "iat": issued,
        "nbf": issued,
        "exp": int(session.expires_at.timestamp()),
        "domain_id": str(session.domain_id),
        "project_id": str(session.project_id),
        "resource_id": str(session.resource_id),
        "kind": session.kind,
        "target": session.target,
        "acr": acr,
        "amr": list(amr),
        "auth_time": auth_time,
    }
    return jcs(claims).decode()


def says(claims: str, session: Session) -> bool:
    """Whether stored claims are those of this session.

    They come from a row that a hostile DBA could change, and are about to be signed once more.
    """
    found = json.loads(claims)
    try:
        own = claims_of(session, found["iss"], found["acr"], tuple(found["amr"]), found["auth_time"])
    except (KeyError, TypeError, NotJson):
        return False
    return own == claims


def signing_input(claims: str, kid: str) -> bytes:
    """Return the bytes that are signed (RFC 7515, 5.1)."""
    header = jcs({"alg": ALGORITHM, "kid": kid, "typ": TYPE})
    return b".".join(map(_encoded, (header, claims.encode())))


def assembled(signed: bytes, signature: bytes) -> str:
    """Return the token in compact form."""
    return b".".join((signed, _encoded(signature))).decode()


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
