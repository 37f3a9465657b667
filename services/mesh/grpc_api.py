"""Unpacks requests, asks the rules, packs answers; decides nothing."""

import datetime
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc

from libs.errors import EventBusUnavailable, EventTypeReserved
from libs.rpc.context import current_principal
from plexsphere.mesh.v1 import mesh_pb2 as pb
from plexsphere.mesh.v1 import mesh_pb2_grpc as stubs
from services.mesh.delivery import Delivery
from services.mesh.model import ROTATED, Event, Publication, Seen, SigningKey
from services.mesh.ports import Publishing, Stream
from services.mesh.service import OperatorEvents, SigningKeys

Context = grpc.aio.ServicerContext[Any, Any]
PUBLICATIONS = {
    Publication.PUBLISHED: pb.PUBLICATION_PUBLISHED,
    Publication.PENDING: pb.PUBLICATION_PENDING,
    Publication.REPLAYED: pb.PUBLICATION_REPLAYED,
    Publication.ALTERED: pb.PUBLICATION_ALTERED,
    Publication.UNKNOWN: pb.PUBLICATION_UNKNOWN,
}


def pack(key: SigningKey) -> pb.SigningKey:
    """Return a key as the contract has it."""
    packed = pb.SigningKey(kid=key.kid, public_key=key.public_key)
    packed.created_at.FromDatetime(key.created_at)
    if key.expires_at is not None:
        packed.expires_at.FromDatetime(key.expires_at)
    if key.revoked_at is not None:
        packed.revoked_at.FromDatetime(key.revoked_at)
    return packed


def unpack(request: pb.PublishRequest) -> Event:
    """Return an event of another service; raises EventTypeReserved for what mesh alone announces."""
    if request.type == ROTATED:
        raise EventTypeReserved
    return Event(UUID(request.id), UUID(request.domain_id), request.type, request.scope, request.payload_json)


@dataclass(frozen=True)
class SigningKeysApi(stubs.SigningKeysServiceServicer):
    """Public halves for registration."""

    rules: SigningKeys

    async def EnsureSigningKey(
        self, request: pb.EnsureSigningKeyRequest, context: Context
    ) -> pb.EnsureSigningKeyResponse:
        """Create a Domain's key when it has none, and answer with the current public half."""
        return pb.EnsureSigningKeyResponse(key=pack(await self.rules.ensure(UUID(request.domain_id))))


@dataclass(frozen=True)
class PublishApi(stubs.PublishServiceServicer):
    """The only way to the bus."""

    publisher: Publishing

    async def Publish(self, request: pb.PublishRequest, context: Context) -> pb.PublishResponse:
        """Sign and publish an event of another service."""
        return pb.PublishResponse(sequence=await self.publisher.publish(unpack(request)))

    async def PublishInOrder(self, request: pb.PublishInOrderRequest, context: Context) -> pb.PublishInOrderResponse:
        """Sign and publish events of another service, up to the first that cannot be."""
        sequences = await self.publisher.publish_in_order([unpack(event) for event in request.events])
        return pb.PublishInOrderResponse(sequences=sequences)


@dataclass(frozen=True)
class DeliveryApi(stubs.DeliveryServiceServicer):
    """What gateways ask."""

    keys: SigningKeys
    delivery: Delivery
    stream: Stream

    async def GetTrust(self, request: pb.GetTrustRequest, context: Context) -> pb.GetTrustResponse:
        """Answer which keys verify now."""
        found = await self.keys.trust([UUID(domain_id) for domain_id in request.domain_ids])
        return pb.GetTrustResponse(
            domains=[
                pb.DomainTrust(domain_id=str(domain_id), keys=[pack(key) for key in keys])
                for domain_id, keys in found.items()
            ]
        )

    async def CheckPublished(self, request: pb.CheckPublishedRequest, context: Context) -> pb.CheckPublishedResponse:
        """Say of envelopes whether they were published, and fill gaps."""
        seen = [Seen(one.sequence, UUID(one.id), one.digest) for one in request.seen]
        answer = await self.delivery.check(seen, [(gap.first, gap.last) for gap in request.gaps])
        return pb.CheckPublishedResponse(
            publications=[PUBLICATIONS[publication] for publication in answer.publications],
            missing=[
                pb.LoggedEnvelope(sequence=row.sequence or 0, domain_id=str(row.domain_id), envelope=row.envelope)
                for row in answer.missing
            ],
            unfilled=[pb.SequenceGap(first=first, last=last) for first, last in answer.unfilled],
            highest=answer.highest,
        )

    async def OpenConsumer(self, request: pb.OpenConsumerRequest, context: Context) -> pb.OpenConsumerResponse:
        """Open a pull consumer."""
        state = await self.stream.state()
        if state is None:
            raise EventBusUnavailable("there is no stream")
        back = datetime.timedelta(seconds=request.back_seconds)
        name, pending = await self.stream.open_consumer(request.start_sequence, back)
        floor = 0 if request.start_sequence else await self.delivery.floor(back)
        return pb.OpenConsumerResponse(name=name, last_sequence=state.last, pending=pending, floor=floor)

    async def RequestReconcile(
        self, request: pb.RequestReconcileRequest, context: Context
    ) -> pb.RequestReconcileResponse:
        """Tell a Domain's nodes to fetch their state."""
        announced = await self.keys.reconcile(UUID(request.domain_id), UUID(request.node_id))
        return pb.RequestReconcileResponse(announced=announced)


@dataclass(frozen=True)
class MeshAdminApi(stubs.MeshAdminServiceServicer):
    """Operators' side of keys and events."""

    keys: SigningKeys
    events: OperatorEvents

    async def ListSigningKeys(self, request: pb.ListSigningKeysRequest, context: Context) -> pb.ListSigningKeysResponse:
        """List a Domain's keys."""
        keys = await self.keys.list(current_principal(), UUID(request.domain_id))
        return pb.ListSigningKeysResponse(keys=[pack(key) for key in keys])

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, context: Context
    ) -> pb.RotateSigningKeyResponse:
        """Rotate a Domain's key."""
        transition = datetime.timedelta(seconds=request.transition_seconds)
        key = await self.keys.rotate(current_principal(), UUID(request.domain_id), transition)
        return pb.RotateSigningKeyResponse(key=pack(key))

    async def RevokeSigningKey(
        self, request: pb.RevokeSigningKeyRequest, context: Context
    ) -> pb.RevokeSigningKeyResponse:
        """Revoke a key."""
        revoked, current = await self.keys.revoke(current_principal(), UUID(request.domain_id), request.kid)
        return pb.RevokeSigningKeyResponse(revoked=pack(revoked), current=pack(current))

    async def PublishEvent(self, request: pb.PublishEventRequest, context: Context) -> pb.PublishEventResponse:
        """Publish an event for an operator."""
        identifier, sequence = await self.events.publish(
            current_principal(), UUID(request.domain_id), request.type, request.scope, request.payload_json
        )
        return pb.PublishEventResponse(id=str(identifier), sequence=sequence)
