"""Rate limits in PostgreSQL: exact across replicas, both cells in one round trip, by the database's clock."""

import asyncio
import functools
import math
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from uuid import UUID

import asyncpg
from opentelemetry import trace

from libs.access_policy import SecretLimits
from libs.errors import DatastoreUnavailable, LimiterUnavailable, PerDomainRateLimited, PerNodeRateLimited
from libs.pg import connection
from libs.telemetry import REFUSALS, hop
from libs.together import Each, Together
from services.secrets.settings import Limits

SPEND = "SELECT refused, retry_after FROM secrets.spend_all($1, $2, $3, $4, $5, $6)"
REFUSALS_OF = {"node": PerNodeRateLimited, "domain": PerDomainRateLimited}
MINUTE = timedelta(minutes=1)
# The wait included: who stands behind reads that hang is refused as soon as they are, long before its caller gives up.
WITHIN_S = 3.0

tracer = trace.get_tracer("services.secrets")


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
    _turns: Each[tuple[UUID, Limits], Together[UUID, asyncpg.Record]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """One row is charged for all of a Domain: those who meet are charged together, on one connection."""
        object.__setattr__(self, "_turns", Each(lambda at: Together(functools.partial(self._spend, *at))))

    async def spend(self, node_id: UUID, domain_id: UUID, said: SecretLimits) -> None:
        """Charge one read to the node and to its Domain, or neither."""
        limits = in_force(said, self.default, self.most)
        try:
            with hop(tracer, "pg.spend"):
                async with asyncio.timeout(WITHIN_S):
                    row = await self._turns[domain_id, limits].ask(node_id)
        except (DatastoreUnavailable, TimeoutError) as error:
            REFUSALS.labels("secret_limits", "unavailable").inc()
            raise LimiterUnavailable("the limits' cells cannot be reached") from error
        if row["refused"]:
            REFUSALS.labels("secret_limits", row["refused"]).inc()
            raise REFUSALS_OF[row["refused"]](retry_after_s=math.ceil(row["retry_after"].total_seconds()))

    async def _spend(self, domain_id: UUID, limits: Limits, node_ids: list[UUID]) -> list[asyncpg.Record]:
        async with connection(self.pool, "spend_all") as lent:
            return list(
                await lent.fetch(
                    SPEND,
                    node_ids,
                    MINUTE / limits.node_rate_per_minute,
                    limits.node_burst,
                    domain_id,
                    MINUTE / limits.domain_rate_per_minute,
                    limits.domain_burst,
                )
            )
