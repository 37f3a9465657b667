"""The audit process."""

import functools
from datetime import timedelta

import structlog

from libs.bao import open_bao
from libs.clock import SystemClock
from libs.columns import guard_columns
from libs.cursor import Cursors
from libs.custody import SecretFile
from libs.pg import check_durable, create_pool
from libs.process import main
from libs.relations import Relations
from libs.rpc.channel import connect
from libs.rpc.server import Registration, serve
from libs.tlog.note import parse_key
from plexsphere.audit.v1 import audit_pb2_grpc
from services.audit.acknowledgements import Acknowledgements
from services.audit.archive import Archive
from services.audit.archive_store import ObjectArchive, PgSegments
from services.audit.checkpoints import Checkpoints
from services.audit.columns import COLUMNS
from services.audit.grpc_api import AppendApi, ReadApi, RestoreApi
from services.audit.guard import Guard
from services.audit.proofs import Proofs
from services.audit.restores import Restores
from services.audit.rounds import Rounds, mirrored
from services.audit.service import Audit
from services.audit.settings import AuditSettings
from services.audit.store import PgStore
from services.audit.tree_store import PgTrees
from services.audit.vault import BaoAnchors, BaoPeppers, BaoSigner
from services.audit.writer import GroupWriter

log = structlog.get_logger()


async def run(settings: AuditSettings) -> None:
    """Connect, check what must hold, wire, serve."""
    async with (
        create_pool(settings.postgres, settings.tls) as pool,
        open_bao(settings.openbao, settings.tls) as bao,
        connect(settings.peers.identity, settings.tls) as identity,
    ):
        await check_durable(pool)
        await guard_columns(pool, "audit", COLUMNS)
        store, trees, clock = PgStore(pool), PgTrees(pool), SystemClock()
        due = settings.checkpoints
        checkpoints = Checkpoints(due.log, store, trees, BaoAnchors(bao), BaoSigner(bao), clock)
        guard = Guard(Restores(checkpoints))
        writer = GroupWriter(pool, guard)
        every = timedelta(seconds=due.every_s)
        rounds = [Rounds("checkpoint", guard.before(checkpoints.turn), trees.due, clock, every, due.every_entries)]
        if settings.archive.url:
            archive = Archive(
                store, trees, checkpoints.anchors, PgSegments(pool), ObjectArchive(settings.archive.url), clock
            )
            rounds += mirrored(archive, checkpoints, settings.archive)
        else:
            log.warning("archive.off")
        audit = Audit(
            appender=writer,
            store=store,
            peppers=BaoPeppers(bao),
            relations=Relations(identity),
            proofs=Proofs(checkpoints),
            cursors=Cursors(SecretFile(settings.cursor_key_file)),
            clock=clock,
        )
        keys = [parse_key(key) for key in settings.restore.acknowledged_by]
        acknowledgements = Acknowledgements(checkpoints, guard, writer, audit.peppers, keys, clock)
        name = "plexsphere.audit.v1."
        await serve(
            settings,
            [
                Registration(
                    name + "AuditAppendService",
                    AppendApi(audit),
                    audit_pb2_grpc.add_AuditAppendServiceServicer_to_server,
                    principal=False,
                ),
                Registration(
                    name + "AuditReadService",
                    ReadApi(audit),
                    audit_pb2_grpc.add_AuditReadServiceServicer_to_server,
                    principal=True,
                ),
                Registration(
                    name + "AuditRestoreService",
                    RestoreApi(acknowledgements),
                    audit_pb2_grpc.add_AuditRestoreServiceServicer_to_server,
                    principal=False,
                ),
            ],
            readiness={"postgres": functools.partial(check_durable, pool), "openbao": bao.ping, "chains": guard.ready},
            background=[writer.run(), guard.run(), *(one.run() for one in rounds)],
        )


if __name__ == "__main__":
    main(AuditSettings, run)
