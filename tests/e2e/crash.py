"""One more replica of a service that nothing but itself keeps from being read and dumped, to be aborted."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devstack.layout import ROOT
from devstack.process import child_setup
from tests.e2e.world import World

# Without capabilities root is an ordinary user as well (capset(2), version 3), and stays one (PR_SET_SECUREBITS).
UNPRIVILEGED = """
import ctypes, os, resource, struct, sys, time
libc = ctypes.CDLL(None)
assert os.geteuid() or libc.prctl(28, 1, 0, 0, 0) == 0
assert libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
"""
LAUNCH = """
most = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# The first process is its own child that is not hardened, so that an empty answer for the other says something.
READ = """
if not (plain := os.fork()):
    time.sleep(60)
for pid in (plain, int(sys.argv[1])):
    for name in ("mem", "environ", "maps"):
        try:
            open(f"/proc/{pid}/{name}", "rb").close()
            print(name)
        except PermissionError:
            print("-")
os.kill(plain, 9)
"""
PORT = re.compile(r"(?<=port = )\d+")
TRACES = re.compile(r'(?<=trace_file = ").+(?=")')


@dataclass(frozen=True)
class Replica:
    """A process, where it listens, and the folder that it works in."""

    process: "subprocess.Popen[bytes]"
    port: int
    folder: Path
    log: Path

    def readable(self) -> list[str]:
        """Return what an unprivileged process of the same user may open of its memory."""
        command = [sys.executable, "-c", UNPRIVILEGED + READ, str(self.process.pid)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert shown[:3] == ["mem", "environ", "maps"], "nothing can be read at all here"
        assert len(shown) == 6
        return [name for name in shown[3:] if name != "-"]

    def cores(self) -> list[Path]:
        """Return the core files that it left."""
        return [*self.folder.glob("core*")]


@contextmanager
def replica(world: World, service: str, folder: Path) -> Iterator[Replica]:
    """Run one more replica for the block; its log is one of the stack's."""
    config, log = folder / "config.toml", world.state / f"log/{service}-replica.log"
    port, metrics = _free(), _free()
    text = world.config(service)
    listen, other, *_ = PORT.findall(text)
    text = text.replace(f"port = {listen}", f"port = {port}", 1).replace(f"port = {other}", f"port = {metrics}", 1)
    config.write_text(TRACES.sub(f"{world.state}/log/{service}-replica.trace.jsonl", text))
    command = [sys.executable, "-c", UNPRIVILEGED + LAUNCH, "-m", f"services.{service}", "--config", str(config)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            preexec_fn=child_setup(os.getpid()),  # noqa: PLW1509 — it calls nothing that a thread could hold
        )  # fmt: skip
    try:
        yield Replica(process, port, folder, log)
    finally:
        process.kill()
        process.wait()


def _free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
