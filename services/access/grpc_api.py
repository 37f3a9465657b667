"""Unpacks requests, asks the rules, packs answers; decides nothing.

Sessions are not provisioned in this release, and every method says so.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from plexsphere.access.v1 import access_pb2 as pb
from plexsphere.access.v1 import access_pb2_grpc as stubs
from services.access.service import Access

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class AccessApi(stubs.AccessServiceServicer):
    """Operators' side."""

    rules: Access

    async def IssueSession(self, request: pb.IssueSessionRequest, context: Context) -> NoReturn:
        """Refuse: not provisioned."""
        self.rules.refuse()

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> NoReturn:
        """Refuse: not provisioned."""
        self.rules.refuse()

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> NoReturn:
        """Refuse: not provisioned."""
        self.rules.refuse()

    async def RevokeSession(self, request: pb.RevokeSessionRequest, context: Context) -> NoReturn:
        """Refuse: not provisioned."""
        self.rules.refuse()


@dataclass(frozen=True)
class AccessNodeApi(stubs.AccessNodeServiceServicer):
    """Nodes' side."""

    rules: Access

    async def ReportActivity(self, request: pb.ReportActivityRequest, context: Context) -> NoReturn:
        """Refuse: not provisioned."""
        self.rules.refuse()
