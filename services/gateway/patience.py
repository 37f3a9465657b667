"""How long the gate waits for what mesh has logged and has not seen acknowledged yet."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

FIRST_S = 2.0
AGAIN_S = 1.0
REGAINED = 0.1
MOST_GIVEN_UP = 10_000


@dataclass
class Patience:
    """An id is waited for in full once; all those that were waited for in vain share a tenth of the time.

    Their owner publishes such an event again, and its new copy may be read before it is noted. Whoever repeats them
    in the owner's stead holds the gate up no longer than that.
    """

    given_up: set[UUID] = field(default_factory=set)
    _left_s: float = AGAIN_S
    _at: float = 0.0

    def wait_s(self, identifier: UUID, now: float) -> float:
        """Return how long an id may be waited for now; times are monotonic seconds."""
        return self._left(now) if identifier in self.given_up else FIRST_S

    def spend(self, began: float, ended: float) -> None:
        """Take off what was waited for ids that had been given up."""
        self._left_s, self._at = max(0.0, self._left(began) - (ended - began)), ended

    def give_up(self, identifiers: Iterable[UUID]) -> None:
        """Note what was waited for in vain."""
        if len(self.given_up) > MOST_GIVEN_UP:
            self.given_up.clear()
        self.given_up.update(identifiers)

    def _left(self, now: float) -> float:
        return min(AGAIN_S, self._left_s + (now - self._at) * REGAINED)
