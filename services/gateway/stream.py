"""One node's open connection: what is written to it, and how it ends."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from services.gateway.ports import Place
from services.gateway.ring import Entry, chunk

BEAT = b":keep-alive\n\n"
LAST_CHUNK = b"0\r\n\r\n"
# Later than every sequence.
LIVE = 2**63


@dataclass(eq=False, slots=True)
class Stream:
    """A connection; what stands up to `passed` is written as it comes, what is later comes with the replay."""

    node_id: UUID
    place: Place
    digest: str
    kid: str
    transport: asyncio.WriteTransport
    chunked: bool
    ended: "asyncio.Future[str]"
    passed: int = LIVE

    @property
    def scopes(self) -> tuple[str, str, str]:
        """What it receives."""
        return (f"node:{self.node_id}", f"project:{self.place.project_id}", f"domain:{self.place.domain_id}")

    def write(self, entries: Sequence[Entry], most_unread: int) -> None:
        """Write events in order, or drop a client that does not read."""
        if self.ended.done():
            return
        if self.transport.is_closing():
            self.end("gone")
        elif self.transport.get_write_buffer_size() > most_unread:
            self.end("slow")
        elif len(entries) == 1:
            self.transport.write(entries[0].chunk if self.chunked else entries[0].frame)
        else:
            self.transport.write(b"".join(entry.chunk if self.chunked else entry.frame for entry in entries))

    def say(self, text: bytes) -> None:
        """Write something that is no event."""
        if self.transport.is_closing():
            self.end("gone")
        elif not self.ended.done():
            self.transport.write(chunk(text) if self.chunked else text)

    def end(self, cause: str) -> None:
        """End the stream; only the first cause counts."""
        if not self.ended.done():
            self.ended.set_result(cause)

    def close(self) -> None:
        """Close the connection; only who is sent elsewhere still gets what is under way to it."""
        if not self.ended.done() or self.ended.result() != "drained":
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(LAST_CHUNK if self.chunked else b"")
            self.transport.close()
