"""Access policies at the edge: there and back whole, and what is left out is the platform's."""

from typing import Any

import pytest

from plexsphere.identity.v1 import access_policy_pb2 as pb
from services.gateway.tests.fakes import OPERATOR, OTHER, Client, FakePeer, problem

pytestmark = pytest.mark.unit

PATH = f"/v1/domains/{OTHER}/access-policy"
DEFAULT = {
    "required_acr": [],
    "required_amr": [],
    "max_auth_age_seconds": 300,
    "kinds": {},
    "default_ttl_seconds": 900,
    "max_ttl_seconds": 3600,
    "max_active_per_identity": 10,
    "max_active_per_node": 50,
    "issue_rate_per_minute": 30,
}
SHORT = {"max_ttl_seconds": 60, "default_ttl_seconds": 60}
WHOLE = {
    "required_acr": ["urn:mfa", "urn:phr"],
    "required_amr": ["otp"],
    "max_auth_age_seconds": 120,
    "kinds": {"ssh": {"required_acr": ["urn:phr"], "max_auth_age_seconds": 60}, "tcp": {"required_amr": ["hwk"]}},
    "default_ttl_seconds": 60,
    "max_ttl_seconds": 120,
    "max_active_per_identity": 1,
    "max_active_per_node": 2,
    "issue_rate_per_minute": 3,
    "node_rate_per_minute": 4,
    "node_burst": 5,
    "domain_rate_per_minute": 6,
    "domain_burst": 7,
}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (WHOLE, WHOLE),
        ({}, DEFAULT),
        ({"max_ttl_seconds": 60}, DEFAULT | SHORT),
        ({"node_burst": 5}, DEFAULT | {"node_burst": 5}),
        ({"kinds": {"k8s": {}}}, DEFAULT | {"kinds": {"k8s": {}}}),
    ],
)
async def test_a_policy_is_kept_as_it_was_put(edge: Client, peer: FakePeer, sent: Any, kept: Any) -> None:
    peer.answers["PutAccessPolicy"] = lambda request: pb.PutAccessPolicyResponse(policy=request.policy)
    put = await edge.put(PATH, json=sent, headers=OPERATOR)
    assert (put.status, await put.json()) == (200, kept)
    policy = peer.last("PutAccessPolicy")[0].policy
    peer.answers["GetAccessPolicy"] = lambda _: pb.GetAccessPolicyResponse(policy=policy)
    shown = await edge.get(PATH, headers=OPERATOR)
    assert (shown.status, await shown.json()) == (200, kept)
    assert peer.last("Authenticate")[0].audience == "identity"


@pytest.mark.parametrize(
    "wrong",
    [
        {"required_acr": "x"},
        {"max_ttl_seconds": 0},
        {"node_burst": 0},
        {"kinds": {"ssh": {"max_auth_age_seconds": 0}}},
        [],
    ],
)
async def test_a_body_that_does_not_fit_is_refused(edge: Client, wrong: Any) -> None:
    assert await problem(await edge.put(PATH, json=wrong, headers=OPERATOR)) == (400, "invalid_body")
