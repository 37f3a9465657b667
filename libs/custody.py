"""Custody of secret bytes in memory: a type that does not show them, wiping, and a process that cannot be dumped.

Copies inside libraries (OpenSSL, protobuf, sockets) are out of reach; docs/security-model.md states that risk.
"""

import contextlib
import ctypes
import faulthandler
import hmac
import resource
import stat
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

PR_SET_DUMPABLE = 4


class Secret:
    """Bytes that are never shown, copied, pickled or compared by accident; wiped when the block ends."""

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self._bytes = bytearray(value)

    def reveal(self) -> bytearray:
        """Return the bytes themselves, not a copy; they are zeros after `wipe`."""
        return self._bytes

    def wipe(self) -> None:
        """Overwrite the bytes in place."""
        self._bytes[:] = bytes(len(self._bytes))

    def matches(self, other: "Secret | bytes | bytearray") -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.reveal(), other.reveal() if isinstance(other, Secret) else other)

    def __len__(self) -> int:
        return len(self.reveal())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied")

    __hash__ = None  # type: ignore[assignment]  # a hash would be an oracle

    def __eq__(self, other: object) -> bool:
        raise TypeError("compare secrets with `matches`")


def take(fresh: bytes) -> Secret:
    """Move bytes that a library has just made, and that nobody else holds, into a Secret: they are zeros afterwards."""
    secret = Secret(fresh)
    # One byte is an object that the whole interpreter shares.
    if len(fresh) > 1:
        ctypes.memset(id(fresh) + bytes.__basicsize__ - 1, 0, len(fresh))
    return secret


def harden() -> None:
    """Make this process leave no core file and refuse ptrace and /proc reads by others of the same uid."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) was refused")


def read_secret_file(path: Path) -> Secret:
    """Read a secret from a file that others cannot read; raises PermissionError when they can."""
    if path.stat().st_mode & stat.S_IROTH:
        raise PermissionError(f"{path} is readable by everybody; its mode must not allow others")
    return Secret(path.read_bytes())


class SecretFile(Secret):
    """The secret that a file holds now: one that is replaced is read anew, so that rotation needs no restart."""

    __slots__ = ("_path", "_seen")

    def __init__(self, path: Path) -> None:
        """Raise OSError for a file that cannot be read or is open to others, and ValueError for an empty one."""
        super().__init__(b"")
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._read()

    def reveal(self) -> bytearray:
        """Return the bytes that the file holds; what was read last while it cannot be read, or holds nothing."""
        with contextlib.suppress(OSError, ValueError):
            self._read()
        return self._bytes

    def _read(self) -> None:
        at = self._path.stat()
        if (now := (at.st_ino, at.st_mtime_ns, at.st_size)) == self._seen:
            return
        fresh = read_secret_file(self._path).reveal()
        # Under a key of no bytes everybody could sign.
        if not fresh:
            raise ValueError(f"{self._path} is empty")
        self._bytes, self._seen = fresh, now
