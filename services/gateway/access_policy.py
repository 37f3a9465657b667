"""A Domain's access policy: what it asks of people before they get a privileged session."""

from typing import Any

from aiohttp import web

from libs.access_policy import HIGHEST_LIMITS, KINDS, AccessPolicy
from libs.rpc.channel import Peer
from plexsphere.identity.v1 import access_policy_pb2 as pb
from plexsphere.identity.v1 import access_policy_pb2_grpc as stubs
from services.gateway.answers import JSON, given, reply
from services.gateway.edge import Asked, Route

DEFAULT = AccessPolicy()


class AccessPolicies:
    """Handlers of the operations on access policies."""

    def __init__(self, identity: Peer) -> None:
        self._stub = stubs.AccessPolicyServiceStub(identity)

    def routes(self) -> dict[str, Route]:
        """Return the handlers by operation."""
        return {"GetAccessPolicy": Route(self.get), "PutAccessPolicy": Route(self.put)}

    async def get(self, asked: Asked) -> web.Response:
        """Show a policy, all of it: what the Domain does not say is the platform's default."""
        request = pb.GetAccessPolicyRequest(domain_id=asked.path["id"])
        answer = await self._stub.GetAccessPolicy(request, metadata=asked.metadata)
        return reply(written(answer.policy))

    async def put(self, asked: Asked) -> web.Response:
        """Replace a policy; a member that is absent is the platform's default."""
        request = pb.PutAccessPolicyRequest(domain_id=asked.path["id"], policy=read(asked.body))
        answer = await self._stub.PutAccessPolicy(request, metadata=asked.metadata)
        return reply(written(answer.policy))


def read(body: Any) -> pb.AccessPolicy:
    """Read a policy."""
    default, kinds = DEFAULT.strength, body.get("kinds", {})
    longest_s = body.get("max_ttl_seconds", DEFAULT.max_ttl_s)
    return pb.AccessPolicy(
        required_acr=body.get("required_acr", default.required_acr),
        required_amr=body.get("required_amr", default.required_amr),
        max_auth_age_s=body.get("max_auth_age_seconds", default.max_auth_age_s),
        kinds={kind: override(kinds[kind]) for kind in KINDS if kind in kinds},
        default_ttl_s=body.get("default_ttl_seconds", min(DEFAULT.default_ttl_s, longest_s)),
        max_ttl_s=longest_s,
        max_active_per_identity=body.get("max_active_per_identity", DEFAULT.max_active_per_identity),
        max_active_per_node=body.get("max_active_per_node", DEFAULT.max_active_per_node),
        issue_rate_per_minute=body.get("issue_rate_per_minute", DEFAULT.issue_rate_per_minute),
        secret_limits=pb.SecretLimits(**{name: body[name] for name in HIGHEST_LIMITS if name in body}),
    )


def override(body: Any) -> pb.AccessOverride:
    """Read what a kind asks for beyond its Domain."""
    return pb.AccessOverride(
        required_acr=body.get("required_acr", ()),
        required_amr=body.get("required_amr", ()),
        max_auth_age_s=body.get("max_auth_age_seconds", 0),
    )


def written(policy: pb.AccessPolicy) -> JSON:
    """Write a policy."""
    kinds = {
        kind: given(
            required_acr=list(one.required_acr),
            required_amr=list(one.required_amr),
            max_auth_age_seconds=one.max_auth_age_s,
        )
        for kind, one in sorted(policy.kinds.items())
    }
    return {
        "required_acr": list(policy.required_acr),
        "required_amr": list(policy.required_amr),
        "max_auth_age_seconds": policy.max_auth_age_s,
        "kinds": kinds,
        "default_ttl_seconds": policy.default_ttl_s,
        "max_ttl_seconds": policy.max_ttl_s,
        "max_active_per_identity": policy.max_active_per_identity,
        "max_active_per_node": policy.max_active_per_node,
        "issue_rate_per_minute": policy.issue_rate_per_minute,
        # Where the Domain says nothing, what the secrets process is set to.
        **{limit.name: value for limit, value in policy.secret_limits.ListFields()},
    }
