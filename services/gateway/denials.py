"""Denials at the edge, on their way into the chain before the refusal leaves.

A node that keeps asking must not decide how the chain grows: a row stands for a node, operation, reason and minute. Its
key is made of these, so gateways that refuse the same node write one row between them. Of what anybody can cause, bad
credentials and too many requests, a row stands for a reason, Domain and minute.
"""

import datetime
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from libs.audit import AuditClient
from libs.clock import Clock
from libs.decision import ANONYMOUS, Record
from libs.errors import NskInvalid, NskRevoked, PlexError
from libs.telemetry import REFUSALS
from services.gateway.gate import canonical_uuid

SPACE = UUID("0b6f5f63-6a0e-5f0e-8a3f-6d3a3f0c7d11")
ACTIONS = {
    "GetNodeEvents": "node.events",
    "GetNodeState": "node.state",
    "PostNodeHeartbeat": "node.heartbeat",
    "PutNodeEndpoint": "node.endpoint",
    "PostNodeSessionCallback": "node.session",
}
# Whoever presents these is not, or no longer, a node.
BAD_BEARERS = (NskInvalid, NskRevoked)


@dataclass
class Denials:
    """Records each denial once a minute."""

    audit: AuditClient
    clock: Clock
    _minute: str = ""
    _recorded: set[UUID] = field(default_factory=set)

    async def record(self, operation: str, error: PlexError, node_id: UUID, domain_id: str, path_id: str) -> None:
        """Return once a row of this minute stands for the denial; raises AuditUnavailable.

        `node_id` is who was refused, or said to be; without a `domain_id` the platform's chain has the row.
        """
        action = ACTIONS.get(operation)
        if action is None:
            if isinstance(error, BAD_BEARERS):
                await self.count("credential", error, domain_id)
            return
        REFUSALS.labels(action, error.code).inc()
        minute = self._now()
        # Anybody can make up an id, or a bearer that nobody knows: those share a row.
        known = not isinstance(error, NskInvalid)
        key = uuid5(SPACE, f"{domain_id}/{node_id if known else ''}/{action}/{error.code}/{minute}")
        await self._once(
            Record(
                domain_id=domain_id,
                action=action,
                relation="node-agent",
                object_type="node",
                object_id=str(canonical_uuid(path_id) or node_id),
                reason="caveat_violation" if isinstance(error, BAD_BEARERS) else "insufficient_relation",
                subject_id=str(node_id) if known else "",
                subject_kind="node" if known else ANONYMOUS,
                context={action.partition(".")[2]: [error.code], "minute": [minute]},
                idempotency_key=key,
            )
        )

    async def count(self, what: str, error: PlexError, domain_id: str = "") -> None:
        """Return once a row of this minute stands for all refusals of a kind and reason; raises AuditUnavailable."""
        action, minute = f"edge.{what}_refused", self._now()
        REFUSALS.labels(action, error.code).inc()
        await self._once(
            Record(
                domain_id=domain_id,
                action=action,
                relation="authenticate",
                object_type="edge",
                object_id=what,
                reason="caveat_violation",
                subject_kind=ANONYMOUS,
                context={what: [error.code], "minute": [minute]},
                idempotency_key=uuid5(SPACE, f"{domain_id}/{action}/{error.code}/{minute}"),
            )
        )

    def _now(self) -> str:
        minute = self.clock.now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
        if minute != self._minute:
            self._minute, self._recorded = minute, set()
        return minute

    async def _once(self, record: Record) -> None:
        if record.idempotency_key not in self._recorded:
            await self.audit.record(record)
            self._recorded.add(record.idempotency_key)
