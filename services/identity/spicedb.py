"""SpiceDB: checks that are always fully consistent, tuples that arrive before their answer."""

from pathlib import Path

import grpc
from authzed.api.v1 import (
    AsyncClient,
    CheckBulkPermissionsPair,
    CheckBulkPermissionsRequest,
    CheckBulkPermissionsRequestItem,
    CheckPermissionResponse,
    Consistency,
    ObjectReference,
    Relationship,
    RelationshipUpdate,
    SubjectReference,
    WriteRelationshipsRequest,
    WriteSchemaRequest,
)
from opentelemetry import trace

from libs.custody import read_secret_file
from libs.errors import AuthzUnavailable
from services.identity.model import Tuple
from services.identity.relations import SentinelMissing

SCHEMA = Path(__file__).with_name("schema.zed")
SENTINEL = Tuple("platform:sentinel", "auditor", "user:sentinel")
DEADLINE_S = 3.0
BATCH = 500
HAS = CheckPermissionResponse.PERMISSIONSHIP_HAS_PERMISSION

tracer = trace.get_tracer("services.identity.spicedb")


def reference(text: str) -> ObjectReference:
    """Return `<type>:<id>` as SpiceDB has it."""
    kind, _, identifier = text.partition(":")
    return ObjectReference(object_type=kind, object_id=identifier)


def relationship(row: Tuple) -> Relationship:
    """Return a tuple as SpiceDB has it."""
    return Relationship(
        resource=reference(row.resource),
        relation=row.relation,
        subject=SubjectReference(object=reference(row.subject)),
    )


class SpiceDb:
    """The relation store behind identity."""

    def __init__(self, address: str, name: str, key_file: Path, ca_file: Path, sentinel: Tuple = SENTINEL) -> None:
        self._sentinel = sentinel
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(ca_file.read_bytes()),
            grpc.access_token_call_credentials(read_secret_file(key_file).reveal().decode().strip()),
        )
        options = [
            ("grpc.ssl_target_name_override", name),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._client = AsyncClient(address, credentials, options)

    async def check(self, questions: list[tuple[str, str, str]]) -> list[bool]:
        """Answer `(subject, permission, resource)` questions from one consistent snapshot.

        Raises AuthzUnavailable without an answer to each, and when the sentinel is missing: a SpiceDB that was emptied
        must not look like a denial.
        """
        told = self._sentinel
        items = [
            CheckBulkPermissionsRequestItem(
                resource=reference(resource), permission=permission, subject=SubjectReference(object=reference(subject))
            )
            for subject, permission, resource in [(told.subject, told.relation, told.resource), *questions]
        ]
        request = CheckBulkPermissionsRequest(consistency=Consistency(fully_consistent=True), items=items)
        with tracer.start_as_current_span("spicedb.check", record_exception=False):
            try:
                answer = await self._client.CheckBulkPermissions(request, timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                raise AuthzUnavailable(error.code().name) from error
        if len(answer.pairs) != len(items):
            raise AuthzUnavailable("SpiceDB did not answer every check")
        sentinel, *pairs = answer.pairs
        # Without a schema the sentinel's own check fails, which is as empty as SpiceDB gets.
        if sentinel.item.permissionship != HAS:
            raise SentinelMissing("the sentinel is missing")
        return [_granted(pair) for pair in pairs]

    async def touch(self, rows: list[Tuple]) -> None:
        """Write tuples; idempotent."""
        await self._write(rows, RelationshipUpdate.OPERATION_TOUCH)

    async def delete(self, rows: list[Tuple]) -> None:
        """Remove tuples; no check finds them once it has returned. Idempotent."""
        await self._write(rows, RelationshipUpdate.OPERATION_DELETE)

    async def write_schema(self) -> None:
        """Write the schema."""
        try:
            await self._client.WriteSchema(WriteSchemaRequest(schema=SCHEMA.read_text()), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise AuthzUnavailable(error.code().name) from error

    async def _write(self, rows: list[Tuple], operation: "RelationshipUpdate.Operation.ValueType") -> None:
        for start in range(0, len(rows), BATCH):
            updates = [
                RelationshipUpdate(operation=operation, relationship=relationship(row))
                for row in rows[start : start + BATCH]
            ]
            try:
                await self._client.WriteRelationships(WriteRelationshipsRequest(updates=updates), timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                raise AuthzUnavailable(error.code().name) from error


def _granted(pair: CheckBulkPermissionsPair) -> bool:
    if pair.WhichOneof("response") != "item":
        raise AuthzUnavailable("SpiceDB did not answer one of the checks")
    return bool(pair.item.permissionship == HAS)
