"""Relation checks for services that do not hold the SpiceDB key: identity answers, always fully consistent."""

from libs.decision import Decision
from libs.errors import AuthzUnavailable, PlexError
from libs.rpc.channel import Peer
from libs.scope import beyond
from plexsphere.identity.v1 import relations_pb2, relations_pb2_grpc

# Shorter than callers wait, so that they hear that relations are what is missing.
DEADLINE_S = 3.0

REASONS = {
    relations_pb2.VERDICT_GRANTED: "granted",
    relations_pb2.VERDICT_OUT_OF_SCOPE: "out_of_scope",
    relations_pb2.VERDICT_INSUFFICIENT_RELATION: "insufficient_relation",
    relations_pb2.VERDICT_CAVEAT_VIOLATION: "caveat_violation",
}


class Relations:
    """Asks identity; anything but an answer is AuthzUnavailable, never a denial."""

    def __init__(self, peer: Peer) -> None:
        self._stub = relations_pb2_grpc.RelationsServiceStub(peer)

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        """Answer whether `subject` (`user:<uuid>` …) has `permission` on `resource` (`<type>:<id>`)."""
        if beyond(subject, permission):
            return Decision("insufficient_relation")
        request = relations_pb2.CheckRequest(subject=subject, permission=permission, resource=resource)
        try:
            answer = await self._stub.Check(request, timeout=DEADLINE_S)
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error
        if answer.verdict not in REASONS:
            raise AuthzUnavailable("no verdict")
        return Decision(REASONS[answer.verdict])
