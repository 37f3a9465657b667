"""Answers of audit that come line by line: an export, and a verification that tells how far it is."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import structlog
from aiohttp import web

from libs.export import MEDIA, Exported, Head, end_line, entry_line, head_line
from libs.rpc.channel import Peer
from plexsphere.audit.v1 import audit_pb2 as pb
from plexsphere.audit.v1 import audit_pb2_grpc as stubs
from services.gateway.answers import JSON, given
from services.gateway.edge import DEADLINE, STREAMED, Asked, Route

# Between two lines, and for a client to take one.
SILENT_S = 30.0
HTTP_1_0 = (1, 0)
# A proxy must hand on each line as it comes.
HEADERS = {"Content-Type": MEDIA, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}

log = structlog.get_logger()
Lines = AsyncGenerator[bytes, None]


class AuditStreams:
    """Handlers of what is streamed of audit chains; without a Domain in the path it is the platform's."""

    def __init__(self, audit: Peer) -> None:
        # A Peer's streams are generators, which the stubs do not say.
        self._stub: Any = stubs.AuditReadServiceStub(audit)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "ExportAuditEntries": Route(self.export, "audit"),
            "ExportPlatformAuditEntries": Route(self.export, "audit"),
            "VerifyAuditChainStream": Route(self.verify, "audit"),
            "VerifyPlatformAuditChainStream": Route(self.verify, "audit"),
        }

    async def export(self, asked: Asked) -> web.StreamResponse:
        """Hand out entries as they are stored."""
        return await _stream(asked, self._exported(asked))

    async def verify(self, asked: Asked) -> web.StreamResponse:
        """Recompute a segment, a line now and then, and the verdict as the last one."""
        return await _stream(asked, self._verified(asked))

    async def _exported(self, asked: Asked) -> Lines:
        chain, query = asked.path.get("domain_id", ""), asked.query
        request = pb.ExportEntriesRequest(domain_id=chain, from_seq=query.get("from", 0), to_seq=query.get("to", 0))
        entries = 0
        async with contextlib.aclosing(self._stub.ExportEntries(request, metadata=asked.metadata)) as parts:
            async for part in parts:
                if part.HasField("head"):
                    head = part.head
                    signed = head.checkpoint
                    yield head_line(Head(chain or "platform", head.from_seq, head.to_seq, signed.note, signed.key))
                if part.entries:
                    entries += len(part.entries)
                    yield b"".join(map(_line, part.entries))
        yield end_line(entries)

    async def _verified(self, asked: Asked) -> Lines:
        body = asked.body
        request = pb.VerifyStreamRequest(
            domain_id=asked.path.get("domain_id", ""), from_seq=body.get("from_seq", 0), to_seq=body.get("to_seq", 0)
        )
        async with contextlib.aclosing(self._stub.VerifyStream(request, metadata=asked.metadata)) as parts:
            async for part in parts:
                done = part.HasField("verdict")
                line = verdict(part.verdict) if done else {"looked_at": part.looked_at, "entries": part.entries}
                yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


def verdict(answer: Any) -> JSON:
    """Write a verdict."""
    divergence = given(
        divergent_seq=answer.divergent_seq, expected_hash=answer.expected_hash, observed_hash=answer.observed_hash
    )
    segment = {"segment_from": max(1, answer.segment_from), "segment_to": max(1, answer.segment_to)}
    return {"ok": answer.ok, **divergence, **segment}


def _line(entry: pb.ExportedEntry) -> bytes:
    return entry_line(Exported(entry.seq, entry.prev_hash, entry.entry_hash, entry.canonical_bytes))


async def _stream(asked: Asked, lines: Lines) -> web.StreamResponse:
    """Write lines as fast as the client takes them; what fails before the first of them is a problem as ever."""
    request, response, now = asked.http, web.StreamResponse(headers=HEADERS), asyncio.get_running_loop().time
    async with contextlib.aclosing(lines):
        async for part in lines:
            if not response.prepared:
                if request.version > HTTP_1_0:
                    response.enable_chunked_encoding()
                request[STREAMED] = response
                await response.prepare(request)
            request[DEADLINE].reschedule(now() + SILENT_S)
            try:
                await response.write(part)
            except ConnectionResetError:
                log.info("audit.stream_left")
                return response
        with contextlib.suppress(ConnectionResetError):
            await response.write_eof()
    return response
