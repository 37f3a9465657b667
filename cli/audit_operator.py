"""Calls audit itself, as its operator. gRPC takes half a second to load: commands import this when they call."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from cli.edge import EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_USAGE, fail
from libs import settings
from libs.errors import PlexError, Unavailable
from libs.rpc.channel import Peer
from plexsphere.audit.v1 import audit_pb2, audit_pb2_grpc

# Each row of a restored database is looked at once.
WITHIN_S, CONNECTED_WITHIN_S = 28.0, 5.0

Answer = TypeVar("Answer")
Way = tuple[str, Path, Path, Path]


def check(way: Way, *, every: bool) -> audit_pb2.CheckRestoreResponse:
    """Return the chains that do not go on from their anchors, or every one."""
    request = audit_pb2.CheckRestoreRequest(all=every)
    found: audit_pb2.CheckRestoreResponse = _ask(way, lambda stub: stub.CheckRestore(request, timeout=WITHIN_S))
    return found


def acknowledge(way: Way, note: str) -> audit_pb2.AcknowledgeResponse:
    """Return the chains that go on by a signed statement."""
    request = audit_pb2.AcknowledgeRequest(note=note)
    found: audit_pb2.AcknowledgeResponse = _ask(way, lambda stub: stub.Acknowledge(request, timeout=WITHIN_S))
    return found


def _ask(way: Way, call: Callable[[Any], Awaitable[Answer]]) -> Answer:
    address, certificate, key, authority = way
    tls = settings.Tls(certificate_file=certificate, key_file=key, ca_file=authority)

    async def ask() -> Answer:
        async with Peer(settings.Peer(address=address, name="audit"), tls) as peer:
            # A first attempt to connect may be slower than a call that is under way would wait for it.
            await asyncio.wait_for(peer.channel_ready(), CONNECTED_WITHIN_S)
            return await call(audit_pb2_grpc.AuditRestoreServiceStub(peer))

    try:
        return asyncio.run(ask())
    except TimeoutError:
        fail(f"audit cannot be reached at {address}, or not with this certificate", EXIT_UNAVAILABLE)
    except OSError as error:
        fail(f"the operator's certificate cannot be read: {type(error).__name__}", EXIT_USAGE)
    except Unavailable as error:
        fail(f"{error.code}: {error.detail}", EXIT_UNAVAILABLE)
    except PlexError as error:
        fail(f"{error.code}: {error.detail}", EXIT_REFUSED)
