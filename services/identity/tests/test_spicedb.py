"""SpiceDB's own lag on the real one: a fully consistent answer may be of the head as another question found it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from authzed.api.v1 import (
    AsyncClient,
    CheckBulkPermissionsRequest,
    CheckBulkPermissionsResponse,
    Consistency,
    RelationshipUpdate,
    WriteRelationshipsRequest,
    WriteRelationshipsResponse,
    ZedToken,
)

from devstack.layout import State
from libs.errors import AuthzUnavailable
from libs.ids import uuid7
from libs.settings import Tls
from libs.tests.pki import make_authority
from services.identity.model import Caveat, Tuple
from services.identity.relations import Question
from services.identity.spicedb import PAGE, SpiceDb

pytestmark = pytest.mark.integration

Context = grpc.aio.ServicerContext[Any, Any]
FOR_EVER = 1_000_000


class Lagging:
    """SpiceDB, of which some checks after a write still get the head from before it."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._head = ZedToken()
        self._left = 0
        self.late = 3
        self.writes: list[WriteRelationshipsRequest] = []

    async def write(self, request: WriteRelationshipsRequest, _: Context) -> WriteRelationshipsResponse:
        self._left = self.late
        self.writes.append(request)
        return await self._client.WriteRelationships(request)

    async def check(self, request: CheckBulkPermissionsRequest, _: Context) -> CheckBulkPermissionsResponse:
        if self._left:
            self._left -= 1
            request.consistency.CopyFrom(Consistency(at_exact_snapshot=self._head))
        answer = await self._client.CheckBulkPermissions(request)
        self._head = answer.checked_at
        return answer

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the two methods as a server has them."""
        kinds: dict[str, tuple[Any, Any, Any]] = {
            "WriteRelationships": (self.write, WriteRelationshipsRequest, WriteRelationshipsResponse),
            "CheckBulkPermissions": (self.check, CheckBulkPermissionsRequest, CheckBulkPermissionsResponse),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=asked.FromString, response_serializer=answered.SerializeToString
            )
            for name, (method, asked, answered) in kinds.items()
        }
        return grpc.method_handlers_generic_handler("authzed.api.v1.PermissionsService", methods)


@pytest.fixture
def key_file(backends: State) -> Path:
    return backends / "secrets/spicedb.key"


@pytest.fixture
def client(backends: State, tls: Tls, key_file: Path) -> tuple[str, Any, Any]:
    """What a client of SpiceDB is made of."""
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(tls.ca_file.read_bytes()),
        grpc.access_token_call_credentials(key_file.read_text().strip()),
    )
    return f"127.0.0.1:{backends.port('spicedb')}", credentials, [("grpc.ssl_target_name_override", "spicedb")]


@pytest.fixture
async def lagging(backends: State, client: tuple[str, Any, Any]) -> AsyncIterator[tuple[Lagging, str]]:
    between = Lagging(AsyncClient(*client))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((between.handler(),))
    pair = [(backends / f"pki/spicedb.{end}").read_bytes() for end in ("key", "crt")]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair[0], pair[1])]))
    await server.start()
    yield between, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def behind(lagging: tuple[Lagging, str], tls: Tls, key_file: Path, spicedb: SpiceDb, sentinel: Tuple) -> SpiceDb:
    await spicedb.touch([sentinel])
    found = SpiceDb(lagging[1], "spicedb", key_file, tls.ca_file, sentinel)
    await found.check([])
    return found


async def test_what_was_written_is_found_by_every_check_that_comes_after(behind: SpiceDb) -> None:
    row = Tuple(f"secret:{uuid7()}", "reader", f"node:{uuid7()}")
    question = Question(row.subject, "read", row.resource)
    for _ in range(3):
        await behind.touch([row])
        assert await behind.check([question]) == [True]
        await behind.delete([row])
        assert await behind.check([question]) == [False]


async def test_a_narrower_caveat_is_in_force_once_it_is_written(behind: SpiceDb) -> None:
    row = Tuple(f"project:{uuid7()}", "viewer", f"user:{uuid7()}")
    asked = Question(row.subject, "read", row.resource, {"now": "2026-01-01T12:00:00Z"})
    for hour, granted in ((13, True), (11, False)):
        caveat = Caveat("expires", {"until": f"2026-01-01T{hour}:00:00Z"})
        await behind.touch([replace(row, caveat=caveat)])
        assert await behind.check([asked]) == [granted]


async def test_what_never_arrives_is_a_refusal(behind: SpiceDb, lagging: tuple[Lagging, str]) -> None:
    row = Tuple(f"secret:{uuid7()}", "reader", f"node:{uuid7()}")
    lagging[0].late = FOR_EVER
    with pytest.raises(AuthzUnavailable):
        await behind.delete([row])


async def test_all_of_many_pages_is_read_and_each_once(spicedb: SpiceDb, sentinel: Tuple) -> None:
    await spicedb.touch([sentinel])
    node, read = f"node:{uuid7()}", f"secret:{uuid7()}"
    rows = [Tuple(f"secret:{uuid7()}", "reader", node) for _ in range(2 * PAGE)]
    rows += [Tuple(read, "reader", f"node:{uuid7()}") for _ in range(PAGE + 1)]
    await spicedb.touch(rows)
    found = [row for row in await spicedb.read_all() if node == row.subject or read == row.resource]
    assert sorted(found, key=str) == sorted(rows, key=str)
    await spicedb.delete(rows)


async def test_a_mark_goes_with_the_next_write(behind: SpiceDb, lagging: tuple[Lagging, str]) -> None:
    for _ in range(2):
        await behind.touch([Tuple(f"secret:{uuid7()}", "reader", f"node:{uuid7()}")])
    first, second = (
        {
            (update.operation, update.relationship.subject.object.object_id)
            for update in write.updates
            if update.relationship.resource.object_id == "mark"
        }
        for write in lagging[0].writes
    )
    ((_, mark),) = first
    assert (RelationshipUpdate.OPERATION_DELETE, mark) in second
    assert len(second) == 2


async def test_a_key_that_is_replaced_is_shown_from_the_next_call_on(backends: State, tls: Tls, tmp_path: Path) -> None:
    own, keys = tmp_path / "spicedb.key", backends / "secrets/spicedb.keys"
    old, new = backends.secret("spicedb.key").encode(), b"the-next-one"
    own.touch(0o600)
    own.write_bytes(old)
    found = SpiceDb(f"127.0.0.1:{backends.port('spicedb')}", "spicedb", own, tls.ca_file)
    await found.write_schema()
    own.write_bytes(new)
    with pytest.raises(AuthzUnavailable):
        await found.write_schema()
    try:
        keys.write_bytes(old + b"," + new)
        await found.write_schema()
        own.write_bytes(old)
        await found.write_schema()
    finally:
        keys.write_bytes(old)


async def test_a_ca_that_is_replaced_is_believed_from_the_next_call_on(
    backends: State, tls: Tls, key_file: Path, tmp_path: Path
) -> None:
    ca_file, good = tmp_path / "ca.crt", tls.ca_file.read_bytes()
    ca_file.write_bytes(make_authority(tmp_path / "foreign").ca_file.read_bytes())
    found = SpiceDb(f"127.0.0.1:{backends.port('spicedb')}", "spicedb", key_file, ca_file)
    with pytest.raises(AuthzUnavailable):
        await found.write_schema()
    ca_file.write_bytes(good)
    await found.write_schema()
