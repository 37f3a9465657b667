"""How every service records a decision: before its effect, durably, once per handled request."""

from google.protobuf.timestamp_pb2 import Timestamp

from libs.clock import Clock, SystemClock
from libs.decision import Record
from libs.errors import AuditUnavailable, PlexError
from libs.rpc.channel import Peer
from libs.rpc.context import current_call
from libs.scope import named
from plexsphere.audit.v1 import audit_pb2, audit_pb2_grpc

DEADLINE_S = 2.0


class AuditClient:
    """Appends to the chain through the audit service."""

    def __init__(self, peer: Peer, clock: Clock | None = None) -> None:
        self._stub = audit_pb2_grpc.AuditAppendServiceStub(peer)
        self._clock = clock or SystemClock()

    async def record(self, record: Record) -> int:
        """Return the row's sequence once it is durable; raises AuditUnavailable, and then nothing may happen."""
        call = current_call()
        occurred_at = Timestamp()
        occurred_at.FromDatetime(self._clock.now())
        subject = f"{record.subject_kind}:{record.subject_id}"
        context = record.context | named(subject, record.relation, record.reason)
        request = audit_pb2.AppendRequest(
            domain_id=record.domain_id,
            idempotency_key=str(record.idempotency_key),
            occurred_at=occurred_at,
            action=record.action,
            subject_id=record.subject_id,
            subject_kind=record.subject_kind,
            relation=record.relation,
            object_type=record.object_type,
            object_id=record.object_id,
            reason=audit_pb2.Reason.Value(f"REASON_{record.reason.upper()}"),
            caveat_context={name: audit_pb2.CaveatNames(names=names) for name, names in context.items()},
            correlation_id=call.correlation_id,
            client_ip=call.client_ip[:64],
            user_agent=call.user_agent[:512],
        )
        try:
            answer = await self._stub.Append(request, timeout=DEADLINE_S)
        except PlexError as error:
            raise AuditUnavailable(error.code) from error
        return int(answer.seq)
