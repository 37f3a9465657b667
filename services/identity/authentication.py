"""Who a credential belongs to: the one place where cookies, tokens and node bearers are believed."""

import datetime
import hashlib
import hmac
import re
from dataclasses import dataclass
from uuid import UUID

from libs import nsk
from libs.clock import Clock
from libs.errors import NskInvalid, NskRevoked, Unauthenticated
from libs.principal import AssertionSigner, Principal
from services.identity.ports import Authority
from services.identity.sign_in_model import NodeKey, Session, digest
from services.identity.sign_in_ports import SignInStore
from services.identity.token_model import API_TOKEN, SERVICE_TOKEN, ApiToken, ServiceToken, well_formed
from services.identity.token_ports import TokenStore

IDLE_FOR = datetime.timedelta(minutes=30)
ACCESS_TOKEN = re.compile(r"pat_(dev|stage|prod)_[A-Za-z0-9_-]{43}")
COOKIE = re.compile(r"[A-Za-z0-9_-]{43}")
# Compared where a node is not known, so that it takes as long. No SHA-256 of a key is known to be this.
NOBODY = NodeKey(UUID(int=0), None, UUID(int=0), "", bytes(32), live=False)


def person_principal(session: Session, credential: str) -> Principal:
    """Return the principal behind a session or access token."""
    return Principal(
        subject=str(session.person.id),
        kind="user",
        credential=credential,
        domain_id=str(session.person.domain_id or ""),
        acr=session.login.acr,
        amr=session.login.amr,
        auth_time=session.login.auth_time,
        session_id=str(session.id),
    )


def token_principal(token: ApiToken | ServiceToken | None, credential: str) -> Principal | None:
    """Return the principal behind an API or service token: its owner within its scope, and never strongly so."""
    if token is None:
        return None
    return Principal(
        subject=str(token.owner.id),
        kind=token.owner.kind,
        credential=credential,
        domain_id=str(token.owner.domain_id or ""),
        session_id=str(token.id),
        scope=token.scope,
    )


@dataclass(frozen=True)
class Authentication:
    """Turns credentials into assertions, in one round trip to the database each."""

    store: SignInStore
    tokens: TokenStore
    authority: Authority
    signer: AssertionSigner
    clock: Clock

    async def session_cookie(self, value: str, audience: str) -> tuple[str, datetime.datetime]:
        """Return an assertion for whoever holds a session."""
        now = self.clock.now()
        session = None
        if COOKIE.fullmatch(value):
            session = await self.store.use_session(digest(value), now, now - IDLE_FOR)
        if session is None:
            raise Unauthenticated
        return self.signer.sign(person_principal(session, "session"), audience)

    async def operator_bearer(self, value: str, audience: str) -> tuple[str, datetime.datetime]:
        """Return an assertion for whoever holds an access token, an API token or a service token."""
        now, principal = self.clock.now(), None
        if ACCESS_TOKEN.fullmatch(value):
            session = await self.store.use_token(digest(value), now)
            principal = person_principal(session, "access_token") if session else None
        elif well_formed(value, API_TOKEN):
            principal = token_principal(await self.tokens.use_api_token(digest(value), now), "api_token")
        elif well_formed(value, SERVICE_TOKEN):
            principal = token_principal(await self.tokens.use_service_token(digest(value), now), "service_token")
        if principal is None:
            raise Unauthenticated
        return self.signer.sign(principal, audience)

    async def node_bearer(self, value: str, audience: str) -> tuple[str, datetime.datetime]:
        """Return an assertion for a node."""
        return self.signer.sign(await self.node(value), audience)

    async def node_with_standing(
        self, value: str, audience: str
    ) -> tuple[tuple[str, datetime.datetime], Principal, bool]:
        """Return an assertion for a node, who it is, and whether it is its own agent: all that a stream needs."""
        principal = await self.node(value)
        this = f"node:{principal.node_id}"
        decision = await self.authority.decide(this, "node-agent", this)
        return self.signer.sign(principal, audience), principal, decision.granted

    async def node(self, value: str) -> Principal:
        """Return the principal behind a node bearer; the key is compared by its SHA-256, in constant time."""
        bearer = nsk.parse(value)
        with bearer.key:
            fingerprint = hashlib.sha256(bearer.key.reveal()).digest()
        # By node and not by fingerprint: an index would compare byte by byte, and tell how many were right.
        keys = await self.store.node_keys(bearer.node_id, self.clock.now())
        known = None
        for key in keys or [NOBODY]:
            if hmac.compare_digest(key.fingerprint, fingerprint):
                known = key
        if known is None:
            raise NskInvalid
        if not known.live or known.project_id is None:
            raise NskRevoked(domain_id=str(known.domain_id))
        return Principal(
            subject=str(known.node_id),
            kind="node",
            credential="node_key",
            domain_id=str(known.domain_id),
            node_id=str(known.node_id),
            project_id=str(known.project_id),
            nsk_kid=known.kid,
            nsk_digest=fingerprint.hex(),
            secret_limits=known.secret_limits,
        )
