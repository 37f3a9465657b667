"""The rules of registration and heartbeats.

The key is checked before the token is touched; the token is consumed in the same transaction as the node, its address,
its key and the event, and only then.
"""

import datetime
import functools
import hashlib
import hmac
import re
from dataclasses import dataclass
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from libs.clock import Clock
from libs.custody import Secret
from libs.decision import ANONYMOUS
from libs.errors import (
    AllocatorContention,
    BinaryChecksumEmpty,
    BinaryVersionEmpty,
    ClockSkew,
    KindMismatch,
    NonceCollision,
    NskRevoked,
    PlexError,
    ProjectMismatch,
    PublicKeyInvalid,
    ResourceNotFound,
    TokenConsumed,
    TokenExpired,
    TokenRevoked,
    TokenUnknown,
    Unavailable,
    Unprocessable,
)
from libs.ids import parse_uuid, uuid7
from libs.principal import Principal
from libs.together import Abreast, Each
from services.identity.authority import Act, Gate
from services.identity.model import BootstrapToken, Caller, Candidate, Registered, Resource, SigningKey
from services.identity.node_keys import KEY_BYTES, make_key
from services.identity.node_model import Wanted
from services.identity.ports import EnrolmentStore, KeyWrapper, SigningKeys

TOKEN = re.compile(r"psb_([a-z]+)_([a-z2-7]+)_(node|bridge)_([a-z2-7]{20,})")
RETRY_WITHIN = datetime.timedelta(minutes=10)
SKEW = datetime.timedelta(seconds=60)
FIELD = 2**255 - 19
# Any private key finds a public one of low order; nobody gets what it agrees on.
PROBE = X25519PrivateKey.generate()
NODE, BRIDGE = "node", "bridge"


@dataclass(frozen=True)
class Wish:
    """What a machine sends to become a node."""

    project_id: str
    resource_handle: str
    bootstrap_token: str
    nonce: str
    public_key: bytes
    requested_resource_id: str = ""


@dataclass(frozen=True)
class Enrolled:
    """What a node gets, its key once."""

    node: Registered
    signing_key: SigningKey
    key: Secret


def check_public_key(key: bytes) -> None:
    """Raise PublicKeyInvalid for a key that is not 32 bytes, of low order (RFC 7748, 6.1), or another key rewritten."""
    # At or above the prime, or with the top bit: X25519 reads such bytes as a smaller number, so as another node's key.
    if len(key) != KEY_BYTES or int.from_bytes(key, "little") >= FIELD:
        raise PublicKeyInvalid
    try:
        PROBE.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        raise PublicKeyInvalid from None


def check_nonce(text: str) -> UUID:
    """Return the nonce; raises Unprocessable unless it is a UUIDv4."""
    try:
        nonce = parse_uuid(text.lower())
    except ValueError:
        raise Unprocessable("nonce must be a UUIDv4") from None
    if nonce.version != 4:  # noqa: PLR2004 — UUIDv4
        raise Unprocessable("nonce must be a UUIDv4")
    return nonce


@dataclass(frozen=True)
class Enrolment:
    """Registers nodes and takes their heartbeats."""

    store: EnrolmentStore
    gate: Gate
    keys: SigningKeys
    wrapper: KeyWrapper
    clock: Clock

    async def register(self, wish: Wish) -> Enrolled:
        """Turn a bootstrap token into a node; an identical retry within ten minutes gets a fresh key."""
        check_public_key(wish.public_key)
        nonce = check_nonce(wish.nonce)
        try:
            project_id = parse_uuid(wish.project_id.lower())
        except ValueError:
            raise Unprocessable("project_id must be a UUID") from None
        # By what the caller claims: whoever names no project of ours goes alone.
        async with self._projects[project_id].rank():
            enrolled = await self._register(wish, project_id, nonce)
        try:
            # Also after a retry: the first delivery may have been what was lost.
            await self.gate.authority.deliver()
        except BaseException:  # cancelled too: a key that nobody gets stays in no memory of ours
            enrolled.key.wipe()
            raise
        return enrolled

    @functools.cached_property
    def _projects(self) -> Each[UUID, Abreast]:
        return Each(lambda _: Abreast())

    async def _register(self, wish: Wish, project_id: UUID, nonce: UUID) -> Enrolled:
        token = await self._token(wish.bootstrap_token)
        retry, resource, node_id = await self._decided(wish, token, project_id, nonce)
        # Wrapped before the transaction, so that none waits for OpenBao and none commits a key that is nowhere.
        key, wrapped = await make_key(self.wrapper, resource.domain_id, node_id)
        try:
            signing_key = await self.keys.ensure(resource.domain_id)
            act = Act("node.register", f"node:{node_id}", str(resource.domain_id), {"token": [str(token.id)]})
            await self.gate.record(Caller(NODE, str(node_id)), "register", act)
            now = self.clock.now()
            if retry:
                node = await self.store.replace_key(token, resource, wrapped, now)
            else:
                candidate = Candidate(node_id, wish.public_key, nonce, wrapped)
                node = await self.store.register(token, resource, candidate, now)
        except BaseException:  # cancelled too: a key that nobody gets stays in no memory of ours
            key.wipe()
            raise
        return Enrolled(node, signing_key, key)

    async def _token(self, text: str) -> BootstrapToken:
        match = TOKEN.fullmatch(text)
        token = await self.store.find_token(match[2]) if match else None
        digest = hashlib.sha256((match[4] if match else "").encode()).digest()
        if (
            token is None
            or match is None
            or not hmac.compare_digest(digest, token.digest)
            or match[1] != token.env_prefix
        ):
            # The edge counts these and writes one row a minute: an attacker must not fill the chain.
            raise TokenUnknown
        return token

    async def _decided(
        self, wish: Wish, token: BootstrapToken, project_id: UUID, nonce: UUID
    ) -> tuple[bool, Resource, UUID]:
        """Return whether this is a retry, the resource, its node's id; every refusal of a real token leaves its row."""
        try:
            retry = token.consumed_at is not None and token.nonce == nonce
            if retry:
                self._check_retry(token, project_id, wish.public_key)
            else:
                self._check(token)
            if token.project_id != project_id:
                raise ProjectMismatch
            resource = await self.store.find_resource(project_id, wish.resource_handle)
            wanted = wish.requested_resource_id.lower()
            if resource is None or (wanted and wanted != str(resource.id)):
                raise ResourceNotFound
            expected = BRIDGE if resource.kind == BRIDGE else NODE
            # The text names the kind so that people can tell tokens apart; it must not be altered either.
            if token.kind != expected or wish.bootstrap_token.split("_")[3] != expected:
                raise KindMismatch
            node_id, keyed, taken = await self.store.node_of(resource, wish.public_key)
            if keyed and not retry:
                # With this very token, where somebody was faster by a moment: perhaps the same request, sent twice.
                now = await self._token(wish.bootstrap_token)
                if (now.nonce, now.public_key) == (nonce, wish.public_key):
                    raise AllocatorContention
                self._check(now)
                raise ResourceNotFound("the resource is registered already")
            if taken and not retry:
                raise PublicKeyInvalid("another node has this key")
        except Unavailable:
            raise
        except PlexError as refusal:
            act = Act(
                "node.register", f"bootstrap_token:{token.id}", await self._domain(token), {"register": [refusal.code]}
            )
            await self.gate.record(Caller(ANONYMOUS, ""), "register", act, "insufficient_relation")
            raise
        return retry, resource, token.node_id if retry and token.node_id else node_id or uuid7()

    async def _domain(self, token: BootstrapToken) -> str:
        return str(await self.store.domain_of(token.project_id) or "")

    def _check_retry(self, token: BootstrapToken, project_id: UUID, public_key: bytes) -> None:
        recent = token.consumed_at is not None and self.clock.now() - token.consumed_at <= RETRY_WITHIN
        if not recent or token.public_key != public_key or token.project_id != project_id:
            raise NonceCollision

    def _check(self, token: BootstrapToken) -> None:
        if token.consumed_at is not None:
            raise TokenConsumed
        if token.revoked_at is not None:
            raise TokenRevoked
        if self.clock.now() >= token.expires_at:
            raise TokenExpired

    async def heartbeat(
        self,
        principal: Principal,
        node_id: str,
        client_now: datetime.datetime,
        checksum: bytes,
        version: str,
        nat_summary: str,
    ) -> tuple[datetime.datetime, Wanted]:
        """Take a sign of life; returns when, and what the node should do."""
        await self.gate.own(principal, node_id, "node.heartbeat")
        now = self.clock.now()
        if abs(now - client_now) > SKEW:
            raise ClockSkew
        if len(checksum) != hashlib.sha256().digest_size:
            raise BinaryChecksumEmpty
        if not version:
            raise BinaryVersionEmpty
        wanted = await self.store.heartbeat(UUID(node_id), checksum, version, nat_summary or "{}", now)
        if wanted is None:
            # Deregistered since the bearer was believed: 403 stops an agent for good, 401 makes it register again.
            raise NskRevoked
        return now, wanted
