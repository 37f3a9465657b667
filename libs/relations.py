"""Relation checks for services that do not hold the SpiceDB key: identity answers, always fully consistent."""

import asyncio

from opentelemetry import trace

from libs.decision import Decision
from libs.errors import AuthzUnavailable, PlexError
from libs.rpc.channel import Peer
from libs.scope import beyond
from libs.telemetry import hop
from libs.together import Together
from plexsphere.identity.v1 import relations_pb2, relations_pb2_grpc

# Shorter than callers wait, so that they hear that relations are what is missing.
DEADLINE_S = 3.0
BULK_CHECK = "/plexsphere.identity.v1.RelationsService/BulkCheck"
NODE = "node:"

REASONS = {
    relations_pb2.VERDICT_GRANTED: "granted",
    relations_pb2.VERDICT_OUT_OF_SCOPE: "out_of_scope",
    relations_pb2.VERDICT_INSUFFICIENT_RELATION: "insufficient_relation",
    relations_pb2.VERDICT_CAVEAT_VIOLATION: "caveat_violation",
}

tracer = trace.get_tracer("libs.relations")


class Relations:
    """Asks identity; anything but an answer is AuthzUnavailable, never a denial."""

    def __init__(self, peer: Peer) -> None:
        self._stub = relations_pb2_grpc.RelationsServiceStub(peer)
        self._of_nodes = Together(self._check_all)

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        """Answer whether `subject` (`user:<uuid>` …) has `permission` on `resource` (`<type>:<id>`)."""
        if beyond(subject, permission):
            return Decision("insufficient_relation")
        request = relations_pb2.CheckRequest(subject=subject, permission=permission, resource=resource)
        if subject.startswith(NODE):
            answer = await self._of_node(request)
        else:
            answer = await self._check(request)
        if answer.verdict not in REASONS:
            raise AuthzUnavailable("no verdict")
        return Decision(REASONS[answer.verdict])

    async def _check(self, request: relations_pb2.CheckRequest) -> relations_pb2.CheckResponse:
        try:
            return await self._stub.Check(request, timeout=DEADLINE_S)
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error

    async def _of_node(self, request: relations_pb2.CheckRequest) -> relations_pb2.CheckResponse:
        """Ask together with others: what nodes may depends on nobody's address, and is asked after each has asked."""
        try:
            with hop(tracer, BULK_CHECK, trace.SpanKind.CLIENT):
                async with asyncio.timeout(DEADLINE_S):
                    return await self._of_nodes.ask(request)
        except TimeoutError:
            raise AuthzUnavailable("too many wait") from None

    async def _check_all(self, requests: list[relations_pb2.CheckRequest]) -> list[relations_pb2.CheckResponse]:
        try:
            answer = await self._stub.BulkCheck(relations_pb2.BulkCheckRequest(checks=requests), timeout=DEADLINE_S)
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error
        return list(answer.results)
