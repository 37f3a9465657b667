"""The keys that sign a Domain's events."""

import hmac
from dataclasses import dataclass
from uuid import UUID

from libs.errors import SigningUnavailable
from services.mesh.model import SigningKey
from services.mesh.ports import Audit, Store, Vault


@dataclass(frozen=True)
class SigningKeys:
    """Event keys, one a Domain."""

    vault: Vault
    store: Store
    audit: Audit

    async def ensure(self, domain_id: UUID) -> SigningKey:
        """Return a Domain's current event key, made when it has none."""
        # OpenBao is asked each time: nodes will trust this key for as long as they live, and the row is one that a
        # hostile DBA could change.
        half = await self.vault.current(domain_id)
        if half is None:
            await self.audit.record_creation(domain_id)
            half = await self.vault.create(domain_id)
        key = await self.store.remember(domain_id, half)
        if (key.domain_id, key.kid) != (domain_id, half.kid) or not hmac.compare_digest(
            key.public_key, half.public_key
        ):
            raise SigningUnavailable("the recorded public half is not the key's")
        return key
