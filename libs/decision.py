"""Decisions: what a relation check came to, and the record of it that goes into the chain. No I/O here."""

from dataclasses import dataclass, field, replace
from typing import Protocol
from uuid import UUID

from libs.errors import Forbidden
from libs.ids import uuid7

PLATFORM = ""
GRANTED = "granted"
OUT_OF_SCOPE = "out_of_scope"
INSUFFICIENT_RELATION = "insufficient_relation"
CAVEAT_VIOLATION = "caveat_violation"
ANONYMOUS = "anonymous"


@dataclass(frozen=True)
class Decision:
    """What a relation check came to; `reason` is "granted" or why not, `conditional` when what is not known decides."""

    reason: str
    conditional: bool = False

    @property
    def granted(self) -> bool:
        """Whether the action is allowed."""
        return self.reason == GRANTED

    def require(self) -> None:
        """Raise Forbidden with the reason unless the action is allowed."""
        if not self.granted:
            raise Forbidden(reason=self.reason, relation_path=[])


@dataclass(frozen=True)
class Record:
    """One decision; `domain_id` names the chain, empty for the platform's. `context` holds names, never values."""

    domain_id: str
    action: str
    relation: str
    object_type: str
    object_id: str
    reason: str = GRANTED
    subject_id: str = ""
    subject_kind: str = ANONYMOUS
    context: dict[str, list[str]] = field(default_factory=dict)
    idempotency_key: UUID = field(default_factory=uuid7)


def at_home(record: Record, domain_id: str) -> Record:
    """Return a decision for the chain that it belongs to: of who has no binding at all, that of his own Domain.

    He fills no other's, and what is there and what is not is recorded alike.
    """
    return replace(record, domain_id=domain_id) if record.reason == OUT_OF_SCOPE else record


class Recorder(Protocol):
    """Records decisions."""

    async def record(self, record: Record) -> int:
        """Return the row's sequence once it is durable; raises AuditUnavailable, and then nothing may happen."""
