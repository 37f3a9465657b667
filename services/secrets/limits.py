"""Rate limits in PostgreSQL: exact across replicas, both cells in one round trip, by the database's clock."""

import asyncio
import math
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from uuid import UUID

import asyncpg

from libs.access_policy import SecretLimits
from libs.errors import DatastoreUnavailable, LimiterUnavailable, PerDomainRateLimited, PerNodeRateLimited
from libs.pg import connection
from libs.telemetry import REFUSALS
from libs.together import Each
from services.secrets.settings import Limits

SPEND = "SELECT refused, retry_after FROM secrets.spend($1, $2, $3, $4, $5, $6)"
REFUSALS_OF = {"node": PerNodeRateLimited, "domain": PerDomainRateLimited}
MINUTE = timedelta(minutes=1)
# One row is charged for all of a Domain: more connections would only wait for it, and be missing elsewhere.
ABREAST = 4
# Turns included: who stands behind reads that hang is refused as soon as they are, long before its caller gives up.
WITHIN_S = 3.0


def in_force(said: SecretLimits, default: Limits, most: Limits) -> Limits:
    """Return the limits of a Domain: what its policy says, else the default, and never above the platform's."""
    highest = most.model_dump()
    wanted = default.model_dump() | {name: value for name, value in asdict(said).items() if value is not None}
    return Limits(**{name: min(value, highest[name]) for name, value in wanted.items()})


@dataclass(frozen=True)
class PgLimiter:
    """Cells of a generic cell rate algorithm (ITU-T I.371) in an unlogged table."""

    pool: asyncpg.Pool
    default: Limits
    most: Limits
    _turns: Each[UUID, asyncio.Semaphore] = field(
        default_factory=lambda: Each(lambda _: asyncio.Semaphore(ABREAST)), repr=False
    )

    async def spend(self, node_id: UUID, domain_id: UUID, said: SecretLimits) -> None:
        """Charge one read to the node and to its Domain, or neither."""
        limits = in_force(said, self.default, self.most)
        try:
            async with asyncio.timeout(WITHIN_S), self._turns[domain_id], connection(self.pool, "spend") as lent:
                row = await lent.fetchrow(
                    SPEND,
                    node_id,
                    MINUTE / limits.node_rate_per_minute,
                    limits.node_burst,
                    domain_id,
                    MINUTE / limits.domain_rate_per_minute,
                    limits.domain_burst,
                )
        except (DatastoreUnavailable, TimeoutError) as error:
            raise LimiterUnavailable("the limits' cells cannot be reached") from error
        if row is None:
            raise LimiterUnavailable("no answer")
        if row["refused"]:
            REFUSALS.labels("secret_limits", row["refused"]).inc()
            raise REFUSALS_OF[row["refused"]](retry_after_s=math.ceil(row["retry_after"].total_seconds()))
