"""Unpacks requests, asks the rules, packs answers; decides nothing.

Sessions are not provisioned in this release: every method says so in our own type, so that nobody takes the answer for
version skew.
"""

from typing import NoReturn

import grpc

from libs.errors import NotProvisioned
from plexsphere.access.v1 import access_pb2 as pb
from plexsphere.access.v1 import access_pb2_grpc as stubs

Context = grpc.aio.ServicerContext


class AccessApi(stubs.AccessServiceServicer):
    """Operators' side."""

    async def IssueSession(self, request: pb.IssueSessionRequest, context: Context) -> NoReturn:  # noqa: N802 — gRPC's name
        """Refuse: not provisioned."""
        raise NotProvisioned

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> NoReturn:  # noqa: N802 — gRPC's name
        """Refuse: not provisioned."""
        raise NotProvisioned

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> NoReturn:  # noqa: N802 — gRPC's name
        """Refuse: not provisioned."""
        raise NotProvisioned

    async def RevokeSession(self, request: pb.RevokeSessionRequest, context: Context) -> NoReturn:  # noqa: N802 — gRPC's name
        """Refuse: not provisioned."""
        raise NotProvisioned


class AccessNodeApi(stubs.AccessNodeServiceServicer):
    """Nodes' side."""

    async def ReportActivity(self, request: pb.ReportActivityRequest, context: Context) -> NoReturn:  # noqa: N802 — gRPC's name
        """Refuse: not provisioned."""
        raise NotProvisioned
