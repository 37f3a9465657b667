"""What each operation carries: the ids of a Domain by kind, in path, query and body, and what cannot carry any."""

from dataclasses import dataclass
from typing import Any

ROLE = {"subject": "user:{person}", "relation": "viewer", "resource": "project:{project}"}
TOKEN = {"env_prefix": "dev"}
CHECK = {"subject": "user:{person}", "relation": "read", "resource": "project:{project}"}
BINDING = {
    "issuer": "https://127.0.0.1:1", "client_id": "c", "jit_policy": "allow",
    "discovery_url": "https://127.0.0.1:1/.well-known/openid-configuration",
}  # fmt: skip
REGISTRATION = {
    "project_id": "{project}", "resource_handle": "{resource}", "bootstrap_token": "{issued}", "nonce": "{fresh}",
    "public_key": "{public_key}",
}  # fmt: skip
BEAT = {
    "client_now": "{now}", "binary_checksum": "A" * 43 + "=", "binary_version": "1.4.2", "nat_summary": {},
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A request with a place for each id that it carries; all else in it is valid."""

    operation: str
    path: str
    body: Any = None


REQUESTS = (
    # Tokens, people and rights.
    Request("PostAuthDeviceInspect", "/v1/auth/device/inspect", {"user_code": "{user_code}"}),
    Request("PostAuthDeviceApprove", "/v1/auth/device/approve", {"user_code": "{user_code}"}),
    Request("PostAuthDeviceDeny", "/v1/auth/device/deny", {"user_code": "{user_code}"}),
    Request(
        "PostAuthServiceToken", "/v1/auth/service/token",
        {"grant_type": "client_credentials", "client_id": "{service}", "client_secret": "{plaintext}"},
    ),
    Request("PostAuthTokens", "/v1/auth/tokens", {"identity_ref": "user:{person}", **TOKEN}),
    Request("PostAuthTokens", "/v1/auth/tokens", {"identity_ref": "service:{service}", **TOKEN}),
    Request("DeleteAuthTokenByID", "/v1/auth/tokens/{token}"),
    Request("PostAuthTokenRotate", "/v1/auth/tokens/{token}/rotate"),
    Request("GetAdminTokens", "/v1/admin/tokens?identity_ref=user:{person}"),
    Request("GetAdminTokens", "/v1/admin/tokens?identity_ref=service:{service}"),
    Request("PostAdminTokens", "/v1/admin/tokens", {"identity_ref": "user:{person}", **TOKEN}),
    Request("PostAdminTokens", "/v1/admin/tokens", {"identity_ref": "service:{service}", **TOKEN}),
    Request("DeleteAdminTokenByID", "/v1/admin/tokens/{token}"),
    Request("PostAdminTokenRotate", "/v1/admin/tokens/{token}/rotate"),
    Request("PostAuthzCheck", "/v1/authz/check", CHECK),
    Request("PostAuthzCheck", "/v1/authz/check", CHECK | {"subject": "node:{node}", "resource": "domain:{domain}"}),
    Request(
        "PostAuthzLookupResources", "/v1/authz/lookup-resources",
        {"subject": "user:{person}", "relation": "read", "resource_type": "project"},
    ),
    Request(
        "PostAuthzLookupResources", "/v1/authz/lookup-resources",
        {"subject": "node:{node}", "relation": "node-agent", "resource_type": "node"},
    ),
    Request(
        "PostAuthzLookupSubjects", "/v1/authz/lookup-subjects",
        {"subject_type": "user", "relation": "read", "resource": "project:{project}"},
    ),
    Request(
        "PostAuthzLookupSubjects", "/v1/authz/lookup-subjects",
        {"subject_type": "node", "relation": "node-agent", "resource": "node:{node}"},
    ),
    Request("ListRelationTuples", "/v1/authz/relation-tuples?project_id={project}"),
    Request("CreateRelationTuple", "/v1/authz/relation-tuples?project_id={parent}", ROLE),
    Request("CreateRelationTuple", "/v1/authz/relation-tuples?project_id={parent}", ROLE | {
        "relation": "member", "resource": "domain:{domain}",
    }),
    Request("CreateRelationTuple", "/v1/authz/relation-tuples?project_id={parent}", ROLE | {
        "subject": "service:{service}", "relation": "operator", "resource": "node:{node}",
    }),
    Request("PatchRelationTuple", "/v1/authz/relation-tuples/{tuple}", ROLE | {"relation": "deployer"}),
    Request("DeleteRelationTuple", "/v1/authz/relation-tuples/{tuple}"),
    Request("GetAdminIdPList", "/v1/admin/idp?domain_id={domain}"),
    Request(
        "PostAdminIdP", "/v1/admin/idp",
        BINDING | {"domain_id": "{domain}", "client_secret_ref": "{reference}"},
    ),
    Request("GetAdminIdPByID", "/v1/admin/idp/{binding}"),
    Request("DeleteAdminIdPByID", "/v1/admin/idp/{binding}"),
    Request("PatchAdminIdP", "/v1/admin/idp/{binding}", {"alias": "taken"}),
    Request("PatchAdminIdPStatus", "/v1/admin/idp/{binding}/status", {"status": "deactivated"}),
    Request("PostAdminPlatformIdP", "/v1/admin/platform-idp", BINDING | {"client_secret_ref": "{reference}"}),
    # The directory.
    Request("GetDomain", "/v1/domains/{domain}"),
    Request("DeleteDomain", "/v1/domains/{domain}"),
    Request("PatchDomain", "/v1/domains/{domain}", {"name": "taken"}),
    Request("ListProjects", "/v1/projects?domain_id={domain}"),
    Request("CreateProject", "/v1/projects", {"domain_id": "{domain}", "name": "P", "slug": "isolation"}),
    Request("GetProject", "/v1/projects/{project}"),
    Request("DeleteProject", "/v1/projects/{project}"),
    Request("PatchProject", "/v1/projects/{project}", {"name": "taken"}),
    Request("ListProjectResources", "/v1/projects/{project}/resources"),
    Request("CreateResource", "/v1/projects/{project}/resources", {"origin": "adopted", "kind": "k"}),
    Request("GetResource", "/v1/resources/{resource}"),
    Request("DeleteResource", "/v1/resources/{resource}"),
    Request("ListIdentities", "/v1/domains/{domain}/identities"),
    Request("GetIdentity", "/v1/domains/{domain}/identities/{person}"),
    Request("GetIdentity", "/v1/domains/{domain}/identities/{service}"),
    Request(
        "CreateServiceIdentity", "/v1/domains/{domain}/service-identities",
        {"display_name": "CI", "subject": "isolation", "audience": "a", "federation_kind": "api_token"},
    ),
    Request("DeleteServiceIdentity", "/v1/domains/{domain}/service-identities/{service}"),
    Request("ListBootstrapTokens", "/v1/projects/{project}/bootstrap-tokens"),
    Request(
        "IssueBootstrapToken", "/v1/projects/{project}/bootstrap-tokens",
        {"kind": "node", "env_prefix": "dev", "ttl_seconds": 900},
    ),
    Request("GetBootstrapTokenMetadata", "/v1/projects/{project}/bootstrap-tokens/{bootstrap_token}"),
    Request("RevokeBootstrapToken", "/v1/projects/{project}/bootstrap-tokens/{bootstrap_token}"),
    # Nodes.
    Request("PostRegister", "/v1/register", REGISTRATION),
    Request("PostRegister", "/v1/register", REGISTRATION | {
        "resource_handle": "{new_resource}", "requested_resource_id": "{resource}",
    }),
    Request("ListNodes", "/v1/nodes?domain_id={domain}"),
    Request("GetNodeEvents", "/v1/nodes/{node}/events"),
    Request("GetNodeState", "/v1/nodes/{node}/state"),
    Request("PostNodeHeartbeat", "/v1/nodes/{node}/heartbeat", BEAT),
    Request("PutNodeEndpoint", "/v1/nodes/{node}/endpoint", {
        "endpoint": "192.0.2.9:51820", "nat_type": "unknown", "reported_at": "{now}",
    }),
    Request("GetNodeSecret", "/v1/nodes/{node}/secrets/{secret}"),
    Request("GetNodeSecret", "/v1/nodes/{node}/secrets/{secret}?version=1"),
    Request("GetNodeReachability", "/v1/nodes/{node}/reachability"),
    Request("PostNodeKeysRotate", "/v1/nodes/{node}/keys/rotate"),
    Request("GetNodeKeysRotatePreview", "/v1/nodes/{node}/keys/rotate/preview"),
    Request("RotateNodeSecretKey", "/v1/nodes/{node}/secret-key/rotate"),
    Request("RevokeNodeSecretKey", "/v1/nodes/{node}/secret-key/revoke"),
    # Secrets.
    Request("ListProjectSecrets", "/v1/projects/{project}/secrets"),
    Request("PutProjectSecret", "/v1/projects/{project}/secrets/{secret}", b"taken"),
    Request("DestroyProjectSecret", "/v1/projects/{project}/secrets/{secret}"),
    Request("DestroyProjectSecretVersion", "/v1/projects/{project}/secrets/{secret}/versions/1"),
    Request("GrantProjectSecretReader", "/v1/projects/{project}/secrets/{secret}/readers/{node}"),
    Request("RevokeProjectSecretReader", "/v1/projects/{project}/secrets/{secret}/readers/{node}"),
    # Sessions.
    Request("ListSessions", "/v1/projects/{project}/sessions?identity_id={person}"),
    Request("IssueSession", "/v1/projects/{project}/sessions", {
        "resource_id": "{resource}", "kind": "ssh", "target": {"ssh": {"user": "root"}},
    }),
    Request("GetSession", "/v1/projects/{project}/sessions/{session}"),
    Request("AttachSession", "/v1/projects/{project}/sessions/{session}/attach"),
    Request("RevokeSession", "/v1/projects/{project}/sessions/{session}/revoke", {"revoke_reason": "operator_request"}),
    Request("PostNodeSessionCallback", "/v1/nodes/{node}/sessions/{session}", {"ssh": {"command": "id"}}),
    Request("GetAccessPolicy", "/v1/domains/{domain}/access-policy"),
    Request("PutAccessPolicy", "/v1/domains/{domain}/access-policy", {"max_ttl_seconds": 60}),
    # Events and keys.
    Request("ListSigningKeys", "/v1/domains/{domain}/signing-keys"),
    Request("RotateSigningKey", "/v1/domains/{domain}/signing-keys/rotate", {"transition_seconds": 600}),
    Request("RevokeSigningKey", "/v1/domains/{domain}/signing-keys/{key}/revoke"),
    *(
        Request("PublishDomainEvent", "/v1/domains/{parent_domain}/events", {
            "type": "action_request", "scope": f"{kind}:{{{kind}}}", "payload": {},
        }) for kind in ("node", "project", "domain")
    ),
    # Audit.
    Request("ListAuditEntries", "/v1/domains/{domain}/audit/entries"),
    Request("GetAuditEntry", "/v1/domains/{domain}/audit/entries/1"),
    Request("VerifyAuditChain", "/v1/domains/{domain}/audit/verify", {}),
    Request("VerifyAuditChainStream", "/v1/domains/{domain}/audit/verify/stream", {}),
    Request("ExportAuditEntries", "/v1/domains/{domain}/audit/export"),
    Request("EraseIdentityFromAudit", "/v1/domains/{domain}/audit/erase-identity", {"identity_id": "{person}"}),
    Request("EraseIdentityFromPlatformAudit", "/v1/platform/audit/erase-identity", {"identity_id": "{person}"}),
    Request("GetAuditCheckpoint", "/v1/domains/{domain}/audit/checkpoint"),
    Request("GetAuditProof", "/v1/domains/{domain}/audit/proof?seq=1&size=1"),
    Request("GetAuditConsistency", "/v1/domains/{domain}/audit/consistency?from=1&to=1"),
)  # fmt: skip

HEADERS = {
    "PutProjectSecret": {"If-Match": "1", "Content-Type": "application/octet-stream"},
    "AttachSession": {"Connection": "Upgrade", "Upgrade": "websocket"},
}

OPEN = "open to everybody: what a Domain shows to those who do not know it yet"
PLATFORM = "the platform's own: refused to every Domain alike, and names none"
CREDENTIAL = "carries a credential, not an id: test_kinds.py"
OWN = "is about the caller alone, or lists what the caller may see: test_isolation.py looks at the lists"
NOT_TRIED = {
    "GetHealth": OPEN, "GetVersion": OPEN, "GetOpenAPI": OPEN, "GetDocs": OPEN, "PostAuthSignIn": OPEN,
    "GetAuthIdPBindings": OPEN, "PostAuthDeviceCode": OPEN, "GetDomainJwks": OPEN,
    "GetAuthCallback": CREDENTIAL, "GetAuthBindingCallback": CREDENTIAL, "PostAuthDeviceToken": CREDENTIAL,
    "PostAuthBackchannelLogout": CREDENTIAL,
    "GetAuthTokens": OWN, "GetAuthWhoami": OWN, "DeleteAuthSession": OWN, "PostAuthSignOutGlobal": OWN,
    "ListDomains": OWN, "PostKeysRotate": OWN,
    "CreateDomain": PLATFORM, "GetAdminPlatformIdPList": PLATFORM, "ListPlatformAuditEntries": PLATFORM,
    "GetPlatformAuditEntry": PLATFORM, "VerifyPlatformAuditChain": PLATFORM, "GetPlatformAuditCheckpoint": PLATFORM,
    "VerifyPlatformAuditChainStream": PLATFORM, "ExportPlatformAuditEntries": PLATFORM,
    "GetPlatformAuditProof": PLATFORM, "GetPlatformAuditConsistency": PLATFORM, "GetPlatformPosture": PLATFORM,
    "ReconcileRelations": PLATFORM,
}  # fmt: skip
