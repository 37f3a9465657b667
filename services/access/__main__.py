"""The access process: its parts, and how they fit."""

from libs.bao import open_bao
from libs.columns import guard_columns
from libs.pg import create_pool, ping
from libs.process import main
from libs.rpc.server import Registration, serve
from plexsphere.access.v1 import access_pb2_grpc as stubs
from services.access.columns import COLUMNS
from services.access.grpc_api import AccessApi, AccessNodeApi
from services.access.service import Access
from services.access.settings import AccessSettings

PACKAGE = "plexsphere.access.v1"


async def run(settings: AccessSettings) -> None:
    """Serve until told to stop."""
    async with create_pool(settings.postgres, settings.tls) as pool, open_bao(settings.openbao, settings.tls) as bao:
        await guard_columns(pool, "access", COLUMNS)
        rules = Access()
        await serve(
            settings,
            [
                Registration(
                    f"{PACKAGE}.AccessService",
                    AccessApi(rules),
                    stubs.add_AccessServiceServicer_to_server,
                    principal=True,
                ),
                Registration(
                    f"{PACKAGE}.AccessNodeService",
                    AccessNodeApi(rules),
                    stubs.add_AccessNodeServiceServicer_to_server,
                    principal=True,
                ),
            ],
            readiness={"postgres": lambda: ping(pool), "openbao": bao.ping},
        )


if __name__ == "__main__":
    main(AccessSettings, run)
