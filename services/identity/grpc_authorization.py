"""identity.AuthorizationService: unpack, call the rule, pack."""

from typing import Any, TypeAlias
from uuid import UUID

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from plexsphere.identity.v1 import authorization_pb2 as pb
from plexsphere.identity.v1 import authorization_pb2_grpc
from services.identity import pack
from services.identity.authorization import Authorization
from services.identity.grpc_fleet import VERDICTS
from services.identity.model import Caveat, Tuple, TupleRow
from services.identity.reconcile import Reconcile

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MOST_SHOWN = 500


class AuthorizationApi(authorization_pb2_grpc.AuthorizationServiceServicer):
    """Relations as people ask about them and give them."""

    def __init__(self, authorization: Authorization, reconcile: Reconcile) -> None:
        self._rules = authorization
        self._reconcile = reconcile

    async def CheckRelation(self, request: pb.CheckRelationRequest, context: Context) -> pb.CheckRelationResponse:
        known = MessageToDict(request.caveat_context)
        decision = await self._rules.check(pack.caller(), request.subject, request.relation, request.resource, known)
        return pb.CheckRelationResponse(verdict=VERDICTS[decision.reason])

    async def LookupResources(self, request: pb.LookupResourcesRequest, context: Context) -> pb.LookupResourcesResponse:
        known = MessageToDict(request.caveat_context)
        found = await self._rules.lookup_resources(
            pack.caller(), request.subject, request.relation, request.resource_type, known
        )
        return pb.LookupResourcesResponse(resources=found)

    async def LookupSubjects(self, request: pb.LookupSubjectsRequest, context: Context) -> pb.LookupSubjectsResponse:
        known = MessageToDict(request.caveat_context)
        found = await self._rules.lookup_subjects(
            pack.caller(), request.subject_type, request.relation, request.resource, known
        )
        return pb.LookupSubjectsResponse(subjects=found)

    async def ListRelationTuples(
        self, request: pb.ListRelationTuplesRequest, context: Context
    ) -> pb.ListRelationTuplesResponse:
        rows, cursor = await self._rules.page(pack.caller(), UUID(request.project_id), request.cursor, request.limit)
        return pb.ListRelationTuplesResponse(tuples=map(_packed, rows), next_cursor=cursor)

    async def CreateRelationTuple(
        self, request: pb.CreateRelationTupleRequest, context: Context
    ) -> pb.CreateRelationTupleResponse:
        row = await self._rules.create(pack.caller(), UUID(request.project_id), _wanted(request.tuple))
        return pb.CreateRelationTupleResponse(tuple=_packed(row))

    async def UpdateRelationTuple(
        self, request: pb.UpdateRelationTupleRequest, context: Context
    ) -> pb.UpdateRelationTupleResponse:
        row = await self._rules.update(pack.caller(), UUID(request.tuple_id), _wanted(request.tuple))
        return pb.UpdateRelationTupleResponse(tuple=_packed(row))

    async def DeleteRelationTuple(
        self, request: pb.DeleteRelationTupleRequest, context: Context
    ) -> pb.DeleteRelationTupleResponse:
        await self._rules.delete(pack.caller(), UUID(request.tuple_id))
        return pb.DeleteRelationTupleResponse()

    async def ReconcileRelations(
        self, request: pb.ReconcileRelationsRequest, context: Context
    ) -> pb.ReconcileRelationsResponse:
        drift = await self._reconcile.run(pack.caller(), repair=request.repair)
        lists = {name: getattr(drift, name) for name in ("missing", "surplus", "altered", "refused")}
        shown = {name: [str(row) for row in rows[:MOST_SHOWN]] for name, rows in lists.items()}
        return pb.ReconcileRelationsResponse(**shown, total=sum(map(len, lists.values())))


def _wanted(tuple_: pb.WantedTuple) -> Tuple:
    context = MessageToDict(tuple_.caveat_context)
    # A context without a name is kept, so that the rule refuses it rather than give more than was meant.
    caveat = Caveat(tuple_.caveat_name, context) if tuple_.caveat_name or context else None
    return Tuple(tuple_.resource, tuple_.relation, tuple_.subject, caveat)


def _packed(stored: TupleRow) -> pb.RelationTuple:
    row, context = stored.row, Struct()
    if row.caveat is not None:
        context.update(dict(row.caveat.context))
    return pb.RelationTuple(
        id=str(stored.id), subject=row.subject, relation=row.relation, resource=row.resource,
        caveat_name=row.caveat.name if row.caveat else "", caveat_context=context,
        created_at=pack.timestamp(stored.created_at),
    )  # fmt: skip
