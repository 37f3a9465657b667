"""A client process that holds thousands of event streams at little cost, the same code for both sides of a bench.

One epoll loop over TLS sockets, because asyncio's TLS would make the client the bottleneck. It reads commands as JSON
lines and answers in the same way. Each event's payload holds a number `n`; a stream must see 1, 2, 3 … without a gap.
"""

import argparse
import contextlib
import json
import os
import re
import select
import socket
import ssl
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import percentile

NUMBER = re.compile(rb'"n":(\d+)')
CURSOR = re.compile(rb"^id: ?(\d+)\r?$", re.MULTILINE)
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
OPENING_AT_ONCE = 64
AGAIN_AFTER_S = 0.25
LARGEST_READ = 65_536
READY = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR


@dataclass(eq=False, slots=True)
class Stream:
    """One node's stream, over all its connections."""

    path: str
    bearer: str
    sock: ssl.SSLSocket | None = None
    at: str = "closed"
    rest: bytes = b""
    last: bytes = b""
    cursor: int | None = None
    number: int = 0

    def request(self) -> bytes:
        """Return the request that opens or resumes it."""
        for found in CURSOR.finditer(self.last):
            self.cursor = int(found[1])
        resume = f"Last-Event-ID: {self.cursor}\r\n" if self.cursor is not None else ""
        return (
            f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.bearer}\r\n"
            f"Accept: text/event-stream\r\n{resume}\r\n"
        ).encode()


@dataclass
class Reader:
    """All streams of this process."""

    address: tuple[str, int]
    context: ssl.SSLContext
    reconnect: bool = False
    streams: list[Stream] = field(default_factory=list)
    by_fd: dict[int, Stream] = field(default_factory=dict)
    to_open: deque[tuple[float, Stream]] = field(default_factory=deque)
    opening: int = 0
    opened: int = 0
    at_once: int = OPENING_AT_ONCE
    reached: Counter[int] = field(default_factory=Counter)
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    epoll: select.epoll = field(default_factory=select.epoll)
    commands: bytes = b""
    told_open: bool = True

    def run(self) -> None:
        """Serve until the input ends."""
        os.set_blocking(0, False)
        self.epoll.register(0, select.EPOLLIN)
        while True:
            for fd, _ in self.epoll.poll(0.05):
                if fd == 0:
                    if not self._commands():
                        return
                elif (stream := self.by_fd.get(fd)) is not None:
                    self._turn(stream)
            self._open_more()

    def _commands(self) -> bool:
        read = os.read(0, 1 << 20)
        if not read:
            return False
        *lines, self.commands = (self.commands + read).split(b"\n")
        for line in lines:
            command = json.loads(line)
            getattr(self, "do_" + command.pop("do"))(**command)
        return True

    def do_open(self, nodes: list[tuple[str, str]], *, reconnect: bool = False, at_once: int = OPENING_AT_ONCE) -> None:
        """Open a stream for each node, replacing what there was; told when all are open."""
        self.do_close()
        self.reconnect, self.at_once = reconnect, at_once
        self.streams = [Stream(path, bearer) for path, bearer in nodes]
        self.reached.clear()
        self.arrivals.clear()
        self.faults.clear()
        self._queue(self.streams)

    def do_again(self) -> None:
        """Open all once more with their cursors; told when all are open."""
        self._queue(self.streams)

    def do_drop(self) -> None:
        """Close the connections and keep the cursors."""
        self.reconnect = False
        for stream in self.streams:
            self._close(stream)
        say(dropped=len(self.streams))

    def do_close(self) -> None:
        """Close everything and forget it."""
        self.reconnect = False
        for stream in self.streams:
            self._close(stream)
        self.to_open.clear()
        self.streams = []

    def do_state(self) -> None:
        """Tell how the streams are."""
        numbers = [stream.number for stream in self.streams] or [0]
        say(open=self.opened, least=min(numbers), most=max(numbers), faults=dict(self.faults))

    def do_latencies(self, sent: dict[str, int]) -> None:
        """Tell how long after the given times (CLOCK_MONOTONIC, ns, by number) the events arrived, in ms."""
        times = {int(number): at for number, at in sent.items()}
        found = [(at - times[number]) / 1e6 for at, number in self.arrivals if number in times]
        say(
            count=len(found),
            p50=percentile(found, 0.5),
            p99=percentile(found, 0.99),
            first=[round(min(those), 1) for those in self._by_event(times)],
            last=[round(max(those), 1) for those in self._by_event(times)],
        )

    def _by_event(self, times: dict[int, int]) -> list[list[float]]:
        found: dict[int, list[float]] = {number: [] for number in times}
        for at, number in self.arrivals:
            if number in times:
                found[number].append((at - times[number]) / 1e6)
        return [those for those in found.values() if those]

    def _queue(self, streams: list[Stream]) -> None:
        self.told_open = False
        self.to_open.extend((0.0, stream) for stream in streams)

    def _open_more(self) -> None:
        now = time.monotonic()
        while self.to_open and self.opening < self.at_once and self.to_open[0][0] <= now:
            self._connect(self.to_open.popleft()[1])
        if not self.told_open and not self.to_open and not self.opening:
            self.told_open = True
            say(opened=self.opened, faults=dict(self.faults))

    def _connect(self, stream: Stream) -> None:
        try:
            plain = socket.create_connection(self.address, timeout=5)
        except OSError as error:
            self._failed(stream, type(error).__name__)
            return
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setblocking(False)
        stream.sock = self.context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=self.address[0])
        stream.at, stream.rest = "handshake", b""
        self.opening += 1
        self.by_fd[stream.sock.fileno()] = stream
        self.epoll.register(stream.sock.fileno(), READY)
        self._turn(stream)

    def _turn(self, stream: Stream) -> None:
        sock = stream.sock
        if sock is None:
            return
        try:
            if stream.at == "handshake":
                sock.do_handshake()
                sock.send(stream.request())
                stream.at = "headers"
            while data := sock.recv(LARGEST_READ):
                self._read(stream, data)
                if not sock.pending():
                    return
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self._failed(stream, type(error).__name__)
        else:
            self._failed(stream, "ended")

    def _read(self, stream: Stream, data: bytes) -> None:
        data = stream.rest + data
        if stream.at == "headers":
            head, separator, data = data.partition(b"\r\n\r\n")
            if not separator:
                stream.rest = head
                return
            status = STATUS.match(head)
            if status is None or status[1] != b"200":
                self._failed(stream, f"status {status[1].decode() if status else head[:40]!r}")
                return
            stream.at = "open"
            self.opening -= 1
            self.opened += 1
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            stream.rest = data
            return
        frames, stream.rest = data[:end], data[end:]
        if b"id:" in frames:
            stream.last = frames
        for found in NUMBER.findall(frames):
            self._count(stream, int(found))

    def _count(self, stream: Stream, number: int) -> None:
        if number <= stream.number:
            self.faults["twice"] += 1
            return
        if number > stream.number + 1:
            self.faults["lost"] += number - stream.number - 1
        stream.number = number
        self.arrivals.append((time.monotonic_ns(), number))
        self.reached[number] += 1
        if self.reached[number] == len(self.streams):
            say(all=number)

    def _failed(self, stream: Stream, why: str) -> None:
        was = stream.at
        self._close(stream)
        if self.reconnect:
            self.to_open.append((time.monotonic() + AGAIN_AFTER_S, stream))
            self.faults[f"again: {why}"] += 1
        else:
            self.faults[f"{was}: {why}"] += 1

    def _close(self, stream: Stream) -> None:
        if stream.sock is not None:
            with contextlib.suppress(OSError):
                self.epoll.unregister(stream.sock.fileno())
            self.by_fd.pop(stream.sock.fileno(), None)
            stream.sock.close()
        if stream.at in {"handshake", "headers"}:
            self.opening -= 1
        elif stream.at == "open":
            self.opened -= 1
        stream.sock, stream.at, stream.rest = None, "closed", b""


def say(**content: Any) -> None:
    """Write one answer."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca-file", type=Path, required=True)
    arguments = parser.parse_args()
    context = ssl.create_default_context(cafile=arguments.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    Reader(("127.0.0.1", arguments.port), context).run()


if __name__ == "__main__":
    main()
