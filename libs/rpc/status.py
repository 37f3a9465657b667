"""Errors on gRPC: google.rpc.ErrorInfo and RetryInfo in the status details."""

import json

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from libs.errors import BY_CODE, Internal, PlexError, Unavailable

DOMAIN = "plexsphere"
BUGS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT})


def to_status(error: PlexError) -> status_pb2.Status:
    """Pack an error as google.rpc.Status with ErrorInfo, and RetryInfo where it says when to come back."""
    metadata = {name: json.dumps(value) for name, value in error.extra.items()}
    info = error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=DOMAIN, metadata=metadata)
    details = [any_pb2.Any()]
    details[0].Pack(info)
    if (seconds := error.extra.get("retry_after_s")) is not None:
        details.append(any_pb2.Any())
        details[1].Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds)))
    return status_pb2.Status(code=grpc.StatusCode[error.grpc].value[0], message=error.detail, details=details)


def from_rpc(failed: grpc.aio.AioRpcError) -> PlexError:
    """Unpack what a peer answered; anything that does not carry our own ErrorInfo is Unavailable or Internal.

    UNIMPLEMENTED without it is Unavailable: version skew must not look like 501.
    """
    status = rpc_status.from_call(failed)  # type: ignore[arg-type]  # the stub forgets the asynchronous error
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason.lower() in BY_CODE:
            try:
                extra = {name: json.loads(value) for name, value in info.metadata.items()}
            except (ValueError, RecursionError):
                return Internal()
            return BY_CODE[info.reason.lower()](failed.details() or "", **extra)
    return Internal() if failed.code() in BUGS else Unavailable()
