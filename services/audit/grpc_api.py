"""Unpack, call the rule, pack."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, TypeAlias
from uuid import UUID

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from libs.rpc.context import current_call, current_principal
from plexsphere.audit.v1 import audit_pb2, audit_pb2_grpc
from services.audit.acknowledgements import Acknowledgements, State
from services.audit.model import NIL, PLATFORM, Decision, Filter, Shown, Stored, Verdict, chain_of
from services.audit.service import Audit, Request

# Well below the largest message, so that a slow reader holds little.
LARGEST_PART = 256 * 1024

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def reason_name(reason: audit_pb2.Reason.ValueType) -> str:
    """Return a reason as the chain writes it; empty for unspecified."""
    return audit_pb2.Reason.Name(reason).removeprefix("REASON_").lower() if reason else ""


def timestamp(at: datetime.datetime) -> Timestamp:
    """Return a time as protobuf has it."""
    value = Timestamp()
    value.FromDatetime(at)
    return value


def moment(at: Timestamp) -> datetime.datetime:
    """Return a time as Python has it."""
    return at.ToDatetime(datetime.UTC)


def request_of() -> Request:
    """Return who asks."""
    call = current_call()
    return Request(current_principal(), call.correlation_id, call.client_ip, call.user_agent)


def decision(request: audit_pb2.AppendRequest) -> Decision:
    """Unpack a decision."""
    names = {group: list(entry.names) for group, entry in request.caveat_context.items()}
    return Decision(
        chain=chain_of(request.domain_id),
        idempotency_key=UUID(request.idempotency_key),
        occurred_at=moment(request.occurred_at),
        action=request.action,
        subject_id=request.subject_id,
        subject_kind=request.subject_kind,
        relation=request.relation,
        object_type=request.object_type,
        object_id=request.object_id,
        reason=reason_name(request.reason),
        context={**names, "action": [request.action]},
        correlation_id=request.correlation_id,
        client_ip=request.client_ip,
        user_agent=request.user_agent,
    )


class AppendApi(audit_pb2_grpc.AuditAppendServiceServicer):
    """audit.AuditAppendService."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def Append(self, request: audit_pb2.AppendRequest, context: Context) -> audit_pb2.AppendResponse:
        """Append one decision."""
        return audit_pb2.AppendResponse(seq=await self._audit.append(decision(request)))

    async def AppendAll(self, request: audit_pb2.AppendAllRequest, context: Context) -> audit_pb2.AppendAllResponse:
        """Append the decisions of several requests."""
        seqs = await asyncio.gather(*(self._audit.append(decision(one)) for one in request.decisions))
        return audit_pb2.AppendAllResponse(seqs=seqs)


class ReadApi(audit_pb2_grpc.AuditReadServiceServicer):
    """audit.AuditReadService."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def ListEntries(
        self, request: audit_pb2.ListEntriesRequest, context: Context
    ) -> audit_pb2.ListEntriesResponse:
        """List entries."""
        wanted = Filter(
            subject=request.subject,
            relation=request.relation,
            object_type=request.object_type,
            object_id=request.object_id,
            reason=reason_name(request.reason),
            correlation_id=request.correlation_id,
            after=moment(getattr(request, "from")) if request.HasField("from") else None,
            before=moment(request.to) if request.HasField("to") else None,
        )
        chain = chain_of(request.domain_id)
        page = await self._audit.list(request_of(), chain, wanted, request.cursor, request.limit)
        return audit_pb2.ListEntriesResponse(entries=map(entry, page.rows), next_cursor=page.next_cursor)

    async def GetEntry(self, request: audit_pb2.GetEntryRequest, context: Context) -> audit_pb2.GetEntryResponse:
        """Get one entry."""
        row = await self._audit.get(request_of(), chain_of(request.domain_id), request.seq)
        return audit_pb2.GetEntryResponse(entry=entry(row), canonical_bytes=row.canonical)

    async def VerifyChain(
        self, request: audit_pb2.VerifyChainRequest, context: Context
    ) -> audit_pb2.VerifyChainResponse:
        """Recompute a segment."""
        chain = chain_of(request.domain_id)
        return packed(await self._audit.verify(request_of(), chain, request.from_seq, request.to_seq))

    async def VerifyStream(
        self, request: audit_pb2.VerifyStreamRequest, context: Context
    ) -> AsyncIterator[audit_pb2.VerifyStreamResponse]:
        """Recompute a segment and tell how far it is."""
        chain = chain_of(request.domain_id)
        async for found in self._audit.verify_stream(request_of(), chain, request.from_seq, request.to_seq):
            if isinstance(found, Verdict):
                yield audit_pb2.VerifyStreamResponse(verdict=packed(found))
            else:
                yield audit_pb2.VerifyStreamResponse(looked_at=found.looked_at, entries=found.entries)

    async def ExportEntries(
        self, request: audit_pb2.ExportEntriesRequest, context: Context
    ) -> AsyncIterator[audit_pb2.ExportEntriesResponse]:
        """Hand out entries as they are stored."""
        found = await self._audit.export(request_of(), chain_of(request.domain_id), request.from_seq, request.to_seq)
        shown = checkpoint(found.checkpoint) if found.checkpoint else None
        head = audit_pb2.ExportHead(from_seq=found.first, to_seq=found.last, checkpoint=shown)
        yield audit_pb2.ExportEntriesResponse(head=head)
        async for rows in found.pieces:
            for entries in messages(rows):
                yield audit_pb2.ExportEntriesResponse(entries=entries)

    async def EraseIdentity(
        self, request: audit_pb2.EraseIdentityRequest, context: Context
    ) -> audit_pb2.EraseIdentityResponse:
        """Erase an identity's personal data."""
        chain = chain_of(request.domain_id)
        name, erased_at = await self._audit.erase(request_of(), chain, UUID(request.identity_id))
        return audit_pb2.EraseIdentityResponse(subject_pseudonym=name, erased_at=timestamp(erased_at))

    async def GetCheckpoint(
        self, request: audit_pb2.GetCheckpointRequest, context: Context
    ) -> audit_pb2.GetCheckpointResponse:
        """Get the newest checkpoint."""
        shown = await self._audit.checkpoint(request_of(), chain_of(request.domain_id))
        return audit_pb2.GetCheckpointResponse(checkpoint=checkpoint(shown))

    async def ProveInclusion(
        self, request: audit_pb2.ProveInclusionRequest, context: Context
    ) -> audit_pb2.ProveInclusionResponse:
        """Prove that an entry is in a log."""
        found = await self._audit.prove(request_of(), chain_of(request.domain_id), request.seq, request.size)
        return audit_pb2.ProveInclusionResponse(
            seq=found.seq,
            entry_hash=found.entry_hash.hex(),
            hashes=[value.hex() for value in found.hashes],
            checkpoint=checkpoint(found.checkpoint),
            tlog_proof=found.file,
        )

    async def ProveConsistency(
        self, request: audit_pb2.ProveConsistencyRequest, context: Context
    ) -> audit_pb2.ProveConsistencyResponse:
        """Prove that a log goes on from an older one."""
        older, newer = getattr(request, "from"), request.to
        found = await self._audit.prove_consistency(request_of(), chain_of(request.domain_id), older, newer)
        return audit_pb2.ProveConsistencyResponse(
            hashes=[value.hex() for value in found.hashes],
            older=checkpoint(found.older),
            newer=checkpoint(found.newer),
        )


class RestoreApi(audit_pb2_grpc.AuditRestoreServiceServicer):
    """audit.AuditRestoreService."""

    def __init__(self, acknowledgements: Acknowledgements) -> None:
        self._acknowledgements = acknowledgements

    async def CheckRestore(
        self, request: audit_pb2.CheckRestoreRequest, context: Context
    ) -> audit_pb2.CheckRestoreResponse:
        """Hold every chain against its anchor."""
        states, text = await self._acknowledgements.check(current_call().correlation_id, every=request.all)
        return audit_pb2.CheckRestoreResponse(chains=map(checked, states), statement=text)

    async def Acknowledge(
        self, request: audit_pb2.AcknowledgeRequest, context: Context
    ) -> audit_pb2.AcknowledgeResponse:
        """Let chains go on."""
        chains = await self._acknowledgements.acknowledge(current_call().correlation_id, request.note)
        return audit_pb2.AcknowledgeResponse(chains=chains)


def checked(state: State) -> audit_pb2.CheckedChain:
    """Pack a chain."""
    claim = state.claim
    return audit_pb2.CheckedChain(
        chain=claim.chain,
        reason=state.reason,
        anchored_size=claim.size,
        anchored_root=claim.root.hex(),
        seq=claim.head.seq,
        entry_hash=claim.head.entry_hash.hex(),
    )


def packed(verdict: Verdict) -> audit_pb2.VerifyChainResponse:
    """Pack a verdict."""
    return audit_pb2.VerifyChainResponse(
        ok=not verdict.divergent_seq,
        divergent_seq=verdict.divergent_seq,
        expected_hash=verdict.expected_hash,
        observed_hash=verdict.observed_hash,
        segment_from=verdict.segment_from,
        segment_to=verdict.segment_to,
    )


def messages(rows: Iterable[Stored]) -> Iterator[list[audit_pb2.ExportedEntry]]:
    """Pack rows as stored into lists that a message can hold."""
    entries, size = list[audit_pb2.ExportedEntry](), 0
    for row in rows:
        if entries and size + len(row.canonical) > LARGEST_PART:
            yield entries
            entries, size = [], 0
        entries.append(
            audit_pb2.ExportedEntry(
                seq=row.seq, prev_hash=row.prev_hash, entry_hash=row.entry_hash, canonical_bytes=row.canonical
            )
        )
        size += len(row.canonical)
    yield entries


def checkpoint(shown: Shown) -> audit_pb2.Checkpoint:
    """Pack a checkpoint."""
    signed = shown.signed
    return audit_pb2.Checkpoint(
        size=signed.size,
        root=signed.root.hex(),
        signed_at=timestamp(signed.created_at),
        note=signed.note,
        key=shown.key,
    )


def entry(row: Stored) -> audit_pb2.Entry:
    """Pack an entry."""
    return audit_pb2.Entry(
        seq=row.seq,
        domain_id=NIL if row.chain == PLATFORM else row.chain,
        occurred_at=timestamp(row.occurred_at),
        reason=audit_pb2.Reason.Value(f"REASON_{row.reason.upper()}"),
        subject_pseudonym=row.pseudonym,
        subject_id=row.subject_id,
        relation=row.relation,
        object_type=row.object_type,
        object_id=row.object_id,
        caveat_context={name: audit_pb2.CaveatNames(names=names) for name, names in row.context.items()},
        correlation_id=row.correlation_id,
        client_ip=row.client_ip,
        user_agent=row.user_agent,
        entry_hash=row.entry_hash.hex(),
        prev_hash=row.prev_hash.hex(),
        archive_etag=row.archive_etag,
        archived_at=timestamp(row.archived_at) if row.archived_at else None,
    )
