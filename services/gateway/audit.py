"""The audit chains, a Domain's and the platform's: list, get, verify, erase, checkpoints and proofs."""

import base64
from typing import Any

from aiohttp import web

from libs.rpc.channel import Peer
from plexsphere.audit.v1 import audit_pb2 as pb
from plexsphere.audit.v1 import audit_pb2_grpc as stubs
from services.gateway.answers import JSON, given, maybe, page, reply, timestamp, when
from services.gateway.audit_streams import AuditStreams, verdict
from services.gateway.edge import Asked, Route

VERIFY_S = 18.0
FILTERS = ("subject", "relation", "object_type", "object_id", "correlation_id")


class Audit:
    """Handlers of the operations on audit chains; without a Domain in the path it is the platform's."""

    def __init__(self, audit: Peer) -> None:
        self._stub = stubs.AuditReadServiceStub(audit)
        self._streams = AuditStreams(audit)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "ListAuditEntries": Route(self.list_entries, "audit"),
            "ListPlatformAuditEntries": Route(self.list_entries, "audit"),
            "GetAuditEntry": Route(self.get_entry, "audit"),
            "GetPlatformAuditEntry": Route(self.get_entry, "audit"),
            "VerifyAuditChain": Route(self.verify, "audit"),
            "VerifyPlatformAuditChain": Route(self.verify, "audit"),
            "EraseIdentityFromAudit": Route(self.erase, "audit"),
            "EraseIdentityFromPlatformAudit": Route(self.erase, "audit"),
            "GetAuditCheckpoint": Route(self.checkpoint, "audit"),
            "GetPlatformAuditCheckpoint": Route(self.checkpoint, "audit"),
            "GetAuditProof": Route(self.prove, "audit"),
            "GetPlatformAuditProof": Route(self.prove, "audit"),
            "GetAuditConsistency": Route(self.prove_consistency, "audit"),
            "GetPlatformAuditConsistency": Route(self.prove_consistency, "audit"),
            **self._streams.routes(),
        }

    async def list_entries(self, asked: Asked) -> web.Response:
        """List entries, newest first."""
        query = asked.query
        wanted: dict[str, Any] = {name: query[name] for name in FILTERS if name in query}
        wanted |= {name: timestamp(query[name]) for name in ("from", "to") if name in query}
        if "reason" in query:
            wanted["reason"] = pb.Reason.Value(f"REASON_{query['reason'].upper()}")
        request = pb.ListEntriesRequest(
            domain_id=asked.path.get("domain_id", ""), cursor=query.get("cursor", ""), limit=query["limit"], **wanted
        )
        answer = await self._stub.ListEntries(request, metadata=asked.metadata)
        return page([entry(row) for row in answer.entries], answer.next_cursor)

    async def get_entry(self, asked: Asked) -> web.Response:
        """Get one entry with what proves it."""
        request = pb.GetEntryRequest(domain_id=asked.path.get("domain_id", ""), seq=asked.path["seq"])
        answer = await self._stub.GetEntry(request, metadata=asked.metadata)
        proof = {
            "prev_hash": answer.entry.prev_hash,
            "entry_hash": answer.entry.entry_hash,
            "canonical_bytes": base64.b64encode(answer.canonical_bytes).decode(),
        }
        return reply({"entry": entry(answer.entry), "proof": proof})

    async def verify(self, asked: Asked) -> web.Response:
        """Recompute a segment; a divergence is an answer."""
        body = asked.body
        request = pb.VerifyChainRequest(
            domain_id=asked.path.get("domain_id", ""),
            from_seq=body.get("from_seq", 0),
            to_seq=body.get("to_seq", 0),
        )
        answer = await self._stub.VerifyChain(request, metadata=asked.metadata, timeout=VERIFY_S)
        return reply(verdict(answer))

    async def erase(self, asked: Asked) -> web.Response:
        """Remove the personal data of one identity."""
        request = pb.EraseIdentityRequest(
            domain_id=asked.path.get("domain_id", ""), identity_id=asked.body["identity_id"].lower()
        )
        answer = await self._stub.EraseIdentity(request, metadata=asked.metadata)
        return reply({"subject_pseudonym": answer.subject_pseudonym, "erased_at": when(answer.erased_at)})

    async def checkpoint(self, asked: Asked) -> web.Response:
        """Get the newest signed checkpoint."""
        request = pb.GetCheckpointRequest(domain_id=asked.path.get("domain_id", ""))
        answer = await self._stub.GetCheckpoint(request, metadata=asked.metadata)
        return reply(checkpoint(answer.checkpoint))

    async def prove(self, asked: Asked) -> web.Response:
        """Prove that an entry is in the log of a checkpoint."""
        query = asked.query
        request = pb.ProveInclusionRequest(
            domain_id=asked.path.get("domain_id", ""), seq=query["seq"], size=query["size"]
        )
        answer = await self._stub.ProveInclusion(request, metadata=asked.metadata)
        return reply(
            {
                "seq": answer.seq,
                "entry_hash": answer.entry_hash,
                "hashes": list(answer.hashes),
                "checkpoint": checkpoint(answer.checkpoint),
                "tlog_proof": answer.tlog_proof,
            }
        )

    async def prove_consistency(self, asked: Asked) -> web.Response:
        """Prove that the log of a checkpoint goes on from that of an older one."""
        sizes = {"from": asked.query["from"], "to": asked.query["to"]}
        request = pb.ProveConsistencyRequest(domain_id=asked.path.get("domain_id", ""), **sizes)
        answer = await self._stub.ProveConsistency(request, metadata=asked.metadata)
        older, newer = checkpoint(answer.older), checkpoint(answer.newer)
        return reply({"hashes": list(answer.hashes), "older": older, "newer": newer})


def checkpoint(shown: pb.Checkpoint) -> JSON:
    """Write a checkpoint."""
    signed_at = when(shown.signed_at)
    return {"size": shown.size, "root": shown.root, "signed_at": signed_at, "note": shown.note, "key": shown.key}


def entry(row: pb.Entry) -> JSON:
    """Write an entry."""
    reason = pb.Reason.Name(row.reason).removeprefix("REASON_").lower()
    return {
        "seq": row.seq,
        "domain_id": row.domain_id,
        "occurred_at": when(row.occurred_at),
        "reason": reason,
        "subject": {"pseudonym": row.subject_pseudonym, **given(identity_id_ref=row.subject_id)},
        "relation": row.relation,
        "object": {"type": row.object_type, "id": row.object_id},
        "decision": {
            "result": reason,
            "caveat_context": {group: list(found.names) for group, found in sorted(row.caveat_context.items())},
        },
        "correlation_id": row.correlation_id,
        "request_context": given(ip=row.client_ip, user_agent=row.user_agent),
        "entry_hash": row.entry_hash,
        "prev_hash": row.prev_hash,
        **given(archive_etag=row.archive_etag, archived_at=maybe(row, "archived_at")),
    }
