"""How much a Domain's operators may publish: what they send stands in the memory of every gateway for five minutes."""

import datetime
import math
from dataclasses import dataclass, field
from uuid import UUID

from libs.errors import TooMany

# Over the five minutes that gateways keep events, somewhat more than half of the 256 MiB that they keep of all Domains.
BYTES_A_SECOND = 512 * 1024
BYTES_AT_ONCE = 4 * 1024 * 1024
# What a signature, a row and a frame cost whatever they hold.
LEAST_BYTES = 2048
MOST_KNOWN = 10_000


@dataclass(frozen=True)
class Budget:
    """One budget a Domain and process; relays of owners do not spend from it."""

    # When a Domain's budget is whole again (GCRA, ITU-T I.371, annex A).
    _whole_at: dict[UUID, datetime.datetime] = field(default_factory=dict)

    def spend(self, domain_id: UUID, size: int, now: datetime.datetime) -> None:
        """Take an event's bytes off; raises TooMany with the whole seconds after which there is enough again."""
        cost = datetime.timedelta(seconds=max(size, LEAST_BYTES) / BYTES_A_SECOND)
        whole_at = max(self._whole_at.get(domain_id, now), now) + cost
        early = whole_at - now - datetime.timedelta(seconds=BYTES_AT_ONCE / BYTES_A_SECOND)
        if early > datetime.timedelta():
            raise TooMany("the Domain's operators publish too much", retry_after_s=math.ceil(early.total_seconds()))
        self._whole_at[domain_id] = whole_at
        if len(self._whole_at) > MOST_KNOWN:
            for domain in [domain for domain, at in self._whole_at.items() if at <= now]:
                del self._whole_at[domain]
