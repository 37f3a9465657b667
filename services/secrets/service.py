"""How a node gets a secret: every gate in the contract's order, and no byte without its row in the chain."""

import asyncio
import contextlib
import functools
import hashlib
from dataclasses import dataclass
from uuid import UUID

from libs.custody import Secret
from libs.decision import CAVEAT_VIOLATION, GRANTED, INSUFFICIENT_RELATION, Record
from libs.errors import (
    AuditUnavailable,
    Forbidden,
    LimiterUnavailable,
    NodeIdMismatch,
    NodeUnauthorized,
    NskInvalid,
    SecretNotFound,
    SecretVersionNotFound,
    TooMany,
)
from libs.principal import Principal
from libs.seal import seal
from libs.together import Abreast, Each
from services.secrets.model import Sealed, SecretRow, is_name
from services.secrets.ports import Audit, Limiter, Relations, Store, Vault
from services.secrets.tally import Tally

NODE = "node"
NODE_KEY = "node_key"
NO_NAME = ""
# Less than callers wait: who stands behind reads that hang hears of it.
TURN_WITHIN_S = 3.0


@dataclass(frozen=True)
class Secrets:
    """Reads of secrets by nodes."""

    limits: Limiter
    store: Store
    relations: Relations
    audit: Audit
    vault: Vault
    tally: Tally

    @functools.cached_property
    def _domains(self) -> Each[UUID, Abreast]:
        return Each(lambda _: Abreast())

    async def fetch(self, caller: Principal, node_id: UUID, name: str, version: int, key: Secret) -> Sealed:
        """Return one version of a secret (0 for the current one) under the node's own key."""
        recognise(caller, node_id, key)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(TURN_WITHIN_S):
                    # Those who come while others of the Domain are on their way go abreast, and ask together.
                    await stack.enter_async_context(self._domains[UUID(caller.domain_id)].rank())
            except TimeoutError:
                raise LimiterUnavailable("too many wait") from None
            return await self._fetch(caller, node_id, name, version, key)

    async def _fetch(self, caller: Principal, node_id: UUID, name: str, version: int, key: Secret) -> Sealed:
        project_id, domain_id = UUID(caller.project_id), UUID(caller.domain_id)
        # Limits come first: probing for names must cost as much as reading.
        try:
            await self.limits.spend(node_id, domain_id, caller.secret_limits)
        except TooMany as refused:
            self.tally.add(domain_id, refused.code)
            raise
        # A bad name runs the same query as a good one, so that nothing tells them apart.
        found = await self.store.find(project_id, name if is_name(name) else NO_NAME)
        if found is None or not found.visible or found.domain_id != domain_id:
            raise SecretNotFound
        wanted = version or found.current_version
        reason = await self.relations.check(f"node:{node_id}", "read", found.resource)
        # Asked before the value is read, and recorded before it leaves. A crash in between costs one row too many; the
        # other order would cost one too few.
        reason = reason if reason in {GRANTED, CAVEAT_VIOLATION} else INSUFFICIENT_RELATION
        await self.audit.record(decided(caller, found, wanted, reason))
        if reason != GRANTED:
            raise Forbidden(reason=reason, relation_path=[])
        if wanted > found.current_version:
            # OpenBao may have one already that nobody has been told of yet.
            raise SecretVersionNotFound
        with await self.vault.read(found, wanted) as value:
            return Sealed(seal(key, value.reveal()), wanted, caller.nsk_kid)

    async def report_limited(self) -> int:
        """Append one row for each Domain and limit that refused reads since the last time; return how many rows."""
        counted = self.tally.take()
        for done, (domain_id, code, times) in enumerate(counted):
            try:
                await self.audit.record(limited(domain_id, code, times))
            except AuditUnavailable:
                # Nothing was let out that waits for these rows; they come with the next report.
                for left in counted[done:]:
                    self.tally.add(*left)
                raise
        return len(counted)


def recognise(caller: Principal, node_id: UUID, key: Secret) -> None:
    """Refuse whoever is not the node in the path with the key that it has just authenticated with."""
    if caller.kind != NODE or caller.credential != NODE_KEY:
        raise NodeUnauthorized
    if caller.node_id != str(node_id) or caller.subject != caller.node_id:
        raise NodeIdMismatch
    # The gateway hands the key in; only the digest that identity signed says whose key it is.
    with Secret(hashlib.sha256(key.reveal()).hexdigest().encode()) as digest:
        if not digest.matches(caller.nsk_digest.encode()):
            raise NskInvalid


def decided(caller: Principal, secret: SecretRow, version: int, reason: str) -> Record:
    """Return the row of a read: which secret, version, key and node, never the value or its size."""
    return Record(
        domain_id=str(secret.domain_id),
        action="secret.read",
        relation="read",
        object_type="secret",
        object_id=str(secret.id),
        reason=reason,
        subject_id=caller.subject,
        subject_kind=caller.kind,
        context={
            "version": [str(version)],
            "kid": [caller.nsk_kid],
            "node": [caller.node_id],
            "limiter": ["within_limits"],
        },
    )


def limited(domain_id: UUID, code: str, times: int) -> Record:
    """Return the row of reads that a limit refused, all of one Domain's together."""
    return Record(
        domain_id=str(domain_id),
        action="secret.read_limited",
        relation="read",
        object_type="domain",
        object_id=str(domain_id),
        reason=CAVEAT_VIOLATION,
        subject_id="",
        subject_kind="anonymous",
        context={"limiter": [code], "times": [str(times)]},
    )
