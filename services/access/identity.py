"""Relations, terms and ended sign-ins, as identity knows them."""

from collections.abc import Sequence
from uuid import UUID

from opentelemetry import trace

from libs.access_policy import AccessPolicy, Override, Strength
from libs.decision import Decision
from libs.errors import AuthzUnavailable, NotFound, PlexError
from libs.principal import Principal
from libs.relations import DEADLINE_S, REASONS, Relations
from libs.rpc.channel import Peer
from libs.rpc.context import current_call
from libs.scope import beyond
from libs.step_up import BY_PERSON
from libs.telemetry import hop
from libs.together import Together
from plexsphere.identity.v1 import access_policy_pb2 as pb
from plexsphere.identity.v1 import access_policy_pb2_grpc, relations_pb2, relations_pb2_grpc
from services.access.model import Terms

# As many as one request to identity may name.
AT_ONCE = 500
LIST_TERMS = "/plexsphere.identity.v1.SessionTermsService/ListSessionTerms"

tracer = trace.get_tracer("services.access")


class IdentityAuthority:
    """Answers who may do what."""

    def __init__(self, peer: Peer) -> None:
        self._relations = Relations(peer)
        self._stub = relations_pb2_grpc.RelationsServiceStub(peer)

    async def check(self, subject: str, permission: str, resource: str) -> Decision:
        """Answer one check, within the scope of the caller's token."""
        return await self._relations.check(subject, permission, resource)

    async def check_all(self, questions: Sequence[tuple[str, str, str]]) -> list[Decision]:
        """Answer several checks, about people who are not asking."""
        checks = [
            relations_pb2.CheckRequest(subject=subject, permission=permission, resource=resource)
            for subject, permission, resource in questions
        ]
        try:
            answer = await self._stub.BulkCheck(relations_pb2.BulkCheckRequest(checks=checks), timeout=DEADLINE_S)
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error
        if len(answer.results) != len(checks) or any(one.verdict not in REASONS for one in answer.results):
            raise AuthzUnavailable("no verdict")
        return [Decision(REASONS[one.verdict], one.conditional) for one in answer.results]


class IdentityDirectory:
    """Answers where things stand, and what is asked of people there."""

    def __init__(self, peer: Peer) -> None:
        self._fleet = relations_pb2_grpc.FleetServiceStub(peer)
        self._stub = access_policy_pb2_grpc.SessionTermsServiceStub(peer)
        self._terms = Together(self._list_terms)

    async def terms(self, caller: Principal, resource_id: UUID) -> tuple[Decision, Terms | None]:
        """Answer whether a caller may act on a resource, within the scope of a token, and return its terms."""
        question = pb.SessionTermsQuestion(
            resource_id=str(resource_id), identity_id=caller.subject, subject=caller.reference,
            sign_in_id=caller.session_id if caller.credential in BY_PERSON else "",
            client_ip=current_call().client_ip[:64],
        )  # fmt: skip
        with hop(tracer, LIST_TERMS, trace.SpanKind.CLIENT):
            found = await self._terms.ask(question)
        if found.verdict not in REASONS:
            raise AuthzUnavailable("no verdict")
        decision = Decision(REASONS[found.verdict])
        if decision.granted and beyond(caller.reference, "act"):
            decision = Decision("insufficient_relation")
        if not found.domain_id:
            return decision, None
        node_id = UUID(found.node_id) if found.node_id else None
        ids = (UUID(found.project_id), UUID(found.domain_id), node_id)
        return decision, Terms(*ids, policy_of(found.policy), tuple(found.binding_acr), found.sign_in_ended)

    async def _list_terms(self, questions: list[pb.SessionTermsQuestion]) -> Sequence[pb.SessionTerms]:
        try:
            answer = await self._stub.ListSessionTerms(
                pb.ListSessionTermsRequest(questions=questions), timeout=DEADLINE_S
            )
        except PlexError as error:
            raise AuthzUnavailable(error.code) from error
        return list(answer.terms)

    async def domain_of(self, project_id: UUID) -> UUID | None:
        """Return the Domain of a project."""
        try:
            found = await self._fleet.LocateProject(relations_pb2.LocateProjectRequest(project_id=str(project_id)))
        except NotFound:
            return None
        return UUID(found.domain_id)

    async def ended(self, sign_in_ids: Sequence[UUID]) -> set[UUID]:
        """Return which sign-ins were ended."""
        ended: set[UUID] = set()
        for start in range(0, len(sign_in_ids), AT_ONCE):
            request = pb.ListEndedSignInsRequest(sign_in_ids=map(str, sign_in_ids[start : start + AT_ONCE]))
            answer = await self._stub.ListEndedSignIns(request, timeout=DEADLINE_S)
            ended.update(UUID(one) for one in answer.sign_in_ids)
        return ended


def policy_of(policy: pb.AccessPolicy) -> AccessPolicy:
    """Unpack a policy."""
    strength = Strength(tuple(policy.required_acr), tuple(policy.required_amr), policy.max_auth_age_s)
    kinds = {
        kind: Override(tuple(one.required_acr), tuple(one.required_amr), one.max_auth_age_s or None)
        for kind, one in policy.kinds.items()
    }
    return AccessPolicy(
        strength, kinds, policy.default_ttl_s, policy.max_ttl_s, policy.max_active_per_identity,
        policy.max_active_per_node, policy.issue_rate_per_minute,
    )  # fmt: skip
