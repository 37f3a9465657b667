"""The relation checker and the node repository: both are identity, which answers them together with the bearer."""

from collections.abc import Collection, Mapping
from uuid import UUID

from libs.errors import EventStreamUnavailable, PlexError
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import relations_pb2 as pb
from plexsphere.identity.v1 import relations_pb2_grpc as stubs
from services.gateway.credentials import AssertionCache, Standing
from services.gateway.ports import Place

MOST_NODES = 250


class IdentityStandings:
    """Where nodes stand; what came with their authentication is used for as long as their assertion is."""

    def __init__(self, identity: Peer, cache: AssertionCache) -> None:
        self._stub = stubs.FleetServiceStub(identity)
        self._cache = cache

    async def agent(self, node_id: UUID) -> bool:
        """Whether a node holds `node-agent` on itself."""
        if (kept := self._cache.standing(str(node_id))) is not None:
            return kept.agent
        return bool(await self.agents([node_id]))

    async def agents(self, node_ids: Collection[UUID]) -> Mapping[UUID, frozenset[str]]:
        """Return those that hold `node-agent` on themselves with the KIDs that count, asking identity each time."""
        return {
            UUID(row.node_id): frozenset({row.nsk_kid, row.old_nsk_kid} - {""})
            for row in await self._ask(node_ids)
            if row.agent
        }

    async def place(self, node_id: UUID) -> Place | None:
        """Return where a node stands; None when there is no such node."""
        if (kept := self._cache.standing(str(node_id))) is not None:
            return _place(kept)
        rows = await self._ask([node_id])
        return Place(UUID(rows[0].domain_id), UUID(rows[0].project_id)) if rows else None

    async def _ask(self, node_ids: Collection[UUID]) -> list[pb.Standing]:
        wanted = [str(node_id) for node_id in node_ids]
        found: list[pb.Standing] = []
        try:
            for start in range(0, len(wanted), MOST_NODES):
                request = pb.GetStandingsRequest(node_ids=wanted[start : start + MOST_NODES])
                found += (await self._stub.GetStandings(request)).standings
        except PlexError as error:
            raise EventStreamUnavailable(error.code) from error
        return found


def _place(standing: Standing) -> Place:
    return Place(UUID(standing.domain_id), UUID(standing.project_id))
