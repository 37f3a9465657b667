"""identity.EnrolmentService, RelationsService, RelationsAdminService and FleetService: unpack, call the rule, pack."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias
from uuid import UUID

import grpc

from libs.clock import Clock
from libs.errors import NotFound
from plexsphere.identity.v1 import enrolment_pb2 as enrol
from plexsphere.identity.v1 import enrolment_pb2_grpc, relations_pb2_grpc
from plexsphere.identity.v1 import relations_pb2 as rel
from services.identity import pack
from services.identity.enrolment import Enrolment, Wish
from services.identity.model import Tuple
from services.identity.ports import DirectoryStore
from services.identity.relations import Feed, Relations, Revocation

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
VERDICTS = {
    "granted": rel.VERDICT_GRANTED,
    "out_of_scope": rel.VERDICT_OUT_OF_SCOPE,
    "insufficient_relation": rel.VERDICT_INSUFFICIENT_RELATION,
    "caveat_violation": rel.VERDICT_CAVEAT_VIOLATION,
}


class EnrolmentApi(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Turns a bootstrap token into a node."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    async def Register(self, request: enrol.RegisterRequest, context: Context) -> enrol.RegisterResponse:
        wish = Wish(
            project_id=request.project_id,
            resource_handle=request.resource_handle,
            bootstrap_token=request.bootstrap_token,
            nonce=request.nonce,
            public_key=request.public_key,
            requested_resource_id=request.requested_resource_id,
        )
        enrolled = await self._enrolment.register(wish)
        node = enrolled.node
        with enrolled.key as key:
            answer = enrol.RegisterResponse(
                node_id=str(node.node_id),
                mesh_ip=node.mesh_ip,
                signing_public_key=enrolled.signing_key.public_key,
                signing_key_id=enrolled.signing_key.kid,
                nsk=bytes(key.reveal()),
                domain_mesh_cidr=node.mesh_cidr,
            )
        packed = pack.snapshot(node.snapshot)
        answer.MergeFromString(b"".join(part for peer, part in packed.items() if peer != node.node_id))
        return answer


class RelationsApi(relations_pb2_grpc.RelationsServiceServicer):
    """Answers the other services' checks."""

    def __init__(self, relations: Relations, feed: Feed, clock: Clock) -> None:
        self._relations = relations
        self._feed = feed
        self._clock = clock

    async def Check(self, request: rel.CheckRequest, context: Context) -> rel.CheckResponse:
        decision = await self._relations.decide(request.subject, request.permission, request.resource)
        return rel.CheckResponse(verdict=VERDICTS[decision.reason])

    async def BulkCheck(self, request: rel.BulkCheckRequest, context: Context) -> rel.BulkCheckResponse:
        decisions = await self._relations.decide_each(
            [(one.subject, one.permission, one.resource) for one in request.checks]
        )
        return rel.BulkCheckResponse(
            results=[
                rel.CheckResponse(verdict=VERDICTS[one.reason], conditional=one.conditional)
                if one
                else rel.CheckResponse()
                for one in decisions
            ]
        )

    async def WatchRevocations(
        self, request: rel.WatchRevocationsRequest, context: Context
    ) -> AsyncIterator[rel.WatchRevocationsResponse]:
        async for revocation in self._feed.listen():
            yield self._packed(revocation)

    def _packed(self, revocation: Revocation) -> rel.WatchRevocationsResponse:
        answer = rel.WatchRevocationsResponse(at=pack.timestamp(self._clock.now()))
        match revocation:
            case Revocation(kind="relation", relation=Tuple() as row):
                answer.relation.CopyFrom(
                    rel.RevokedRelation(subject=row.subject, relation=row.relation, resource=row.resource)
                )
            case Revocation(kind="node"):
                answer.node_id = revocation.value
            case Revocation(kind="credential"):
                answer.credential_digest = revocation.value
            case Revocation(kind="identity"):
                answer.identity_id = revocation.value
            case Revocation(kind="domain"):
                answer.domain_id = revocation.value
        return answer


class RelationsAdminApi(relations_pb2_grpc.RelationsAdminServiceServicer):
    """Changes who reads a secret."""

    def __init__(self, relations: Relations) -> None:
        self._relations = relations

    async def WriteRelation(self, request: rel.WriteRelationRequest, context: Context) -> rel.WriteRelationResponse:
        await self._relations.grant(Tuple(request.resource, request.relation, request.subject))
        return rel.WriteRelationResponse()

    async def DeleteRelation(self, request: rel.DeleteRelationRequest, context: Context) -> rel.DeleteRelationResponse:
        removed = await self._relations.remove(request.resource, request.relation, request.subject)
        return rel.DeleteRelationResponse(removed=removed)

    async def ListSubjects(self, request: rel.ListSubjectsRequest, context: Context) -> rel.ListSubjectsResponse:
        return rel.ListSubjectsResponse(subjects=await self._relations.subjects(request.resource, request.relation))


class FleetApi(relations_pb2_grpc.FleetServiceServicer):
    """Tells the other services where things stand."""

    def __init__(self, store: DirectoryStore, relations: Relations) -> None:
        self._store = store
        self._relations = relations

    async def GetStandings(self, request: rel.GetStandingsRequest, context: Context) -> rel.GetStandingsResponse:
        places = await self._store.places([UUID(node_id) for node_id in request.node_ids])
        nodes = [f"node:{place.node_id}" for place in places]
        decisions = await self._relations.decide_all([(node, "node-agent", node) for node in nodes]) if nodes else []
        return rel.GetStandingsResponse(
            standings=[
                rel.Standing(
                    node_id=str(place.node_id), domain_id=str(place.domain_id), project_id=str(place.project_id),
                    agent=decision.granted, nsk_kid=place.kid, old_nsk_kid=place.old_kid,
                )
                for place, decision in zip(places, decisions, strict=True)
            ]
        )  # fmt: skip

    async def LocateNode(self, request: rel.LocateNodeRequest, context: Context) -> rel.LocateNodeResponse:
        place = await self._store.place(UUID(request.node_id))
        if place is None:
            raise NotFound
        return rel.LocateNodeResponse(
            node_id=str(place.node_id),
            project_id=str(place.project_id),
            domain_id=str(place.domain_id),
            nsk_kid=place.kid,
        )

    async def LocateProject(self, request: rel.LocateProjectRequest, context: Context) -> rel.LocateProjectResponse:
        project = await self._store.project(UUID(request.project_id))
        if project is None:
            raise NotFound
        return rel.LocateProjectResponse(project_id=str(project.id), domain_id=str(project.domain_id))
