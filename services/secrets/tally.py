"""Refusals that are counted instead of recorded one by one, so that an attacker cannot fill the chain."""

from collections import Counter
from uuid import UUID


class Tally:
    """How often each Domain met each limit since the last report; lost when the process dies."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[UUID, str]] = Counter()

    def add(self, domain_id: UUID, code: str, times: int = 1) -> None:
        """Count a refusal."""
        self._counts[domain_id, code] += times

    def take(self) -> list[tuple[UUID, str, int]]:
        """Return what was counted, and begin anew."""
        taken, self._counts = self._counts, Counter()
        return [(domain_id, code, times) for (domain_id, code), times in taken.items()]
