"""Unpacks requests, asks the rules, packs answers; decides nothing.

The bus and the operators' side of keys are not provisioned in this release: their methods say so in our own type, so
that nobody takes the answer for version skew.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc

from libs.errors import BusNotProvisioned, NotProvisioned
from plexsphere.mesh.v1 import mesh_pb2 as pb
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from services.mesh.model import SigningKey
from services.mesh.service import SigningKeys

Context = grpc.aio.ServicerContext[Any, Any]


def pack(key: SigningKey) -> pb.SigningKey:
    """Return a key as the contract has it."""
    packed = pb.SigningKey(kid=key.kid, public_key=key.public_key)
    packed.created_at.FromDatetime(key.created_at)
    if key.expires_at is not None:
        packed.expires_at.FromDatetime(key.expires_at)
    return packed


@dataclass(frozen=True)
class SigningKeysApi(stubs.SigningKeysServiceServicer):
    """Public halves for registration."""

    rules: SigningKeys

    async def EnsureSigningKey(
        self, request: pb.EnsureSigningKeyRequest, context: Context
    ) -> pb.EnsureSigningKeyResponse:
        """Create a Domain's key when it has none, and answer with the current public half."""
        return pb.EnsureSigningKeyResponse(key=pack(await self.rules.ensure(UUID(request.domain_id))))


class PublishApi(stubs.PublishServiceServicer):
    """The only way to the bus."""

    async def Publish(self, request: pb.PublishRequest, context: Context) -> pb.PublishResponse:
        """Refuse: nothing unsigned has a code path to the bus, and signing is not provisioned."""
        raise BusNotProvisioned


class MeshAdminApi(stubs.MeshAdminServiceServicer):
    """Operators' side of keys and events."""

    async def ListSigningKeys(self, request: pb.ListSigningKeysRequest, context: Context) -> pb.ListSigningKeysResponse:
        """Refuse: not provisioned."""
        raise NotProvisioned

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, context: Context
    ) -> pb.RotateSigningKeyResponse:
        """Refuse: not provisioned."""
        raise NotProvisioned

    async def RevokeSigningKey(
        self, request: pb.RevokeSigningKeyRequest, context: Context
    ) -> pb.RevokeSigningKeyResponse:
        """Refuse: not provisioned."""
        raise NotProvisioned

    async def PublishEvent(self, request: pb.PublishEventRequest, context: Context) -> pb.PublishEventResponse:
        """Refuse: as `Publish` does."""
        raise BusNotProvisioned
