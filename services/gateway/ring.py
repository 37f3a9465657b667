"""The verified events of the last five minutes: what a node missed between two connections is served from here."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from uuid import UUID

KEPT_S = 300.0
MOST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One event: `frame` is its text/event-stream frame, `chunk` the same as an HTTP chunk (RFC 9112, 7.1)."""

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
    _entries: deque[Entry] = field(default_factory=deque)
    _by_domain: dict[UUID, list[Entry]] = field(default_factory=dict)
    _ids: set[UUID] = field(default_factory=set)
    _evicted: dict[tuple[UUID, str], int] = field(default_factory=dict)
    _bytes: int = 0

    def begin(self, at: int) -> None:
        """Forget everything: what comes next is above this sequence, and nothing before it is known."""
        self._entries.clear()
        self._by_domain.clear()
        self._ids.clear()
        self._evicted.clear()
        self._bytes = 0
        self.floor = self.position = at

    def add(self, entry: Entry) -> bool:
        """Keep an event; False when it is here already under another sequence."""
        if entry.id in self._ids:
            return False
        self._ids.add(entry.id)
        self._entries.append(entry)
        self._by_domain.setdefault(entry.domain_id, []).append(entry)
        self._bytes += len(entry.chunk)
        return True

    def reach(self, sequence: int) -> None:
        """Note how far the stream was read, and let go of what is old."""
        self.position = max(self.position, sequence)
        oldest = self.clock() - KEPT_S
        while self._entries and (self._entries[0].at < oldest or self._bytes > MOST_BYTES):
            self._evict(self._entries.popleft())

    def _evict(self, entry: Entry) -> None:
        self._ids.discard(entry.id)
        self._bytes -= len(entry.chunk)
        self._evicted[entry.domain_id, entry.scope] = entry.sequence
        kept = self._by_domain[entry.domain_id]
        # The oldest of all is the oldest of its Domain.
        del kept[0]
        if not kept:
            del self._by_domain[entry.domain_id]

    def complete(self, domain_id: UUID, scopes: Collection[str], after: int) -> bool:
        """Whether everything after a sequence that these scopes receive is still here."""
        return after >= max(self.floor, *(self._evicted.get((domain_id, scope), 0) for scope in scopes))

    def after(self, domain_id: UUID, scopes: Collection[str], sequence: int) -> list[Entry]:
        """Return a Domain's events for these scopes, those after a sequence."""
        entries = self._by_domain.get(domain_id, [])
        start = bisect_right(entries, sequence, key=lambda entry: entry.sequence)
        return [entry for entry in entries[start:] if entry.scope in scopes]

    def untrust(self, domain_id: UUID, trusted: Collection[str]) -> None:
        """Let go of a Domain's events that were signed by a key which is no longer believed."""
        entries = self._by_domain.get(domain_id, [])
        gone = {entry.id for entry in entries if entry.key_id not in trusted}
        if gone:
            self._by_domain[domain_id] = [entry for entry in entries if entry.id not in gone]
            self._bytes -= sum(len(entry.chunk) for entry in entries if entry.id in gone)
            self._entries = deque(entry for entry in self._entries if entry.id not in gone)
