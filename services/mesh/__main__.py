"""The mesh process: its parts, and how they fit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from libs.audit import AuditClient
from libs.bao import open_bao
from libs.clock import SystemClock
from libs.columns import guard_columns
from libs.counted import Counted
from libs.errors import PlexError
from libs.nats import open_bus
from libs.outbox import Outgoing, Relay
from libs.pg import check_durable, create_pool, ping
from libs.process import main
from libs.relations import Relations
from libs.rpc.channel import connect
from libs.rpc.server import Registration, serve
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from services.mesh.bus import JetStream
from services.mesh.columns import COLUMNS
from services.mesh.delivery import Delivery
from services.mesh.fleet import IdentityFleet
from services.mesh.grpc_api import DeliveryApi, MeshAdminApi, PublishApi, SigningKeysApi
from services.mesh.keeper import Keeper
from services.mesh.log_store import PgLog
from services.mesh.model import Event
from services.mesh.pipeline import open_pipeline
from services.mesh.publisher import Publisher
from services.mesh.service import Halves, OperatorEvents, SigningKeys
from services.mesh.settings import MeshSettings
from services.mesh.store import PgKeyStore
from services.mesh.vault import BaoVault

PACKAGE = "plexsphere.mesh.v1."
KEEP_UP_EVERY_S = 1.0

log = structlog.get_logger()


async def every(seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    """Repeat a step for ever; a refusal is logged, and the next turn tries again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await step()
        except PlexError as error:
            log.warning("signing_key.postponed", code=error.code)
        except Exception:
            # One step that goes wrong must not end all that the others do.
            log.exception("signing_key.bug")


async def run(settings: MeshSettings) -> None:
    """Serve keys and events until told to stop."""
    async with (
        create_pool(settings.postgres, settings.tls) as pool,
        open_bao(settings.openbao, settings.tls) as bao,
        open_pipeline(bao) as pipeline,
        open_bus(settings.nats, settings.tls, settings.service) as bus,
        connect(settings.peers.identity, settings.tls) as identity,
        connect(settings.peers.audit, settings.tls) as audit_peer,
    ):
        await check_durable(pool)
        await guard_columns(pool, "mesh", COLUMNS)
        clock = SystemClock()
        vault, keys, events = BaoVault(bao, pipeline), PgKeyStore(pool), PgLog(pool)
        stream = JetStream(bus, settings.stream.replicas)
        halves, audit, relations = Halves(vault), Counted(AuditClient(audit_peer, clock), clock), Relations(identity)
        publisher = Publisher(keys, halves, vault, events, stream, clock)
        signing = SigningKeys(vault, halves, keys, audit, relations, publisher, clock)
        operators = OperatorEvents(keys, audit, relations, IdentityFleet(identity), publisher, clock)
        keeper = Keeper(events, keys, stream, clock, publisher.doubtful)

        async def publish(events: Sequence[Outgoing]) -> int:
            event = events[0]
            await signing.relay(Event(event.id, event.domain_id, event.type, event.scope, event.payload))
            return 1

        # Relays of other services and gateways have no person behind them; operators always do.
        servicers = [
            ("SigningKeysService", SigningKeysApi(signing), False),
            ("DeliveryService", DeliveryApi(signing, Delivery(events, clock), stream), False),
            ("PublishService", PublishApi(publisher), False),
            ("MeshAdminService", MeshAdminApi(signing, operators), True),
        ]
        await serve(
            settings,
            [
                Registration(PACKAGE + name, servicer, getattr(stubs, f"add_{name}Servicer_to_server"), principal)
                for name, servicer, principal in servicers
            ],
            readiness={"postgres": lambda: ping(pool), "openbao": bao.ping, "nats": bus.ping},
            background=[
                publisher.run(),
                keeper.run(),
                keeper.roll(),
                every(KEEP_UP_EVERY_S, signing.keep_up),
                Relay(pool, "mesh", publish).run(),
            ],
        )


if __name__ == "__main__":
    main(MeshSettings, run)
