"""How every service records a decision: before its effect, durably, once per handled request."""

import asyncio
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace

from libs.clock import Clock, SystemClock
from libs.decision import Record
from libs.errors import AuditDiverged, AuditUnavailable, InvalidRequest, PlexError, of_peer
from libs.rpc.channel import Peer
from libs.rpc.context import current_call
from libs.scope import named
from libs.telemetry import hop
from libs.together import Together
from plexsphere.audit.v1 import audit_pb2, audit_pb2_grpc

DEADLINE_S = 2.0
APPEND_ALL = "/plexsphere.audit.v1.AuditAppendService/AppendAll"

tracer = trace.get_tracer("libs.audit")


class AuditClient:
    """Appends to the chain through the audit service; what comes while a call is under way goes together."""

    def __init__(self, peer: Peer, clock: Clock | None = None) -> None:
        self._stub = audit_pb2_grpc.AuditAppendServiceStub(peer)
        self._clock = clock or SystemClock()
        self._together = Together(self._append_all)

    async def record(self, record: Record) -> int:
        """Return the row's sequence once it is durable; raises AuditUnavailable, and then nothing may happen."""
        try:
            with hop(tracer, APPEND_ALL, trace.SpanKind.CLIENT):
                async with asyncio.timeout(DEADLINE_S):
                    return await self._together.ask(self._packed(record))
        except TimeoutError:
            raise of_peer(AuditUnavailable("too many wait")) from None

    def _packed(self, record: Record) -> audit_pb2.AppendRequest:
        call = current_call()
        occurred_at = Timestamp()
        occurred_at.FromDatetime(self._clock.now())
        subject = f"{record.subject_kind}:{record.subject_id}"
        context = record.context | named(subject, record.relation, record.reason)
        return audit_pb2.AppendRequest(
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

    async def _append_all(self, requests: list[audit_pb2.AppendRequest]) -> Sequence[int]:
        try:
            answer = await self._stub.AppendAll(audit_pb2.AppendAllRequest(decisions=requests), timeout=DEADLINE_S)
        except (InvalidRequest, AuditDiverged) as error:
            # What is wrong with one, or with the chain that it is for, is no matter of the others.
            if len(requests) > 1:
                raise
            raise AuditUnavailable(error.code) from error
        except PlexError as error:
            raise AuditUnavailable(error.code) from error
        return list(answer.seqs)
