"""The server in front of SpiceDB's library: the key, the schema, and every kind of call that we use."""

import uuid
from typing import Any

import grpc
import pytest
from authzed.api.v1 import (
    AsyncClient,
    CheckPermissionRequest,
    CheckPermissionResponse,
    Consistency,
    DeleteRelationshipsRequest,
    ObjectReference,
    ReadRelationshipsRequest,
    ReadSchemaRequest,
    Relationship,
    RelationshipFilter,
    RelationshipUpdate,
    SubjectReference,
    WriteRelationshipsRequest,
    WriteSchemaRequest,
)

from devstack.layout import ROOT, State

pytestmark = pytest.mark.integration

SCHEMA = ROOT / "services/identity/schema.zed"
HAS = CheckPermissionResponse.PERMISSIONSHIP_HAS_PERMISSION
USER = SubjectReference(object=ObjectReference(object_type="user", object_id="devstack"))


def client(stack: State, key: str) -> AsyncClient:
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials((stack / "pki/ca.crt").read_bytes()), grpc.access_token_call_credentials(key)
    )
    return AsyncClient(f"127.0.0.1:{stack.port('spicedb')}", credentials)


@pytest.fixture
async def spicedb(stack: State) -> AsyncClient:
    """A client with the right key, after the schema is written."""
    opened = client(stack, stack.secret("spicedb.key"))
    await opened.WriteSchema(WriteSchemaRequest(schema=SCHEMA.read_text()))
    return opened


@pytest.fixture
def platform() -> ObjectReference:
    """A platform object of this test's own."""
    return ObjectReference(object_type="platform", object_id=str(uuid.uuid4()))


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_a_wrong_key_is_refused(stack: State, spicedb: AsyncClient, platform: ObjectReference, key: str) -> None:
    intruder = client(stack, key)
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await intruder.ReadSchema(ReadSchemaRequest())
    wanted = ReadRelationshipsRequest(relationship_filter=RelationshipFilter(resource_type="platform"))
    with pytest.raises(grpc.aio.AioRpcError) as streamed:
        await anext(aiter(intruder.ReadRelationships(wanted)))
    assert {unary.value.code(), streamed.value.code()} == {grpc.StatusCode.UNAUTHENTICATED}


async def test_a_written_tuple_counts_at_once_and_a_deleted_one_no_longer(
    spicedb: AsyncClient, platform: ObjectReference
) -> None:
    tuple_ = Relationship(resource=platform, relation="auditor", subject=USER)
    touch = RelationshipUpdate(operation=RelationshipUpdate.OPERATION_TOUCH, relationship=tuple_)
    chosen = RelationshipFilter(resource_type="platform", optional_resource_id=platform.object_id)
    question = CheckPermissionRequest(
        resource=platform, permission="auditor", subject=USER, consistency=Consistency(fully_consistent=True)
    )
    assert (await spicedb.CheckPermission(question)).permissionship != HAS
    await spicedb.WriteRelationships(WriteRelationshipsRequest(updates=[touch]))
    assert (await spicedb.CheckPermission(question)).permissionship == HAS
    wanted = ReadRelationshipsRequest(relationship_filter=chosen, consistency=Consistency(fully_consistent=True))
    assert [row.relationship async for row in spicedb.ReadRelationships(wanted)] == [tuple_]
    await spicedb.DeleteRelationships(DeleteRelationshipsRequest(relationship_filter=chosen))
    assert (await spicedb.CheckPermission(question)).permissionship != HAS


async def test_a_streamed_refusal_keeps_its_code(spicedb: AsyncClient) -> None:
    wanted = ReadRelationshipsRequest(relationship_filter=RelationshipFilter(resource_type="nosuchtype"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(spicedb.ReadRelationships(wanted)))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_call_that_the_library_lacks_is_unimplemented(stack: State) -> None:
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{stack.port('spicedb')}", grpc.ssl_channel_credentials((stack / "pki/ca.crt").read_bytes())
    )
    async with channel:
        call: Any = channel.unary_unary("/authzed.api.v1.PermissionsService/ExportBulkRelationships")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("resource", "code"),
    [
        (ObjectReference(object_type="nosuchtype", object_id="a"), grpc.StatusCode.FAILED_PRECONDITION),
        (ObjectReference(object_type="platform", object_id="a b"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_refusal_keeps_its_code(spicedb: AsyncClient, resource: ObjectReference, code: grpc.StatusCode) -> None:
    tuple_ = Relationship(resource=resource, relation="auditor", subject=USER)
    touch = RelationshipUpdate(operation=RelationshipUpdate.OPERATION_TOUCH, relationship=tuple_)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await spicedb.WriteRelationships(WriteRelationshipsRequest(updates=[touch]))
    assert refused.value.code() is code
