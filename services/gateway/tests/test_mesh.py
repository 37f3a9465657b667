"""What the gateway asks mesh: all gaps are filled, however many answers that takes."""

from typing import Any, cast

import pytest

from libs.ids import uuid7
from plexsphere.mesh.v1 import mesh_pb2 as pb
from services.gateway.mesh import MOST_GAPS, MeshNonces
from services.gateway.ports import Seen, Verdict
from services.gateway.tests.fakes import FakePeer

pytestmark = pytest.mark.unit

DOMAIN = str(uuid7())


def three_at_most(request: pb.CheckPublishedRequest) -> pb.CheckPublishedResponse:
    """Answer as mesh does whose answers end after three events; what is unknown is a gap, too."""
    places = [at for gap in request.gaps for at in range(gap.first, gap.last + 1)]
    places += [one.sequence for one in request.seen]
    return pb.CheckPublishedResponse(
        publications=[pb.PUBLICATION_UNKNOWN for _ in request.seen],
        missing=[pb.LoggedEnvelope(sequence=at, domain_id=DOMAIN, envelope=b"{}") for at in places[:3]],
        unfilled=[pb.SequenceGap(first=at, last=at) for at in places[3:]],
    )


async def test_what_an_answer_leaves_out_is_asked_for_again() -> None:
    peer, seen = FakePeer(answers={"CheckPublished": three_at_most}), [Seen(999, uuid7(), bytes(32))]
    gaps = [(at, at + 1) for at in range(1, 3 * MOST_GAPS, 3)]
    verdicts, missing = await MeshNonces(cast("Any", peer)).check(seen, gaps)
    assert verdicts == [Verdict.UNKNOWN]
    wanted = {at for first, last in gaps for at in (first, last)} | {999}
    assert {row.sequence for row in missing} == wanted
    assert len(missing) == len(wanted)
    requests = [request for _, request, _ in peer.asked]
    assert [len(request.seen) for request in requests] == [1] + [0] * (len(requests) - 1)
    assert max(len(request.gaps) for request in requests) <= MOST_GAPS


async def test_nothing_is_asked_once_too() -> None:
    peer = FakePeer(answers={"CheckPublished": three_at_most})
    assert await MeshNonces(cast("Any", peer)).check((), ()) == ([], [])
    assert len(peer.asked) == 1
