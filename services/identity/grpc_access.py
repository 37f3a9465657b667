"""identity.AccessPolicyService and SessionTermsService: unpack, call the rule, pack."""

import asyncio
from dataclasses import asdict
from typing import Any, TypeAlias
from uuid import UUID

import grpc

from libs.access_policy import AccessPolicy, Override, SecretLimits, Strength
from plexsphere.identity.v1 import access_policy_pb2 as pb
from plexsphere.identity.v1 import access_policy_pb2_grpc
from services.identity import pack
from services.identity.access_policies import AccessPolicies
from services.identity.grpc_fleet import VERDICTS
from services.identity.model import SessionTerms
from services.identity.ports import AccessPolicyStore, Authority

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def packed(policy: AccessPolicy) -> pb.AccessPolicy:
    """Pack a policy."""
    strength = policy.strength
    return pb.AccessPolicy(
        required_acr=strength.required_acr, required_amr=strength.required_amr, max_auth_age_s=strength.max_auth_age_s,
        kinds={
            kind: pb.AccessOverride(
                required_acr=one.required_acr, required_amr=one.required_amr, max_auth_age_s=one.max_auth_age_s or 0
            )
            for kind, one in policy.kinds.items()
        },
        default_ttl_s=policy.default_ttl_s, max_ttl_s=policy.max_ttl_s,
        max_active_per_identity=policy.max_active_per_identity, max_active_per_node=policy.max_active_per_node,
        issue_rate_per_minute=policy.issue_rate_per_minute,
        secret_limits=pb.SecretLimits(**asdict(policy.secret_limits)),
    )  # fmt: skip


def unpacked(policy: pb.AccessPolicy) -> AccessPolicy:
    """Unpack a policy."""
    strength = Strength(tuple(policy.required_acr), tuple(policy.required_amr), policy.max_auth_age_s)
    kinds = {
        kind: Override(tuple(one.required_acr), tuple(one.required_amr), one.max_auth_age_s or None)
        for kind, one in policy.kinds.items()
    }
    return AccessPolicy(
        strength, kinds, policy.default_ttl_s, policy.max_ttl_s, policy.max_active_per_identity,
        policy.max_active_per_node, policy.issue_rate_per_minute,
        SecretLimits(**{name.name: value for name, value in policy.secret_limits.ListFields()}),
    )  # fmt: skip


def packed_terms(terms: SessionTerms | None, verdict: Any, *, ended: bool) -> pb.SessionTerms:
    """Pack terms."""
    if terms is None:
        return pb.SessionTerms(verdict=verdict, sign_in_ended=ended)
    return pb.SessionTerms(
        project_id=str(terms.project_id), domain_id=str(terms.domain_id), node_id=str(terms.node_id or ""),
        policy=packed(terms.policy), binding_acr=terms.binding_acr, verdict=verdict, sign_in_ended=ended,
    )  # fmt: skip


class AccessPolicyApi(access_policy_pb2_grpc.AccessPolicyServiceServicer):
    """Policies, for those who manage a Domain."""

    def __init__(self, policies: AccessPolicies) -> None:
        self._policies = policies

    async def GetAccessPolicy(self, request: pb.GetAccessPolicyRequest, context: Context) -> pb.GetAccessPolicyResponse:
        policy = await self._policies.get(pack.caller(), UUID(request.domain_id))
        return pb.GetAccessPolicyResponse(policy=packed(policy))

    async def PutAccessPolicy(self, request: pb.PutAccessPolicyRequest, context: Context) -> pb.PutAccessPolicyResponse:
        policy = await self._policies.put(pack.caller(), UUID(request.domain_id), unpacked(request.policy))
        return pb.PutAccessPolicyResponse(policy=packed(policy))


class SessionTermsApi(access_policy_pb2_grpc.SessionTermsServiceServicer):
    """What access decides sessions with."""

    def __init__(self, store: AccessPolicyStore, authority: Authority) -> None:
        self._store = store
        self._authority = authority

    async def ListSessionTerms(
        self, request: pb.ListSessionTermsRequest, context: Context
    ) -> pb.ListSessionTermsResponse:
        asked = request.questions
        decisions, terms, ended = await asyncio.gather(
            self._authority.decide_from(
                [(one.subject, "act", f"resource:{one.resource_id}") for one in asked],
                [one.client_ip for one in asked],
            ),
            self._store.session_terms([(UUID(one.resource_id), UUID(one.identity_id)) for one in asked]),
            self._store.ended_sign_ins([UUID(one.sign_in_id) for one in asked if one.sign_in_id]),
        )
        over = set(map(str, ended))
        return pb.ListSessionTermsResponse(
            terms=[
                packed_terms(found, VERDICTS[decision.reason], ended=one.sign_in_id in over)
                for one, decision, found in zip(asked, decisions, terms, strict=True)
            ]
        )

    async def ListEndedSignIns(
        self, request: pb.ListEndedSignInsRequest, context: Context
    ) -> pb.ListEndedSignInsResponse:
        ended = await self._store.ended_sign_ins([UUID(one) for one in request.sign_in_ids])
        return pb.ListEndedSignInsResponse(sign_in_ids=map(str, ended))
