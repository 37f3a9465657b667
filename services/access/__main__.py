"""The access process: its parts, and how they fit."""

from libs.audit import AuditClient
from libs.bao import open_bao
from libs.clock import SystemClock
from libs.columns import guard_columns
from libs.counted import Counted
from libs.cursor import Cursors
from libs.custody import SecretFile
from libs.outbox import MeshPublisher, Relay
from libs.pg import check_durable, create_pool, ping
from libs.process import main
from libs.rpc.channel import connect
from libs.rpc.server import Registration, serve
from plexsphere.access.v1 import access_pb2_grpc as stubs
from services.access.activity import Activity
from services.access.columns import COLUMNS
from services.access.grpc_api import AccessApi, AccessNodeApi, SessionKeysAdminApi, SessionKeysApi
from services.access.identity import IdentityAuthority, IdentityDirectory
from services.access.key_store import PgKeyStore
from services.access.keys import SessionKeys
from services.access.model import SCHEMA, Doubt
from services.access.revocations import follow
from services.access.service import Access
from services.access.settings import AccessSettings
from services.access.standing import Standing
from services.access.store import PgStore
from services.access.token import Seals
from services.access.vault import BaoVault

PACKAGE = "plexsphere.access.v1."


async def run(settings: AccessSettings) -> None:
    """Serve sessions until told to stop."""
    async with (
        create_pool(settings.postgres, settings.tls) as pool,
        open_bao(settings.openbao, settings.tls) as bao,
        connect(settings.peers.identity, settings.tls) as identity,
        connect(settings.peers.mesh, settings.tls) as mesh,
        connect(settings.peers.audit, settings.tls) as audit_peer,
    ):
        await check_durable(pool)
        await guard_columns(pool, SCHEMA, COLUMNS)
        clock = SystemClock()
        audit = Counted(AuditClient(audit_peer, clock), clock)
        store, authority = PgStore(pool), IdentityAuthority(identity)
        directory, own_key, doubt = IdentityDirectory(identity), SecretFile(settings.cursor_key_file), Doubt()
        keys = SessionKeys(BaoVault(bao), PgKeyStore(pool), audit, authority, clock, doubt)
        access = Access(
            store, keys, directory, authority, audit, Cursors(own_key), clock, settings.issuer, Seals(own_key), doubt
        )
        activity = Activity(store, authority, audit, clock)
        standing = Standing(store, directory, authority, audit, clock, doubt)
        # Public halves are for everybody; everything else has somebody behind it.
        servicers = [
            ("AccessService", AccessApi(access, clock), True),
            ("AccessNodeService", AccessNodeApi(activity), True),
            ("SessionKeysService", SessionKeysApi(keys), False),
            ("SessionKeysAdminService", SessionKeysAdminApi(keys), True),
        ]
        await serve(
            settings,
            [
                Registration(PACKAGE + name, servicer, getattr(stubs, f"add_{name}Servicer_to_server"), principal)
                for name, servicer, principal in servicers
            ],
            readiness={"postgres": lambda: ping(pool), "openbao": bao.ping},
            background=[
                follow(identity, doubt),
                standing.run(),
                Relay(pool, SCHEMA, MeshPublisher(mesh)).run(),
            ],
        )


if __name__ == "__main__":
    main(AccessSettings, run)
