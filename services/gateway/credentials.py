"""Who is calling: the credential is taken from the request, verified by identity, and its assertion kept briefly."""

import base64
import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web

from libs import nsk
from libs.errors import Forbidden, Unauthenticated
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import sign_in_pb2 as pb
from plexsphere.identity.v1 import sign_in_pb2_grpc as stubs
from services.gateway.document import Operation
from services.gateway.limits import AddressLimit

SESSION_COOKIE = "plexsphere_session"
CSRF_COOKIE = "plexsphere_csrf"
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")
KEPT_S = 5.0
# Beats come every quarter of a second; what was revoked unheard is believed for no longer than this.
FEED_SILENT_S = 0.8
MOST_KEPT = 20_000
# The published contract has no security of their own for these two, but their caller is the node.
NODE_OPERATIONS = frozenset({"GetNodeEvents", "GetNodeState"})


# The published contract has a refusal of its own for an API token that is shown as a cookie here.
SIGN_OUT_EVERYWHERE = "PostAuthSignOutGlobal"


@dataclass(frozen=True)
class Credential:
    """What was presented; the value is never in a repr."""

    kind: pb.CredentialKind.ValueType
    value: str = field(repr=False)
    node: nsk.NodeBearer | None = None

    @property
    def by_cookie(self) -> bool:
        """Whether a browser sent it by itself."""
        return self.kind == pb.CREDENTIAL_KIND_SESSION_COOKIE


def present(operation: Operation, request: web.Request) -> Credential:
    """Return the credential of a kind that the operation accepts; raises Unauthenticated where there is none."""
    header = request.headers.get("Authorization", "")
    if operation.security == ("nskBearer",) or operation.id in NODE_OPERATIONS:
        # Parsing the header is what tells a node bearer; identity says whether it is one of ours.
        node = nsk.parse_header(header)
        # The one handler that needs the key takes it from the header again, so that no other path has one to wipe.
        node.key.wipe()
        return Credential(pb.CREDENTIAL_KIND_NODE_BEARER, header.partition(" ")[2], node)
    if header and "operatorBearer" in operation.security:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not TOKEN.fullmatch(token) or token.startswith("nsk_"):
            raise Unauthenticated("an operator's bearer is needed")
        return Credential(pb.CREDENTIAL_KIND_OPERATOR_BEARER, token)
    cookie = request.cookies.get(SESSION_COOKIE, "")
    if operation.id == SIGN_OUT_EVERYWHERE and cookie.startswith("psk_"):
        raise Forbidden("an API token is not a session", reason="caveat_violation")
    if "sessionCookie" in operation.security and TOKEN.fullmatch(cookie):
        return Credential(pb.CREDENTIAL_KIND_SESSION_COOKIE, cookie)
    raise Unauthenticated


def presented(operation: Operation, request: web.Request) -> bool:
    """Whether a request has something where `present` looks for a credential."""
    cookie = "sessionCookie" in operation.security and SESSION_COOKIE in request.cookies
    return cookie or "Authorization" in request.headers


@dataclass(frozen=True)
class Standing:
    """Where a node stands, as identity decided it with its authentication."""

    domain_id: str
    project_id: str
    agent: bool


class Key(NamedTuple):
    """What an assertion is kept under: the credential as what it was believed, and for which service."""

    kind: pb.CredentialKind.ValueType
    digest: str
    audience: str


@dataclass(frozen=True)
class Kept:
    """An assertion, whom it is about, of which Domain, and until when it may be used again (monotonic seconds)."""

    assertion: str = field(repr=False)
    digest: str
    subjects: frozenset[str]
    domain_id: str
    until: float
    standing: Standing | None = None


@dataclass
class AssertionCache:
    """Assertions of the last five seconds; empty and closed while the revocation feed is silent.

    The credential's kind is part of the key: what was believed as a cookie is not a bearer.
    """

    clock: Callable[[], float] = time.monotonic
    generation: int = 0
    _heard: float = float("-inf")
    _kept: OrderedDict[Key, Kept] = field(default_factory=OrderedDict)
    _standings: OrderedDict[str, Kept] = field(default_factory=OrderedDict)

    @property
    def open(self) -> bool:
        """Whether the feed was heard within the last seconds."""
        return self.clock() - self._heard <= FEED_SILENT_S

    def heard(self) -> None:
        """Note that the feed is alive; what was fetched while it was not may have been revoked unheard."""
        if not self.open:
            self.generation += 1
        self._heard = self.clock()

    def close(self) -> None:
        """Forget everything; a lost feed may have had a revocation in it."""
        self._heard = float("-inf")
        self.forget(lambda _: True)

    def get(self, key: Key) -> str | None:
        """Return a kept assertion that may be used again."""
        kept = self._kept.get(key)
        return kept.assertion if kept and self.open and self.clock() < kept.until else None

    def standing(self, node_id: str) -> Standing | None:
        """Return a kept standing that may be used again."""
        kept = self._standings.get(node_id)
        return kept.standing if kept and self.open and self.clock() < kept.until else None

    def put(self, key: Key, assertion: str, generation: int, standing: Standing | None = None) -> None:
        """Keep an assertion, unless something was revoked since `generation`: it may have been this credential."""
        if not self.open or generation != self.generation:
            return
        claims, until = claims_of(assertion), self.clock() + KEPT_S
        kept = Kept(assertion, key.digest, subjects_of(claims), str(claims.get("domain_id", "")), until, standing)
        if standing is not None:
            for node_id in kept.subjects:
                self._standings[node_id] = kept
                self._standings.move_to_end(node_id)
            while len(self._standings) > MOST_KEPT:
                self._standings.popitem(last=False)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)

    def forget(self, matches: Callable[[Kept], bool]) -> None:
        """Forget what matches, and what is being fetched right now."""
        self.generation += 1
        for key in [key for key, kept in self._kept.items() if matches(kept)]:
            del self._kept[key]
        for node_id in [node_id for node_id, kept in self._standings.items() if matches(kept)]:
            del self._standings[node_id]


def digest_of(value: str) -> str:
    """Return the SHA-256 of a credential in hex, as the revocation feed names it."""
    return hashlib.sha256(value.encode()).hexdigest()


def claims_of(assertion: str) -> dict[str, Any]:
    """Return what an assertion of identity says; it has just come from there, so nothing is verified here."""
    part = assertion.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def subjects_of(claims: dict[str, Any]) -> frozenset[str]:
    """Return whom an assertion is about."""
    return frozenset(str(claims[name]) for name in ("sub", "node_id") if claims.get(name))


class Authenticator:
    """Turns credentials into assertions for one service."""

    def __init__(self, identity: Peer, cache: AssertionCache, bad_bearers: AddressLimit) -> None:
        self._stub = stubs.AuthenticationServiceStub(identity)
        self._cache = cache
        self.bad_bearers = bad_bearers

    @property
    def generation(self) -> int:
        """Changes with each revocation that is heard, and when some may not have been."""
        return self._cache.generation

    async def assertion(self, credential: Credential, audience: str, address: str, *, standing: bool = False) -> str:
        """Return the principal assertion; raises Unauthenticated, or TooMany for an address that guesses.

        With `standing`, where the node stands is asked for in the same call and kept beside the assertion.
        """
        key = Key(credential.kind, digest_of(credential.value), audience)
        kept = self._cache.get(key)
        if kept and not (standing and credential.node and self._cache.standing(str(credential.node.node_id)) is None):
            return kept
        generation = self._cache.generation
        request = pb.AuthenticateRequest(
            kind=credential.kind, credential=credential.value, audience=audience, standing=standing
        )
        async with self.bad_bearers.guess(address):
            answer = await self._stub.Authenticate(request)
        found = answer.standing if answer.HasField("standing") else None
        stands = Standing(found.domain_id, found.project_id, found.agent) if found else None
        self._cache.put(key, answer.assertion, generation, stands)
        return str(answer.assertion)
