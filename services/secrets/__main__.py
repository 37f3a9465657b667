"""The secrets process: its parts, and how they fit."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from libs.audit import AuditClient
from libs.bao import open_bao
from libs.clock import SystemClock
from libs.columns import guard_columns
from libs.counted import Counted
from libs.cursor import Cursors
from libs.custody import SecretFile
from libs.errors import PlexError
from libs.outbox import MeshPublisher, Relay
from libs.pg import create_pool, ping
from libs.process import main
from libs.rpc.channel import connect
from libs.rpc.server import Registration, serve
from plexsphere.secrets.v1 import secrets_pb2_grpc as stubs
from services.secrets.administration import SecretsAdmin
from services.secrets.columns import COLUMNS
from services.secrets.grpc_api import SecretsAdminApi, SecretsApi
from services.secrets.identity import IdentityFleet, IdentityRelations
from services.secrets.limits import PgLimiter
from services.secrets.service import Secrets
from services.secrets.settings import SecretsSettings
from services.secrets.store import PgStore
from services.secrets.tally import Tally
from services.secrets.vault import BaoVault

FINISH_EVERY_S = 15.0
REPORT_EVERY_S = 60.0

log = structlog.get_logger()


async def once(name: str, step: Callable[[], Awaitable[int]]) -> None:
    """Do a step; a refusal is logged."""
    try:
        if count := await step():
            log.info(name, count=count)
    except PlexError as error:
        log.warning(name, code=error.code)


async def every(seconds: float, name: str, step: Callable[[], Awaitable[int]]) -> None:
    """Do a step at once and then for ever; what was refused is tried again the next time."""
    while True:
        await once(name, step)
        await asyncio.sleep(seconds)


async def run(settings: SecretsSettings) -> None:
    """Serve secrets until told to stop."""
    async with (
        create_pool(settings.postgres, settings.tls) as pool,
        open_bao(settings.openbao, settings.tls) as bao,
        connect(settings.peers.identity, settings.tls) as identity,
        connect(settings.peers.audit, settings.tls) as audit,
        connect(settings.peers.mesh, settings.tls) as mesh,
    ):
        await guard_columns(pool, "secrets", COLUMNS)
        store, vault, relations = PgStore(pool), BaoVault(bao), IdentityRelations(identity)
        clock, cursors = SystemClock(), Cursors(SecretFile(settings.cursor_key_file))
        chain = AuditClient(audit, clock)
        # Reads have a row each: their limits bound them.
        reads = Secrets(
            PgLimiter(pool, settings.limits, settings.limits_at_most), store, relations, chain, vault, Tally()
        )
        admin = SecretsAdmin(IdentityFleet(identity), store, relations, Counted(chain, clock), vault, cursors)
        package = "plexsphere.secrets.v1"
        await serve(
            settings,
            [
                Registration(
                    f"{package}.SecretsService",
                    SecretsApi(reads),
                    stubs.add_SecretsServiceServicer_to_server,
                    principal=True,
                ),
                Registration(
                    f"{package}.SecretsAdminService",
                    SecretsAdminApi(admin),
                    stubs.add_SecretsAdminServiceServicer_to_server,
                    principal=True,
                ),
            ],
            readiness={"postgres": lambda: ping(pool), "openbao": bao.ping},
            background=[
                every(FINISH_EVERY_S, "secrets.finish_left_behind", admin.finish_left_behind),
                Relay(pool, "secrets", MeshPublisher(mesh)).run(),
                every(REPORT_EVERY_S, "secrets.report_limited", reads.report_limited),
            ],
        )
        # Whoever is drained has told what its limits refused.
        await once("secrets.report_limited", reads.report_limited)


if __name__ == "__main__":
    main(SecretsSettings, run)
