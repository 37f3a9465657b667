"""identity.NodeService and NodeAdminService: unpack, call the rule, pack."""

import datetime
from typing import Any, TypeAlias
from uuid import UUID

import grpc

from libs.rpc.context import current_principal
from plexsphere.identity.v1 import enrolment_pb2 as pb
from plexsphere.identity.v1 import enrolment_pb2_grpc
from services.identity import pack
from services.identity.endpoints import Endpoints
from services.identity.enrolment import Enrolment
from services.identity.key_rotation import KeyRotation
from services.identity.node_keys import NodeKeys
from services.identity.node_state import NodeState

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class NodeApi(enrolment_pb2_grpc.NodeServiceServicer):
    """What registered nodes tell and ask."""

    def __init__(
        self, enrolment: Enrolment, state: NodeState, endpoints: Endpoints, rotation: KeyRotation, keys: NodeKeys
    ) -> None:
        self._enrolment = enrolment
        self._state = state
        self._endpoints = endpoints
        self._rotation = rotation
        self._keys = keys

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:
        accepted_at, wanted = await self._enrolment.heartbeat(
            current_principal(), request.node_id, request.client_now.ToDatetime(datetime.UTC),
            request.binary_checksum, request.binary_version, request.nat_summary_json,
        )  # fmt: skip
        accepted = pack.timestamp(accepted_at)
        return pb.HeartbeatResponse(accepted_at=accepted, reconcile=wanted.reconcile, rotate_keys=wanted.rotate_keys)

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> pb.GetStateResponse:
        snapshot = await self._state.get(current_principal(), request.node_id)
        return pb.GetStateResponse(
            peers=map(pack.peer, snapshot.peers),
            policy=pb.Policy(revision_id=str(snapshot.revision_id), fingerprint=snapshot.fingerprint),
            reachability=pack.health(snapshot.health),
        )

    async def ReportEndpoint(self, request: pb.ReportEndpointRequest, context: Context) -> pb.ReportEndpointResponse:
        accepted_at, stale_after = await self._endpoints.report(
            current_principal(), request.node_id, request.endpoint, request.nat_type,
            request.reported_at.ToDatetime(datetime.UTC),
        )  # fmt: skip
        return pb.ReportEndpointResponse(
            accepted_at=pack.timestamp(accepted_at), stale_after=pack.timestamp(stale_after)
        )

    async def CompleteKeyRotation(
        self, request: pb.CompleteKeyRotationRequest, context: Context
    ) -> pb.CompleteKeyRotationResponse:
        receipt = await self._rotation.complete(current_principal(), request.new_public_key)
        return pb.CompleteKeyRotationResponse(
            rotation_id=str(receipt.rotation_id), kid=receipt.kid, wrap_key_version=receipt.wrap_key_version
        )

    async def RotateSecretKey(self, request: pb.RotateSecretKeyRequest, context: Context) -> pb.RotateSecretKeyResponse:
        renewed = await self._keys.rotate(current_principal(), request.node_id)
        with renewed.key as key:
            return pb.RotateSecretKeyResponse(
                nsk=bytes(key.reveal()),
                kid=renewed.kid,
                previous_valid_until=pack.timestamp(renewed.previous_valid_until),
            )


class NodeAdminApi(enrolment_pb2_grpc.NodeAdminServiceServicer):
    """What operators do with nodes."""

    def __init__(self, state: NodeState, rotation: KeyRotation, keys: NodeKeys) -> None:
        self._state = state
        self._rotation = rotation
        self._keys = keys

    async def RequestKeyRotation(
        self, request: pb.RequestKeyRotationRequest, context: Context
    ) -> pb.RequestKeyRotationResponse:
        rotation_id, pending = await self._rotation.request(pack.caller(), UUID(request.node_id))
        return pb.RequestKeyRotationResponse(rotation_id=str(rotation_id), already_pending=pending)

    async def PreviewKeyRotation(
        self, request: pb.PreviewKeyRotationRequest, context: Context
    ) -> pb.PreviewKeyRotationResponse:
        impact = await self._rotation.preview(pack.caller(), UUID(request.node_id))
        return pb.PreviewKeyRotationResponse(
            peers=[
                pb.AffectedPeer(node_id=str(peer.node_id), kid=peer.kid, wrap_key_version=peer.wrap_key_version)
                for peer in impact.peers
            ],
            already_pending=impact.already_pending,
            estimated_duration=pack.duration(impact.heartbeat_interval_s),
        )

    async def GetReachability(self, request: pb.GetReachabilityRequest, context: Context) -> pb.GetReachabilityResponse:
        found = await self._state.get_reachability(pack.caller(), UUID(request.node_id))
        return pb.GetReachabilityResponse(reachability=pack.health(found))

    async def RevokeSecretKey(self, request: pb.RevokeSecretKeyRequest, context: Context) -> pb.RevokeSecretKeyResponse:
        await self._keys.revoke(pack.caller(), UUID(request.node_id))
        return pb.RevokeSecretKeyResponse()
