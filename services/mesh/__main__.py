"""The mesh process: its parts, and how they fit."""

from libs.audit import AuditClient
from libs.bao import open_bao
from libs.columns import guard_columns
from libs.pg import create_pool, ping
from libs.process import main
from libs.rpc.channel import connect
from libs.rpc.server import Registration, serve
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from services.mesh.audit import AuditChain
from services.mesh.columns import COLUMNS
from services.mesh.grpc_api import MeshAdminApi, PublishApi, SigningKeysApi
from services.mesh.service import SigningKeys
from services.mesh.settings import MeshSettings
from services.mesh.store import PgStore
from services.mesh.vault import BaoVault

PACKAGE = "plexsphere.mesh.v1"


async def run(settings: MeshSettings) -> None:
    """Serve signing keys until told to stop."""
    async with (
        create_pool(settings.postgres, settings.tls) as pool,
        open_bao(settings.openbao, settings.tls) as bao,
        connect(settings.peers.audit, settings.tls) as audit,
    ):
        await guard_columns(pool, "mesh", COLUMNS)
        keys = SigningKeys(BaoVault(bao), PgStore(pool), AuditChain(AuditClient(audit)))
        await serve(
            settings,
            [
                # Relays of other services have no person behind them; operators always do.
                Registration(
                    f"{PACKAGE}.SigningKeysService",
                    SigningKeysApi(keys),
                    stubs.add_SigningKeysServiceServicer_to_server,
                    principal=False,
                ),
                Registration(
                    f"{PACKAGE}.PublishService",
                    PublishApi(),
                    stubs.add_PublishServiceServicer_to_server,
                    principal=False,
                ),
                Registration(
                    f"{PACKAGE}.MeshAdminService",
                    MeshAdminApi(),
                    stubs.add_MeshAdminServiceServicer_to_server,
                    principal=True,
                ),
            ],
            readiness={"postgres": lambda: ping(pool), "openbao": bao.ping},
        )


if __name__ == "__main__":
    main(MeshSettings, run)
