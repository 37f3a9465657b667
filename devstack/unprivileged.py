"""Runs a command as an ordinary user: `python -IS unprivileged.py mapped|nobody COMMAND…`, started as root.

Its own program, of the standard library only: user_namespaces(7) needs a process with one thread, and a fork of the
supervisor has gRPC's, which start again in every child. Signals and the parent's death reach the command, because it
takes this process's place.
"""

import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
INSIDE = 1000
UNPRIVILEGED = "nobody"

libc = ctypes.CDLL(None, use_errno=True)


def map_to_ordinary() -> None:
    """Stay root outside and be an ordinary user inside a user namespace.

    PostgreSQL refuses to run as root. Like this it still owns its files and passes through folders that only root may
    enter: a checkout below /root, or a temporary folder of mode 0700.
    """
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "no user namespace")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{INSIDE} 0 1")
    Path("/proc/self/gid_map").write_text(f"{INSIDE} 0 1")


def become_nobody() -> None:
    """Drop root for good; the checkout and the state must then be where everybody may pass."""
    user = pwd.getpwnam(UNPRIVILEGED)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def main() -> None:
    """Leave root, then become the command."""
    _, how, *command = sys.argv
    parent = os.getppid()
    if how == "mapped":
        map_to_ordinary()
    else:
        become_nobody()
    # Changing the user clears it.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)
    os.execv(command[0], command)  # noqa: S606 — what was asked for, without a shell


if __name__ == "__main__":
    main()
