"""The identity process."""

import asyncio
import functools
from uuid import UUID

import structlog

from libs.audit import AuditClient
from libs.bao import open_bao
from libs.clock import Clock, SystemClock
from libs.columns import guard_columns
from libs.counted import Counted
from libs.cursor import Cursors
from libs.custody import SecretFile, read_secret_file
from libs.errors import AuditUnavailable
from libs.ids import uuid7
from libs.outbox import MeshPublisher, Relay
from libs.pg import check_durable, create_pool, ping
from libs.principal import AssertionSigner
from libs.process import main
from libs.rpc.channel import connect
from libs.rpc.server import Registration, serve
from plexsphere.identity.v1 import (
    access_policy_pb2_grpc,
    authorization_pb2_grpc,
    directory_pb2_grpc,
    enrolment_pb2_grpc,
    relations_pb2_grpc,
    sign_in_pb2_grpc,
    tokens_pb2_grpc,
)
from services.identity.access_policies import AccessPolicies
from services.identity.access_policy_store import PgAccessPolicyStore
from services.identity.api_tokens import ApiTokens
from services.identity.authentication import Authentication
from services.identity.authority import Gate
from services.identity.authorization import Authorization
from services.identity.authorization_store import PgTupleDirectory
from services.identity.bindings import Bindings, checked
from services.identity.columns import COLUMNS
from services.identity.devices import Devices
from services.identity.drift_store import PgDriftStore
from services.identity.endpoints import Endpoints
from services.identity.enrolment import Enrolment
from services.identity.enrolment_store import PgEnrolmentStore
from services.identity.grpc_access import AccessPolicyApi, SessionTermsApi
from services.identity.grpc_authorization import AuthorizationApi
from services.identity.grpc_directory import DirectoryApi
from services.identity.grpc_fleet import EnrolmentApi, FleetApi, RelationsAdminApi, RelationsApi
from services.identity.grpc_nodes import NodeAdminApi, NodeApi
from services.identity.grpc_sign_in import AuthenticationApi, SessionApi, SignInApi
from services.identity.grpc_tokens import ApiTokenApi, PeopleApi, ServiceTokenApi
from services.identity.key_rotation import KeyRotation
from services.identity.logout import Logout
from services.identity.logout_store import PgLogoutStore
from services.identity.mesh import MeshKeys
from services.identity.model import Tuple
from services.identity.node_key_store import PgNodeKeyStore, retire_keys
from services.identity.node_keys import NodeKeys
from services.identity.node_state import NodeState
from services.identity.node_store import PgNodeStore
from services.identity.oidc import HttpProvider
from services.identity.people import People
from services.identity.reconcile import Reconcile
from services.identity.refresh import Refresh
from services.identity.refresh_store import PgRefreshStore
from services.identity.registration_store import Registrations
from services.identity.relation_store import PgTupleStore
from services.identity.relations import Feed, Relations
from services.identity.revocation_feed import follow
from services.identity.rotation_store import PgRotationStore
from services.identity.schema import PLATFORM
from services.identity.service import Identity
from services.identity.service_tokens import ServiceTokens
from services.identity.settings import Bootstrap, IdentitySettings
from services.identity.sign_in import SignIn
from services.identity.sign_in_model import Binding
from services.identity.sign_in_store import PgSignInStore
from services.identity.spicedb import SENTINEL, SpiceDb
from services.identity.store import PgStore
from services.identity.token_store import PgTokenStore
from services.identity.vault import BaoVault

PACKAGE = "plexsphere.identity.v1."
RETRY_S = 0.5

log = structlog.get_logger()


class PlatformAdmins:
    """Makes a person an administrator of the platform."""

    def __init__(self, store: PgSignInStore, relations: Relations) -> None:
        self._store = store
        self._relations = relations

    async def grant_platform_admin(self, person_id: UUID) -> None:
        """Grant, once for good: what was revoked since stays so."""
        await self._store.make_admin(person_id, Tuple(PLATFORM, "admin", f"user:{person_id}"))
        await self._relations.deliver()


def platform_binding(bootstrap: Bootstrap, clock: Clock) -> Binding:
    """Return the platform's own binding as the file states it."""
    now = clock.now()
    return checked(
        Binding(
            id=uuid7(), domain_id=None, issuer=bootstrap.issuer, client_id=bootstrap.client_id,
            client_secret_ref=bootstrap.client_secret_ref, discovery_url=bootstrap.discovery_url, claim_mappings={},
            required_acr=(), required_amr=(), jit_policy="allow", status="active", alias="platform", primary=True,
            created_at=now, updated_at=now,
        )
    )  # fmt: skip


async def ensure(bindings: Bindings, stated: Binding) -> None:
    """Bring the platform's binding up to date, once the audit service, which starts at the same time, has the row."""
    while True:
        try:
            return await bindings.ensure(stated)
        except AuditUnavailable as error:
            log.warning("platform_binding.waits", code=error.code)
            await asyncio.sleep(RETRY_S)


async def run(settings: IdentitySettings) -> None:
    """Connect, check what must hold, wire, serve."""
    async with (
        create_pool(settings.postgres, settings.tls) as pool,
        open_bao(settings.openbao, settings.tls) as bao,
        connect(settings.peers.audit, settings.tls) as audit_peer,
        connect(settings.peers.mesh, settings.tls) as mesh_peer,
    ):
        await check_durable(pool)
        await guard_columns(pool, "identity", COLUMNS)
        clock = SystemClock()
        audit = Counted(AuditClient(audit_peer, clock), clock)
        spicedb = SpiceDb(
            settings.spicedb.address, settings.spicedb.name, settings.spicedb.key_file, settings.tls.ca_file
        )
        relations = Relations(spicedb, PgTupleStore(pool), SENTINEL)
        feed = Feed()
        store, sign_in_store, vault, mesh = PgStore(pool), PgSignInStore(pool), BaoVault(bao), MeshKeys(mesh_peer)
        gate = Gate(relations, audit, store, clock)
        cursors, token_store = Cursors(SecretFile(settings.cursor_key_file)), PgTokenStore(pool)
        identity = Identity(store, gate, mesh, cursors, clock)
        policy_store = PgAccessPolicyStore(pool)
        authorization = Authorization(relations, PgTupleDirectory(pool), gate, policy_store, cursors)
        reconcile = Reconcile(relations, PgDriftStore(pool), gate)
        people = People(token_store, gate, cursors, clock, read_secret_file(settings.pseudonym_key_file))
        api_tokens = ApiTokens(token_store, gate, clock, settings.environment)
        service_tokens = ServiceTokens(token_store, audit, clock, settings.environment)
        enrolment = Enrolment(PgEnrolmentStore(pool, Registrations(pool)), gate, mesh, vault, clock)
        node_store = PgNodeStore(pool)
        state, endpoints = NodeState(node_store, gate, clock), Endpoints(node_store, gate, clock)
        rotation = KeyRotation(PgRotationStore(pool), gate, clock)
        key_store = PgNodeKeyStore(pool)
        node_keys = NodeKeys(key_store, gate, vault, clock)
        provider = HttpProvider(
            settings.sign_in.provider_ca_file,
            settings.sign_in.provider_networks,
            clock,
            settings.sign_in.provider_cache_s,
        )
        sign_in = SignIn(
            store=sign_in_store,
            provider=provider,
            secrets=vault,
            vault=vault,
            audit=audit,
            admins=PlatformAdmins(sign_in_store, relations),
            clock=clock,
            pkce_key=SecretFile(settings.sign_in.pkce_key_file),
            csrf_key=SecretFile(settings.sign_in.csrf_key_file),
            redirect_uri=f"{settings.sign_in.edge_url}/v1/auth/callback",
            bootstrap_issuer=settings.bootstrap.issuer,
            platform_admins=tuple(settings.bootstrap.platform_admins),
            return_paths=tuple(settings.sign_in.return_paths),
        )
        devices = Devices(sign_in_store, audit, clock, settings.environment)
        logout = Logout(PgLogoutStore(pool), provider, audit, clock)
        refresh = Refresh(PgRefreshStore(pool), provider, vault, vault, audit, clock)
        signer = AssertionSigner(settings.assertion.certificate_file, settings.assertion.key_file, clock)
        authentication = Authentication(sign_in_store, token_store, relations, signer, clock)
        policies = AccessPolicies(policy_store, gate, clock)
        bindings = Bindings(sign_in_store, provider, gate, policy_store, clock)
        await ensure(bindings, platform_binding(settings.bootstrap, clock))
        servicers = [
            ("AuthenticationService", AuthenticationApi(authentication), sign_in_pb2_grpc, False),
            ("SignInService", SignInApi(sign_in, devices, logout), sign_in_pb2_grpc, False),
            ("SessionService", SessionApi(sign_in, devices), sign_in_pb2_grpc, True),
            ("DirectoryService", DirectoryApi(identity, bindings), directory_pb2_grpc, True),
            ("ApiTokenService", ApiTokenApi(api_tokens), tokens_pb2_grpc, True),
            ("ServiceTokenService", ServiceTokenApi(service_tokens), tokens_pb2_grpc, False),
            ("PeopleService", PeopleApi(people), tokens_pb2_grpc, True),
            ("EnrolmentService", EnrolmentApi(enrolment), enrolment_pb2_grpc, False),
            ("NodeService", NodeApi(enrolment, state, endpoints, rotation, node_keys), enrolment_pb2_grpc, True),
            ("NodeAdminService", NodeAdminApi(state, rotation, node_keys), enrolment_pb2_grpc, True),
            ("RelationsService", RelationsApi(relations, feed, clock), relations_pb2_grpc, False),
            ("AuthorizationService", AuthorizationApi(authorization, reconcile), authorization_pb2_grpc, True),
            ("RelationsAdminService", RelationsAdminApi(relations), relations_pb2_grpc, False),
            ("AccessPolicyService", AccessPolicyApi(policies), access_policy_pb2_grpc, True),
            ("SessionTermsService", SessionTermsApi(policy_store, relations), access_policy_pb2_grpc, False),
            ("FleetService", FleetApi(store, relations), relations_pb2_grpc, False),
        ]
        registrations = [
            Registration(PACKAGE + name, servicer, getattr(module, f"add_{name}Servicer_to_server"), principal)
            for name, servicer, module, principal in servicers
        ]
        try:
            await serve(
                settings,
                registrations,
                readiness={
                    "postgres": functools.partial(ping, pool),
                    "openbao": bao.ping,
                    "spicedb": relations.ready,
                },
                background=[
                    relations.run(),
                    reconcile.watch(),
                    refresh.run(),
                    follow(pool, feed),
                    retire_keys(key_store, clock),
                    Relay(pool, "identity", MeshPublisher(mesh_peer)).run(),
                ],
            )
        finally:
            await provider.close()


if __name__ == "__main__":
    main(IdentitySettings, run)
