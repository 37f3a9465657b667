"""What is streamed of a chain comes whole or is seen to be broken, and refusals are problems as ever."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientPayloadError

from libs import errors
from libs.export import Exported, Head, end_line, entry_line, head_line
from plexsphere.audit.v1 import audit_pb2 as pb
from services.gateway.tests.fakes import NODE_ID, OPERATOR, Client, FakePeer, problem

pytestmark = pytest.mark.unit

ENTRIES = [Exported(seq, bytes([seq]) * 32, bytes([seq + 1]) * 32, b"{}") for seq in (1, 2, 3)]
HEAD = pb.ExportHead(from_seq=1, to_seq=3, checkpoint=pb.Checkpoint(size=2, note="n", key="k"))
DOMAIN = str(NODE_ID)
EXPORT, VERIFY = f"/v1/domains/{DOMAIN}/audit/export", f"/v1/domains/{DOMAIN}/audit/verify/stream"


def parts(*, broken: bool = False) -> Iterator[Any]:
    yield pb.ExportEntriesResponse(head=HEAD)
    for one in ENTRIES:
        packed = pb.ExportedEntry(
            seq=one.seq, prev_hash=one.prev_hash, entry_hash=one.entry_hash, canonical_bytes=one.canonical
        )
        yield pb.ExportEntriesResponse(entries=[packed])
    if broken:
        raise errors.DatastoreUnavailable


def refused(error: errors.PlexError | None) -> Iterator[Any]:
    if error:
        raise error
    yield


async def test_an_export_is_lines_from_its_head_to_its_end(edge: Client, peer: FakePeer) -> None:
    peer.answers["ExportEntries"] = lambda _: parts()  # type: ignore[assignment,return-value]
    answer = await edge.get(EXPORT + "?from=1&to=9", headers=OPERATOR)
    assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
    lines = (await answer.read()).splitlines(keepends=True)
    assert lines == [head_line(Head(DOMAIN, 1, 3, "n", "k")), *map(entry_line, ENTRIES), end_line(3)]
    request, _ = peer.last("ExportEntries")
    assert (request.domain_id, request.from_seq, request.to_seq) == (DOMAIN, 1, 9)


async def test_an_export_that_breaks_off_does_not_end_as_a_whole_one(edge: Client, peer: FakePeer) -> None:
    peer.answers["ExportEntries"] = lambda _: parts(broken=True)  # type: ignore[assignment,return-value]
    answer = await edge.get(EXPORT, headers=OPERATOR)
    assert answer.status == 200
    with pytest.raises(ClientPayloadError):
        await answer.read()


async def test_a_verification_tells_how_far_it_is_and_then_the_verdict(edge: Client, peer: FakePeer) -> None:
    verdict = pb.VerifyChainResponse(
        divergent_seq=2, expected_hash="a", observed_hash="b", segment_from=1, segment_to=3
    )
    peer.answers["VerifyStream"] = lambda _: [  # type: ignore[assignment,return-value]
        pb.VerifyStreamResponse(entries=3),
        pb.VerifyStreamResponse(verdict=verdict),
    ]
    answer = await edge.post(VERIFY, headers=OPERATOR, json={"from_seq": 1})
    assert answer.content_type == "application/x-ndjson"
    assert [json.loads(line) for line in (await answer.read()).splitlines()] == [
        {"looked_at": 0, "entries": 3},
        {
            "ok": False, "divergent_seq": 2, "expected_hash": "a", "observed_hash": "b",
            "segment_from": 1, "segment_to": 3,
        },
    ]  # fmt: skip


@pytest.mark.parametrize("path", [EXPORT, VERIFY])
async def test_who_is_refused_gets_a_problem(edge: Client, peer: FakePeer, path: str) -> None:
    method = "GET" if path == EXPORT else "POST"
    for error, seen in (
        (errors.Forbidden(), (403, "permission_denied")),
        (errors.AuditUnavailable(), (503, "audit_unavailable")),
    ):
        for name in ("ExportEntries", "VerifyStream"):
            peer.answers[name] = lambda _, error=error: refused(error)  # type: ignore[assignment,misc]
        assert await problem(await edge.request(method, path, headers=OPERATOR)) == seen
    assert await problem(await edge.request(method, path)) == (401, "unauthenticated")
