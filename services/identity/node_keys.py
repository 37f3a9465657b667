"""The rules of node keys: how one is made, how a node gets a fresh one, how an operator ends them all."""

import datetime
import hashlib
import os
from dataclasses import dataclass
from uuid import UUID

from libs.clock import Clock
from libs.custody import Secret
from libs.errors import NodeUnauthorized, NotFound, NskRevoked, TooMany
from libs.ids import uuid7
from libs.principal import Principal
from services.identity.authority import Act, Gate, caller_of
from services.identity.endpoints import limited
from services.identity.model import Caller, WrappedKey
from services.identity.node_ports import NodeKeyStore
from services.identity.ports import KeyWrapper

KEY_BYTES = 32
GRACE = datetime.timedelta(minutes=10)
# How many keys a node may have had made within the time of one grace; each is a row of the chain.
MOST_AT_ONCE = 10


@dataclass(frozen=True)
class Renewed:
    """A node's fresh key, shown once, and until when the one before it counts."""

    key: Secret
    kid: str
    previous_valid_until: datetime.datetime


async def make_key(wrapper: KeyWrapper, domain_id: UUID, node_id: UUID) -> tuple[Secret, WrappedKey]:
    """Return a fresh key and what is stored of it."""
    key, kid = Secret(os.urandom(KEY_BYTES)), f"nsk_{uuid7().hex}"
    try:
        wrapped = await wrapper.wrap(domain_id, node_id, kid, key)
    except BaseException:  # cancelled too: a key that nobody gets stays in no memory of ours
        key.wipe()
        raise
    return key, WrappedKey(kid, wrapped, hashlib.sha256(key.reveal()).digest())


@dataclass(frozen=True)
class NodeKeys:
    """Rotates and revokes node keys."""

    store: NodeKeyStore
    gate: Gate
    wrapper: KeyWrapper
    clock: Clock

    async def rotate(self, principal: Principal, node_id: str) -> Renewed:
        """Give the calling node a fresh key; the one that it called with counts until the grace ends.

        Who calls again with the old key has lost the answer: the key in it dies, and the grace does not grow.
        """
        if not principal.node_id:
            raise NodeUnauthorized
        await self.gate.agent(principal, node_id, "secret_key.rotate")
        this, now = UUID(node_id), self.clock.now()
        if await self.store.made_since(this, now - GRACE) >= MOST_AT_ONCE:
            refused = TooMany("the node asks for keys too often", retry_after_s=int(GRACE.total_seconds()))
            await self.gate.audit.record(limited("secret_key", principal.domain_id, refused.code, now))
            raise refused
        key, wrapped = await make_key(self.wrapper, UUID(principal.domain_id), this)
        try:
            act = Act("secret_key.rotate", f"node:{this}", principal.domain_id, {"kid": [wrapped.kid]})
            await self.gate.record(caller_of(principal), "node-agent", act)
            until = await self.store.rotate(this, principal.nsk_kid, wrapped, now, now + GRACE)
        except BaseException:  # cancelled too: a key that nobody gets stays in no memory of ours
            key.wipe()
            raise
        if until is None:
            key.wipe()
            raise NskRevoked
        return Renewed(key, wrapped.kid, until)

    async def revoke(self, caller: Caller, node_id: UUID) -> None:
        """End all keys of a node at once; its resource may then be registered again. Idempotent."""
        this = f"node:{node_id}"
        domain_id = await self.store.domain_of(node_id)
        # Whoever registers the node again has what it may read, so this decides who it is.
        act = Act("secret_key.revoke", this, str(domain_id or ""), in_person=True)
        await self.gate.write(caller, "node-operate", this, act)
        if domain_id is None:
            raise NotFound
        await self.store.revoke(node_id, self.clock.now())
