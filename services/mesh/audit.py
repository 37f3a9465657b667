"""Decisions on their way into the chain."""

from dataclasses import dataclass
from uuid import UUID

from libs.audit import AuditClient
from libs.decision import Record


@dataclass(frozen=True)
class AuditChain:
    """The audit service."""

    client: AuditClient

    async def record_creation(self, domain_id: UUID) -> None:
        """Append that a Domain gets its event key."""
        await self.client.record(
            Record(
                domain_id=str(domain_id),
                action="signing_key.create",
                relation="manage",
                object_type="domain",
                object_id=str(domain_id),
            )
        )
