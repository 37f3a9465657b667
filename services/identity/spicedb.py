"""SpiceDB: answers that are always fully consistent, tuples that arrive before their answer.

A fully consistent question may share the look at the head that another one began before a write (decision 0040). So a
write carries a mark of its own and has arrived once a check has found that: whoever asks later looks later.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from authzed.api.v1 import (
    AsyncClient,
    CheckBulkPermissionsPair,
    CheckBulkPermissionsRequest,
    CheckBulkPermissionsRequestItem,
    CheckPermissionResponse,
    Consistency,
    ContextualizedCaveat,
    LookupResourcesRequest,
    LookupSubjectsRequest,
    ObjectReference,
    ReadRelationshipsRequest,
    Relationship,
    RelationshipFilter,
    RelationshipUpdate,
    SubjectReference,
    WriteRelationshipsRequest,
    WriteSchemaRequest,
)
from authzed.api.v1.permission_service_pb2 import LOOKUP_PERMISSIONSHIP_HAS_PERMISSION as HAS
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from opentelemetry import trace

from libs.custody import Secret, SecretFile
from libs.errors import AuthzUnavailable, LookupTooLarge
from libs.ids import uuid7
from services.identity import schema
from services.identity.model import Caveat, Tuple
from services.identity.relations import Question, SentinelMissing, TupleRefused

SENTINEL = Tuple("platform:sentinel", "auditor", "user:sentinel")
MARKS = Tuple("platform:mark", "auditor", "user:")
DEADLINE_S = 3.0
# Another question's look at the head lasts for milliseconds; these are two seconds together.
AGAIN_S = tuple(0.002 * 2**turn for turn in range(10))
BATCH = 500
# The most that SpiceDB takes for a page, unless it is told otherwise.
PAGE = 1000
ANSWERS = {
    CheckPermissionResponse.PERMISSIONSHIP_HAS_PERMISSION: True,
    CheckPermissionResponse.PERMISSIONSHIP_CONDITIONAL_PERMISSION: None,
    CheckPermissionResponse.PERMISSIONSHIP_NO_PERMISSION: False,
}
# These speak of the tuples, every other code of the moment.
OF_TUPLES = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION})
CONSISTENT = Consistency(fully_consistent=True)

tracer = trace.get_tracer("services.identity.spicedb")


def reference(text: str) -> ObjectReference:
    """Return `<type>:<id>` as SpiceDB has it."""
    kind, _, identifier = text.partition(":")
    return ObjectReference(object_type=kind, object_id=identifier)


def struct(values: Any) -> Struct:
    """Return a context as SpiceDB has it."""
    content = Struct()
    content.update(dict(values))
    return content


def relationship(row: Tuple) -> Relationship:
    """Return a tuple as SpiceDB has it."""
    caveat = None
    if row.caveat is not None:
        caveat = ContextualizedCaveat(caveat_name=row.caveat.name, context=struct(row.caveat.context))
    return Relationship(
        resource=reference(row.resource),
        relation=row.relation,
        subject=SubjectReference(object=reference(row.subject)),
        optional_caveat=caveat,
    )


def row_of(found: Relationship) -> Tuple:
    """Return SpiceDB's tuple as ours."""
    resource, subject, caveat = found.resource, found.subject.object, None
    if found.HasField("optional_caveat"):
        caveat = Caveat(found.optional_caveat.caveat_name, MessageToDict(found.optional_caveat.context))
    return Tuple(
        f"{resource.object_type}:{resource.object_id}",
        found.relation,
        f"{subject.object_type}:{subject.object_id}",
        caveat,
    )


class Bearer(grpc.AuthMetadataPlugin):
    """Shows the preshared key as its file has it."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    def __call__(self, _: grpc.AuthMetadataContext, answer: grpc.AuthMetadataPluginCallback) -> None:
        """Answer with the header; gRPC calls it from a thread of its own."""
        answer((("authorization", f"Bearer {self._key.reveal().decode().strip()}"),), None)


class SpiceDb:
    """The relation store behind identity."""

    def __init__(self, address: str, name: str, key_file: Path, ca_file: Path, sentinel: Tuple = SENTINEL) -> None:
        self._sentinel = sentinel
        self._address = address
        self._name = name
        self._bearer = Bearer(SecretFile(key_file))
        self._ca_file = ca_file
        self._seen = 0
        self._opened = self._open()
        self._spent: set[Tuple] = set()

    def _open(self) -> AsyncClient:
        self._seen = self._ca_file.stat().st_mtime_ns
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self._ca_file.read_bytes()), grpc.metadata_call_credentials(self._bearer)
        )
        options = [
            ("grpc.ssl_target_name_override", self._name),
            ("grpc.initial_reconnect_backoff_ms", 50),
            # How long one attempt may take, for which 50 ms were too few on a busy machine.
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        return AsyncClient(self._address, credentials, options)

    @property
    def _client(self) -> AsyncClient:
        """The client for the CA's file as it is now; the key is read with each call."""
        with contextlib.suppress(OSError):
            if self._ca_file.stat().st_mtime_ns != self._seen:
                self._opened = self._open()
        return self._opened

    async def check(self, questions: list[Question]) -> list[bool | None]:
        """Answer from one snapshot, None where a caveat's context decides.

        Raises AuthzUnavailable without an answer to each, and when the sentinel is missing: a SpiceDB that was emptied
        must not look like a denial.
        """
        told = self._sentinel
        sentinel, *pairs = await self._checked([Question(told.subject, told.relation, told.resource), *questions])
        # Without a schema the sentinel's own check fails, which is as empty as SpiceDB gets.
        if ANSWERS.get(sentinel.item.permissionship) is not True:
            raise SentinelMissing("the sentinel is missing")
        return [_answer(pair) for pair in pairs]

    async def resources(self, question: Question, most: int) -> list[str]:
        """Return the ids of objects, of the type that is the resource; raises LookupTooLarge above `most`."""
        request = LookupResourcesRequest(
            consistency=CONSISTENT,
            resource_object_type=question.resource,
            permission=question.permission,
            subject=SubjectReference(object=reference(question.subject)),
            context=struct(question.context),
        )

        async def look() -> list[str]:
            found = self._client.LookupResources(request, timeout=DEADLINE_S)
            return await _taken((one.resource_object_id async for one in found if one.permissionship == HAS), most)

        return await self._whole(look)

    async def subjects(self, question: Question, most: int) -> list[str]:
        """Return the ids of subjects, of the type that is the subject; raises LookupTooLarge above `most`."""
        request = LookupSubjectsRequest(
            consistency=CONSISTENT,
            resource=reference(question.resource),
            permission=question.permission,
            subject_object_type=question.subject,
            context=struct(question.context),
        )

        async def look() -> list[str]:
            found = self._client.LookupSubjects(request, timeout=DEADLINE_S)
            return await _taken(
                (one.subject.subject_object_id async for one in found if one.subject.permissionship == HAS), most
            )

        return await self._whole(look)

    async def read_all(self) -> list[Tuple]:
        """Return every tuple but sentinels and marks."""

        async def look() -> list[Tuple]:
            kinds = sorted({kind for kind, _ in schema.SUBJECTS})
            found = [row async for row in self._read(kinds)]
            return [row for row in found if row.subject != SENTINEL.subject and row.resource != MARKS.resource]

        return await self._whole(look)

    async def _read(self, kinds: list[str]) -> AsyncIterator[Tuple]:
        """Yield the tuples of resources of some types, a page at a time: each has time, however many there are."""
        for kind in kinds:
            request = ReadRelationshipsRequest(
                consistency=CONSISTENT, relationship_filter=RelationshipFilter(resource_type=kind), optional_limit=PAGE
            )
            while page := [one async for one in self._client.ReadRelationships(request, timeout=DEADLINE_S)]:
                for one in page:
                    yield row_of(one.relationship)
                request.optional_cursor.CopyFrom(page[-1].after_result_cursor)

    async def touch(self, rows: list[Tuple]) -> None:
        """Write tuples, or raise TupleRefused and write none of its batch; checks find them once it has returned."""
        await self._write(rows, RelationshipUpdate.OPERATION_TOUCH)

    async def delete(self, rows: list[Tuple]) -> None:
        """Remove tuples; no check finds them once it has returned. Idempotent; raises TupleRefused as above."""
        await self._write(rows, RelationshipUpdate.OPERATION_DELETE)

    async def write_schema(self) -> None:
        """Write the schema."""
        await _asked(self._client.WriteSchema(WriteSchemaRequest(schema=schema.TEXT), timeout=DEADLINE_S))

    async def _checked(self, questions: list[Question]) -> list[CheckBulkPermissionsPair]:
        items = [
            CheckBulkPermissionsRequestItem(
                resource=reference(one.resource),
                permission=one.permission,
                subject=SubjectReference(object=reference(one.subject)),
                context=struct(one.context) if one.context else None,
            )
            for one in questions
        ]
        request = CheckBulkPermissionsRequest(consistency=CONSISTENT, items=items)
        with tracer.start_as_current_span("spicedb.check", record_exception=False):
            answer = await _asked(self._client.CheckBulkPermissions(request, timeout=DEADLINE_S))
        if len(answer.pairs) != len(items):
            raise AuthzUnavailable("SpiceDB did not answer every check")
        return list(answer.pairs)

    async def _whole(self, look: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        """Return what is found between two looks at the sentinel: an emptied SpiceDB lists nothing."""
        await self.check([])
        found: list[Any] = await _asked(look())
        await self.check([])
        return found

    async def _write(self, rows: list[Tuple], operation: "RelationshipUpdate.Operation.ValueType") -> None:
        for start in range(0, len(rows), BATCH):
            mark, spent = replace(MARKS, subject=f"{MARKS.subject}{uuid7()}"), set(self._spent)
            updates = [
                *(_update(operation, row) for row in rows[start : start + BATCH]),
                *(_update(RelationshipUpdate.OPERATION_DELETE, row) for row in spent),
                _update(RelationshipUpdate.OPERATION_TOUCH, mark),
            ]
            request = WriteRelationshipsRequest(updates=updates)
            await _asked(self._client.WriteRelationships(request, timeout=DEADLINE_S), of_tuples=True)
            await self._arrived(mark)
            self._spent = self._spent - spent | {mark}

    async def _arrived(self, mark: Tuple) -> None:
        """Wait until a fully consistent check has found what was written together with this mark."""
        question = Question(mark.subject, mark.relation, mark.resource)
        for wait_s in AGAIN_S:
            (pair,) = await self._checked([question])
            if ANSWERS.get(pair.item.permissionship) is True:
                return
            await asyncio.sleep(wait_s)
        raise AuthzUnavailable("SpiceDB answers without what it has taken")


def _update(operation: "RelationshipUpdate.Operation.ValueType", row: Tuple) -> RelationshipUpdate:
    return RelationshipUpdate(operation=operation, relationship=relationship(row))


async def _asked(call: Awaitable[Any], *, of_tuples: bool = False) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        kind = TupleRefused if of_tuples and error.code() in OF_TUPLES else AuthzUnavailable
        raise kind(error.code().name) from error


async def _taken(found: AsyncIterator[str], most: int) -> list[str]:
    taken = []
    async for one in found:
        taken.append(one)
        if len(taken) > most:
            raise LookupTooLarge
    return taken


def _answer(pair: CheckBulkPermissionsPair) -> bool | None:
    if pair.WhichOneof("response") != "item" or pair.item.permissionship not in ANSWERS:
        raise AuthzUnavailable("SpiceDB did not answer one of the checks")
    return ANSWERS[pair.item.permissionship]
