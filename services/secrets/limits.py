"""Rate limits in PostgreSQL: exact across replicas, both cells in one round trip, by the database's clock."""

import math
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import asyncpg

from libs.errors import DatastoreUnavailable, LimiterUnavailable, PerDomainRateLimited, PerNodeRateLimited
from libs.pg import connection
from libs.telemetry import REFUSALS
from services.secrets.settings import Limits

SPEND = "SELECT refused, retry_after FROM secrets.spend($1, $2, $3, $4, $5, $6)"
REFUSALS_OF = {"node": PerNodeRateLimited, "domain": PerDomainRateLimited}
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class PgLimiter:
    """Cells of a generic cell rate algorithm (ITU-T I.371) in an unlogged table."""

    pool: asyncpg.Pool
    limits: Limits

    async def spend(self, node_id: UUID, domain_id: UUID) -> None:
        """Charge one read to the node and to its Domain, or neither."""
        limits = self.limits
        try:
            async with connection(self.pool, "spend") as lent:
                row = await lent.fetchrow(
                    SPEND,
                    node_id,
                    MINUTE / limits.node_rate_per_minute,
                    limits.node_burst,
                    domain_id,
                    MINUTE / limits.domain_rate_per_minute,
                    limits.domain_burst,
                )
        except DatastoreUnavailable as error:
            raise LimiterUnavailable("the limits' cells cannot be reached") from error
        if row is None:
            raise LimiterUnavailable("no answer")
        if row["refused"]:
            REFUSALS.labels("secret_limits", row["refused"]).inc()
            raise REFUSALS_OF[row["refused"]](retry_after_s=math.ceil(row["retry_after"].total_seconds()))
