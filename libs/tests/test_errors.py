"""The error table: every row survives a real call, says what the contract says, and is on its page."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from libs.errors import BY_CODE, Forbidden, Internal, PlexError, StepUpRequired, TooMany, Unavailable, markdown
from libs.rpc.channel import connect
from libs.rpc.status import from_rpc, to_status
from libs.tests.doors import ASKED, NAME, Relations, door, raw_channel
from libs.tests.pki import Authority
from plexsphere.identity.v1 import relations_pb2_grpc as stubs

pytestmark = pytest.mark.unit

PAGE = Path(__file__).resolve().parents[2] / "docs/errors.md"

# Codes of the v1 wire contract with their HTTP status, written down a second time on purpose.
CONTRACT = {
    400: "invalid_body invalid_limit invalid_cursor slug_immutable empty_patch invalid_reachability_policy clock_skew"
    " invalid_target public_key_invalid binary_checksum_empty binary_version_empty malformed_heartbeat_request"
    " endpoint_clock_skew endpoint_unparseable authorization_pending slow_down access_denied expired_token"
    " invalid_grant",
    401: "unauthenticated unauthorized nsk_invalid nsk_revoked step_up_required invalid_client"
    " spiffe_verification_failed",
    403: "permission_denied node_id_mismatch nsk_node_mismatch csrf_token_mismatch csrf_origin_mismatch"
    " csrf_origin_not_configured cursor_binding_mismatch kind_mismatch project_mismatch token_consumed token_expired"
    " token_revoked nonce_collision federation_kind_mismatch",
    404: "not_found resource_not_found secret_not_found secret_version_not_found relation_tuple_not_found"
    " device_code_not_found endpoint_peer_not_found keys_rotate_peer_not_found",
    405: "method_not_allowed",
    409: "mesh_cidr_overlap sub_range_overlap domain_not_empty project_not_empty binding_conflict"
    " device_code_already_approved device_code_expired keys_rotate_no_pending_rotation idempotent_replay"
    " session_not_active session_not_ssh session_already_revoked session_expired",
    410: "endpoint_peer_gone",
    412: "precondition_failed",
    413: "request_body_too_large endpoint_body_too_large keys_rotate_body_too_large",
    415: "unsupported_media_type",
    422: "sub_range_invalidates_allocation keys_rotate_public_key_invalid keys_rotate_public_key_unchanged",
    426: "upgrade_required",
    429: "per_node_rate_limited per_domain_rate_limited session_limit_exceeded",
    500: "internal",
    501: "not_provisioned signed_event_bus_not_provisioned secrets_not_provisioned access_attach_not_provisioned",
    502: "spiffe_bundle_unreachable spiffe_bundle_unconfigured",
    503: "authz_unavailable datastore_unavailable openbao_unavailable signing_unavailable event_stream_unavailable"
    " pool_exhausted subrange_exhausted allocator_contention",
}
EXTRAS: dict[str, dict[str, Any]] = {
    "permission_denied": {"reason": "out_of_scope", "relation_path": []},
    "domain_not_empty": {"child_counts": {"projects": 2, "idp_bindings": 1}},
    "session_limit_exceeded": {"dimension": "identity"},
    "step_up_required": {"acr_values": ["gold", "silver"], "max_age": 300, "missing": ["acr", "auth_time"]},
    "per_node_rate_limited": {"retry_after_s": 7},
    "rate_limited": {"retry_after_s": None},
}


@pytest.mark.parametrize("http", CONTRACT)
def test_the_codes_of_the_contract_have_their_status(http: int) -> None:
    assert {code: BY_CODE[code].http for code in CONTRACT[http].split()} == dict.fromkeys(CONTRACT[http].split(), http)


async def test_every_row_survives_a_real_call(authority: Authority) -> None:
    servicer = Relations()
    async with door(authority, servicer) as peer, connect(peer, authority.issue("gateway")) as channel:
        for code, row in BY_CODE.items():
            servicer.raises = sent = row("told so", **EXTRAS.get(code, {}))
            with pytest.raises(PlexError) as caught:
                await stubs.RelationsServiceStub(channel).Check(ASKED)
            found = caught.value
            assert type(found) is row
            assert found.extra == sent.extra == EXTRAS.get(code, {})
            assert found.detail == ("told so" if row.show_detail else row.title)


def test_what_a_row_inherits_is_its_categorys() -> None:
    for row in BY_CODE.values():
        assert row.grpc in grpc.StatusCode.__members__
        assert row.title
        hidden = issubclass(row, (Unavailable, Internal))
        assert row.show_detail is not hidden, row.code
        assert (row.http >= 500) is (hidden or row.grpc == "UNIMPLEMENTED"), row.code
        assert row.retry is issubclass(row, (TooMany, Unavailable)), row.code


def test_a_code_has_one_row() -> None:
    def below(row: type[PlexError]) -> list[type[PlexError]]:
        return [row, *(deeper for child in row.__subclasses__() for deeper in below(child))]

    rows = [row for row in below(PlexError) if row is not PlexError and row.__module__ == "libs.errors"]
    assert sorted(BY_CODE) == sorted(row.code for row in rows)


def test_on_the_wire_it_is_googles_error_info_and_retry_info() -> None:
    status = to_status(BY_CODE["per_node_rate_limited"](retry_after_s=7))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("PER_NODE_RATE_LIMITED", "plexsphere")
    assert retry.retry_delay.seconds == 7
    assert len(to_status(Forbidden()).details) == 1


def test_a_step_up_says_what_would_do() -> None:
    refusal = StepUpRequired(**EXTRAS["step_up_required"])
    assert json.loads(json.dumps(refusal.extra)) == EXTRAS["step_up_required"]


def failure(code: grpc.StatusCode, *details: Any) -> grpc.aio.AioRpcError:
    """What gRPC raises for a status with these details."""
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = to_status(Internal())
    status.code, status.message = code.value[0], "told so"
    del status.details[:]
    status.details.extend(packed)
    trailing = grpc.aio.Metadata(*rpc_status.to_status(status).trailing_metadata)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details="told so")


FOREIGN = error_details_pb2.ErrorInfo(reason="SECRET_NOT_FOUND", domain="example.org")
UNHEARD_OF = error_details_pb2.ErrorInfo(reason="OF_THE_NEXT_VERSION", domain="plexsphere")


@pytest.mark.parametrize("details", [(), (FOREIGN,), (UNHEARD_OF,), (error_details_pb2.RetryInfo(),)])
@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_what_does_not_carry_our_own_row_is_no_decision(code: grpc.StatusCode, details: tuple[Any, ...]) -> None:
    # UNIMPLEMENTED above all: version skew must not look like 501.
    found = from_rpc(failure(code, *details))
    bugs = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT}
    assert type(found) is (Internal if code in bugs else Unavailable)
    assert "told so" not in f"{found!r} {found.detail}"


async def test_a_details_text_never_becomes_markup_of_the_wire(authority: Authority) -> None:
    servicer = Relations(raises=Forbidden("naïve\n\0 text"))
    async with door(authority, servicer) as peer, raw_channel(peer, authority.issue("gateway")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{NAME}/Check")(ASKED.SerializeToString(), timeout=5)
    assert from_rpc(refused.value).detail == "naïve\n\0 text"


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == markdown(), "run `make docs`"
