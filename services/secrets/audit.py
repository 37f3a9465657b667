"""Decisions on their way into the chain."""

from dataclasses import asdict, dataclass

from libs.audit import AuditClient
from libs.decision import Record
from services.secrets.model import Decided


@dataclass(frozen=True)
class AuditChain:
    """The audit service."""

    client: AuditClient

    async def record(self, decided: Decided) -> None:
        """Append a decision; durable once it returns."""
        await self.client.record(Record(**asdict(decided)))
