"""The verified events of the last five minutes: what a node missed between two connections is served from here."""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from uuid import UUID

# Nodes refuse what is older than five minutes by their own clock: just before that they are better told to reconcile.
KEPT_S = 290.0
MOST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One event: `frame` is its text/event-stream frame, `chunk` the same as an HTTP chunk (RFC 9112, 7.1).

    `at` is when it was issued, on this process's monotonic clock.
    """

    sequence: int
    id: UUID
    domain_id: UUID
    scope: str
    key_id: str
    frame: bytes
    chunk: bytes
    at: float


@dataclass
class Ring:
    """Events by their sequence; `floor` is the sequence above which everything is here."""

    clock: Callable[[], float]
    floor: int = 0
    position: int = 0
    _by_age: list[tuple[float, UUID, Entry]] = field(default_factory=list)
    _by_domain: dict[UUID, list[Entry]] = field(default_factory=dict)
    _ids: set[UUID] = field(default_factory=set)
    _missed: dict[tuple[UUID, str], int] = field(default_factory=dict)
    _bytes: int = 0

    def begin(self, at: int) -> None:
        """Forget everything: what comes next is above this sequence, and nothing before it is known."""
        self._by_age.clear()
        self._by_domain.clear()
        self._ids.clear()
        self._missed.clear()
        self._bytes = 0
        self.floor = self.position = at

    def add(self, entry: Entry) -> bool:
        """Keep an event; False when it is here already under another sequence."""
        if entry.id in self._ids:
            return False
        self._ids.add(entry.id)
        heapq.heappush(self._by_age, (entry.at, entry.id, entry))
        self._by_domain.setdefault(entry.domain_id, []).append(entry)
        self._bytes += len(entry.chunk)
        return True

    def reach(self, sequence: int) -> None:
        """Note how far the stream was read, and let go of what is old."""
        self.position = max(self.position, sequence)
        self._age()

    def miss(self, domain_id: UUID, scope: str, sequence: int) -> None:
        """Note that an event is not here, or no longer: who resumes before it cannot be told everything."""
        known = self._missed.get((domain_id, scope), 0)
        self._missed[domain_id, scope] = max(known, sequence)

    def _age(self) -> None:
        oldest = self.clock() - KEPT_S
        while self._by_age and (self._by_age[0][0] < oldest or self._bytes > MOST_BYTES):
            entry = heapq.heappop(self._by_age)[2]
            kept = self._by_domain[entry.domain_id]
            del kept[bisect_left(kept, entry.sequence, key=lambda one: one.sequence)]
            if not kept:
                del self._by_domain[entry.domain_id]
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self._ids.discard(entry.id)
        self._bytes -= len(entry.chunk)
        self.miss(entry.domain_id, entry.scope, entry.sequence)

    def complete(self, domain_id: UUID, scopes: Collection[str], after: int) -> bool:
        """Whether everything after a sequence that these scopes receive is still here."""
        # While nothing is published, nothing else lets go of what is old.
        self._age()
        return after >= max(self.floor, *(self._missed.get((domain_id, scope), 0) for scope in scopes))

    def after(self, domain_id: UUID, scopes: Collection[str], sequence: int) -> list[Entry]:
        """Return a Domain's events for these scopes, those after a sequence."""
        entries = self._by_domain.get(domain_id, [])
        start = bisect_right(entries, sequence, key=lambda entry: entry.sequence)
        return [entry for entry in entries[start:] if entry.scope in scopes]

    def untrust(self, domain_id: UUID, trusted: Collection[str]) -> None:
        """Let go of a Domain's events that were signed by a key which is no longer believed."""
        entries = self._by_domain.get(domain_id, [])
        if gone := [entry for entry in entries if entry.key_id not in trusted]:
            self._by_domain[domain_id] = [entry for entry in entries if entry.key_id in trusted]
            for entry in gone:
                self._forget(entry)
            self._by_age = [one for one in self._by_age if one[1] in self._ids]
            heapq.heapify(self._by_age)
