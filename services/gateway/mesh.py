"""The nonce store and the signature verifier: both are mesh, asked for every batch and never remembered."""

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from libs.envelope import Trust
from libs.errors import EventStreamUnavailable, PlexError
from libs.rpc.channel import Peer
from plexsphere.mesh.v1 import mesh_pb2 as pb
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from services.gateway.ports import Published, Seen, Verdict

DEADLINE_S = 3.0
MOST_DOMAINS = 500
MOST_GAPS = 100
VERDICTS = {
    pb.PUBLICATION_PUBLISHED: Verdict.PUBLISHED,
    pb.PUBLICATION_PENDING: Verdict.PENDING,
    pb.PUBLICATION_REPLAYED: Verdict.REPLAYED,
    pb.PUBLICATION_ALTERED: Verdict.ALTERED,
    pb.PUBLICATION_UNKNOWN: Verdict.UNKNOWN,
}


class MeshNonces:
    """mesh's log of what it published."""

    def __init__(self, mesh: Peer) -> None:
        self._stub = stubs.DeliveryServiceStub(mesh)

    async def check(
        self, seen: Sequence[Seen], gaps: Sequence[tuple[int, int]]
    ) -> tuple[list[Verdict], list[Published]]:
        """Say of each what the log says, and return what was published in the gaps."""
        verdicts: list[Verdict] = []
        missing: list[Published] = []
        asked: Sequence[Seen] | None = seen
        unfilled = list(gaps)
        # One request takes so many gaps, and one answer so many events: what is left is asked for next.
        while asked is not None or unfilled:
            request = pb.CheckPublishedRequest(
                seen=[pb.SeenEnvelope(sequence=one.sequence, id=str(one.id), digest=one.digest) for one in asked or ()],
                gaps=[pb.SequenceGap(first=first, last=last) for first, last in unfilled[:MOST_GAPS]],
            )
            try:
                answer = await self._stub.CheckPublished(request, timeout=DEADLINE_S)
            except PlexError as error:
                raise EventStreamUnavailable(error.code) from error
            if asked is not None:
                verdicts = [VERDICTS.get(one, Verdict.UNKNOWN) for one in answer.publications]
            missing += [Published(row.sequence, UUID(row.domain_id), row.envelope) for row in answer.missing]
            asked, unfilled = None, [(gap.first, gap.last) for gap in answer.unfilled] + unfilled[MOST_GAPS:]
        if len(verdicts) != len(seen):
            raise EventStreamUnavailable("not everything was answered")
        return verdicts, missing

    async def highest(self) -> int:
        """Return the highest sequence that is noted."""
        try:
            answer = await self._stub.CheckPublished(pb.CheckPublishedRequest(), timeout=DEADLINE_S)
        except PlexError as error:
            raise EventStreamUnavailable(error.code) from error
        return int(answer.highest)


class MeshKeys:
    """The Domains' event keys as mesh and OpenBao have them."""

    def __init__(self, mesh: Peer) -> None:
        self._stub = stubs.DeliveryServiceStub(mesh)

    async def trust(self, domain_ids: Collection[UUID]) -> Mapping[UUID, Mapping[str, Trust]]:
        """Return the keys that verify now by Domain and key id."""
        found: dict[UUID, dict[str, Trust]] = {}
        wanted = [str(domain_id) for domain_id in domain_ids]
        for start in range(0, len(wanted), MOST_DOMAINS):
            request = pb.GetTrustRequest(domain_ids=wanted[start : start + MOST_DOMAINS])
            try:
                answer = await self._stub.GetTrust(request, timeout=DEADLINE_S)
            except PlexError as error:
                raise EventStreamUnavailable(error.code) from error
            for domain in answer.domains:
                found[UUID(domain.domain_id)] = {key.kid: trust_of(key) for key in domain.keys}
        return found


def trust_of(key: pb.SigningKey) -> Trust:
    """Return a key as the verifier takes it: one with an end counts strictly before it."""
    if key.HasField("expires_at"):
        return Trust("", b"", key.kid, key.public_key, key.expires_at.ToNanoseconds())
    return Trust(key.kid, key.public_key)


class Reconciler:
    """Asks mesh to tell a Domain's nodes that they should fetch their state."""

    def __init__(self, mesh: Peer) -> None:
        self._stub = stubs.DeliveryServiceStub(mesh)

    async def request(self, domain_id: UUID, node_id: UUID) -> None:
        """Ask; of many nodes that come back at once, one is enough."""
        request = pb.RequestReconcileRequest(domain_id=str(domain_id), node_id=str(node_id))
        try:
            await self._stub.RequestReconcile(request, timeout=DEADLINE_S)
        except PlexError as error:
            # Whatever mesh says of itself must not look like a refusal of the node.
            raise EventStreamUnavailable(error.code) from error
