"""Session tokens: JWTs (RFC 7519) whose bytes depend on claims and key alone, so that nobody has to store them."""

import base64
import hashlib
import hmac
import json
from typing import Any

from libs.canon import NotJson, jcs
from libs.custody import Secret
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


def login_in(session: Session, issuer: str) -> tuple[str, tuple[str, ...], int] | None:
    """Return `acr`, `amr` and `auth_time` of a session's stored claims; None when they are not this session's.

    They come from a row that a hostile DBA could change, and are about to be signed once more.
    """
    try:
        found = json.loads(session.claims)
        login = (found["acr"], tuple(found["amr"]), found["auth_time"])
        return login if claims_of(session, issuer, *login) == session.claims else None
    except (ValueError, KeyError, TypeError, NotJson, RecursionError):
        return None


class Seals:
    """Seals claims with HMAC-SHA256 (RFC 2104): who holds the database alone can write none that are signed again."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    def of(self, claims: str, kid: str) -> bytes:
        """Return the seal of claims under the id of the key that signs them."""
        message = b"plexsphere-claims\0" + signing_input(claims, kid)
        return hmac.digest(self._key.reveal(), message, hashlib.sha256)

    def fits(self, session: Session) -> bool:
        """Whether a session's claims and key are what was sealed."""
        return hmac.compare_digest(self.of(session.claims, session.kid), session.seal)


def signing_input(claims: str, kid: str) -> bytes:
    """Return the bytes that are signed (RFC 7515, 5.1)."""
    header = jcs({"alg": ALGORITHM, "kid": kid, "typ": TYPE})
    return b".".join(map(_encoded, (header, claims.encode())))


def assembled(signed: bytes, signature: bytes) -> str:
    """Return the token in compact form."""
    return b".".join((signed, _encoded(signature))).decode()


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
