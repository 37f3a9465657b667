"""The verified events of the last five minutes: what a node missed between two connections is served from here."""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from uuid import UUID

# Nodes refuse what is older than five minutes by their own clock: just before that they are better told to reconcile.
KEPT_S = 290.0
# For so long after its time an envelope is believed, and a second copy of it must be known as one.
KNOWN_S = 301.0
MOST_BYTES = 256 * 1024 * 1024
MOST_MISSED = 100_000
# What is written to a connection at once.
AT_ONCE_BYTES = 64 * 1024


def chunk(data: bytes) -> bytes:
    """Return data as one HTTP chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event: `chunk` is its text/event-stream frame as an HTTP chunk (RFC 9112, 7.1).

    `at` is when it was issued, on this process's monotonic clock.
    """

    sequence: int
    id: UUID
    domain_id: UUID
    scope: str
    key_id: str
    chunk: bytes
    at: float

    @property
    def frame(self) -> bytes:
        """The frame alone, for the few who speak HTTP/1.0."""
        return self.chunk[self.chunk.index(b"\n") + 1 : -2]


def order(entry: Entry) -> int:
    """Return what a Domain's events are sorted by."""
    return entry.sequence


@dataclass
class Ring:
    """Events by their sequence; `floor` is the sequence above which everything is here.

    `position` is how far mesh's log says that all was read; who holds the broker cannot move it.
    """

    clock: Callable[[], float]
    floor: int = 0
    position: int = 0
    most_bytes: int = MOST_BYTES
    most_missed: int = MOST_MISSED
    _by_age: list[tuple[float, UUID, Entry]] = field(default_factory=list)
    _by_domain: dict[UUID, list[Entry]] = field(default_factory=dict)
    _keys: dict[UUID, set[str]] = field(default_factory=dict)
    _ids: set[UUID] = field(default_factory=set)
    _ids_by_age: list[tuple[float, UUID]] = field(default_factory=list)
    _missed: dict[tuple[UUID, str], int] = field(default_factory=dict)
    _bytes: int = 0

    def begin(self, at: int) -> None:
        """Begin with nothing: what comes is above this sequence, and nothing before it is known."""
        self.floor = self.position = at

    def knows(self, identifier: UUID) -> bool:
        """Whether an event has been here."""
        return identifier in self._ids

    def add(self, entry: Entry) -> bool:
        """Keep an event; False when it has been here already, under whichever sequence."""
        if entry.id in self._ids:
            return False
        self._ids.add(entry.id)
        heapq.heappush(self._ids_by_age, (entry.at, entry.id))
        heapq.heappush(self._by_age, (entry.at, entry.id, entry))
        insort(self._by_domain.setdefault(entry.domain_id, []), entry, key=order)
        self._keys.setdefault(entry.domain_id, set()).add(entry.key_id)
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
        if len(self._missed) > self.most_missed:
            # The older half is forgotten: whoever was told nothing since then reconciles once for no reason.
            kept = sorted(self._missed.items(), key=lambda item: item[1])
            half = len(kept) // 2
            self.floor = max(self.floor, kept[half - 1][1])
            self._missed = dict(kept[half:])

    def _age(self) -> None:
        now = self.clock()
        while self._by_age and (self._by_age[0][0] < now - KEPT_S or self._bytes > self.most_bytes):
            entry = heapq.heappop(self._by_age)[2]
            kept = self._by_domain[entry.domain_id]
            del kept[bisect_left(kept, entry.sequence, key=order)]
            if not kept:
                del self._by_domain[entry.domain_id], self._keys[entry.domain_id]
            self._let_go(entry)
        while self._ids_by_age and self._ids_by_age[0][0] < now - KNOWN_S:
            self._ids.discard(heapq.heappop(self._ids_by_age)[1])

    def _let_go(self, entry: Entry) -> None:
        self._bytes -= len(entry.chunk)
        self.miss(entry.domain_id, entry.scope, entry.sequence)

    def complete(self, domain_id: UUID, scopes: Collection[str], after: int) -> bool:
        """Whether everything after a sequence that these scopes receive is still here."""
        # While nothing is published, nothing else lets go of what is old.
        self._age()
        return after >= max(self.floor, *(self._missed.get((domain_id, scope), 0) for scope in scopes))

    def after(self, domain_id: UUID, scopes: Collection[str], sequence: int) -> list[Entry]:
        """Return a Domain's next events for these scopes after a sequence: as many as are written at once."""
        entries, found, size = self._by_domain.get(domain_id, []), list[Entry](), 0
        for turn in range(bisect_right(entries, sequence, key=order), len(entries)):
            if (entry := entries[turn]).scope in scopes:
                size += len(entry.chunk)
                if found and size > AT_ONCE_BYTES:
                    break
                found.append(entry)
        return found

    def untrust(self, domain_id: UUID, trusted: Collection[str]) -> None:
        """Let go of a Domain's events that were signed by a key which is no longer believed."""
        if not (gone := self._keys.get(domain_id, set()) - set(trusted)):
            return
        kept = []
        for entry in self._by_domain.pop(domain_id):
            if entry.key_id in gone:
                self._let_go(entry)
            else:
                kept.append(entry)
        self._keys[domain_id] -= gone
        if kept:
            self._by_domain[domain_id] = kept
        else:
            del self._keys[domain_id]
        self._by_age = [one for one in self._by_age if one[2].domain_id != domain_id or one[2].key_id not in gone]
        heapq.heapify(self._by_age)
