"""Checks, lookups, and roles that people give; a denial is an answer here, not a refusal."""

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from libs.errors import InvalidRequest
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import authorization_pb2 as pb
from plexsphere.identity.v1 import authorization_pb2_grpc as stubs
from plexsphere.identity.v1 import relations_pb2
from services.gateway.answers import JSON, created, given, nothing, page, reply, when
from services.gateway.edge import CORRELATION, Asked, Route

REASONS = {
    relations_pb2.VERDICT_OUT_OF_SCOPE: "out_of_scope",
    relations_pb2.VERDICT_INSUFFICIENT_RELATION: "insufficient_relation",
    relations_pb2.VERDICT_CAVEAT_VIOLATION: "caveat_violation",
}
# Comparing takes longer than any other call.
RECONCILE_S = 15.0


class Authorization:
    """Handlers of the operations on relations."""

    def __init__(self, identity: Peer) -> None:
        self._stub = stubs.AuthorizationServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {
            "PostAuthzCheck": Route(self.check),
            "PostAuthzLookupResources": Route(self.lookup_resources),
            "PostAuthzLookupSubjects": Route(self.lookup_subjects),
            "ListRelationTuples": Route(self.list_tuples),
            "CreateRelationTuple": Route(self.create_tuple),
            "PatchRelationTuple": Route(self.update_tuple),
            "DeleteRelationTuple": Route(self.delete_tuple),
            "ReconcileRelations": Route(self.reconcile),
        }

    async def check(self, asked: Asked) -> web.Response:
        """Answer a check."""
        body = asked.body
        request = pb.CheckRelationRequest(
            subject=body["subject"].lower(),
            relation=body["relation"],
            resource=body["resource"].lower(),
            caveat_context=flat(body),
        )
        answer = await self._stub.CheckRelation(request, metadata=asked.metadata)
        if answer.verdict == relations_pb2.VERDICT_GRANTED:
            return reply({"decision": "allowed", "correlation_id": asked.http[CORRELATION]})
        reason = REASONS.get(answer.verdict, "unknown")
        return reply(
            {
                "decision": "denied",
                "reason": reason,
                "relation_path": [],
                "correlation_id": asked.http[CORRELATION],
            }
        )

    async def lookup_resources(self, asked: Asked) -> web.Response:
        """List what a subject has a permission on."""
        body = asked.body
        request = pb.LookupResourcesRequest(
            subject=body["subject"].lower(),
            relation=body["relation"],
            resource_type=body["resource_type"],
            caveat_context=flat(body),
        )
        answer = await self._stub.LookupResources(request, metadata=asked.metadata)
        return reply({"items": list(answer.resources), "correlation_id": asked.http[CORRELATION]})

    async def lookup_subjects(self, asked: Asked) -> web.Response:
        """List who has a permission on an object."""
        body = asked.body
        request = pb.LookupSubjectsRequest(
            subject_type=body["subject_type"],
            relation=body["relation"],
            resource=body["resource"].lower(),
            caveat_context=flat(body),
        )
        answer = await self._stub.LookupSubjects(request, metadata=asked.metadata)
        return reply({"items": list(answer.subjects), "correlation_id": asked.http[CORRELATION]})

    async def list_tuples(self, asked: Asked) -> web.Response:
        """List the roles in a project."""
        query = asked.query
        request = pb.ListRelationTuplesRequest(
            project_id=query["project_id"], cursor=query.get("cursor", ""), limit=query["limit"]
        )
        answer = await self._stub.ListRelationTuples(request, metadata=asked.metadata)
        return page([written(row) for row in answer.tuples], answer.next_cursor)

    async def create_tuple(self, asked: Asked) -> web.Response:
        """Give a role."""
        request = pb.CreateRelationTupleRequest(project_id=asked.query["project_id"], tuple=wanted(asked.body))
        answer = await self._stub.CreateRelationTuple(request, metadata=asked.metadata)
        return created(written(answer.tuple), f"/v1/authz/relation-tuples/{answer.tuple.id}")

    async def update_tuple(self, asked: Asked) -> web.Response:
        """Replace a role."""
        request = pb.UpdateRelationTupleRequest(tuple_id=asked.path["id"], tuple=wanted(asked.body))
        answer = await self._stub.UpdateRelationTuple(request, metadata=asked.metadata)
        return reply(written(answer.tuple))

    async def delete_tuple(self, asked: Asked) -> web.Response:
        """Take a role away."""
        request = pb.DeleteRelationTupleRequest(tuple_id=asked.path["id"])
        await self._stub.DeleteRelationTuple(request, metadata=asked.metadata)
        return nothing()

    async def reconcile(self, asked: Asked) -> web.Response:
        """Compare SpiceDB with identity's table, and correct it when asked to."""
        request = pb.ReconcileRelationsRequest(repair=asked.body.get("repair", False))
        answer = await self._stub.ReconcileRelations(request, metadata=asked.metadata, timeout=RECONCILE_S)
        lists = {name: list(getattr(answer, name)) for name in ("missing", "surplus", "altered", "refused")}
        return reply({"repaired": request.repair, "total": answer.total, **lists})


def flat(body: JSON) -> Struct:
    """Return a caveat's context; raises InvalidRequest unless its values are plain texts, numbers or booleans."""
    values: JSON = body.get("caveat_context", {})
    if not all(isinstance(value, (str, int, float, bool)) for value in values.values()):
        raise InvalidRequest("caveat_context holds something else than texts, numbers and booleans")
    context = Struct()
    context.update(values)
    return context


def wanted(body: JSON) -> pb.WantedTuple:
    """Read a relation that is wanted."""
    return pb.WantedTuple(
        subject=body["subject"].lower(),
        relation=body["relation"],
        resource=body["resource"].lower(),
        caveat_name=body.get("caveat_name", ""),
        caveat_context=flat(body),
    )


def written(row: pb.RelationTuple) -> JSON:
    """Write a relation."""
    return {
        "id": row.id,
        "subject": row.subject,
        "relation": row.relation,
        "resource": row.resource,
        **given(caveat_name=row.caveat_name, caveat_context=MessageToDict(row.caveat_context)),
        "created_at": when(row.created_at),
    }
