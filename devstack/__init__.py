"""The embedded stack: the real backends and the six processes on one machine, without containers."""

import os

# Before gRPC is imported: its fork handlers start threads in a forked child, which can hang there before it becomes its
# program. The supervisor forks and then only executes, so it needs none of that.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
