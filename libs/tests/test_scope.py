"""A scoped token is for less than its owner: asked by every service in the same place, and named in the row."""

from typing import Any, cast

import pytest

from libs.audit import AuditClient
from libs.decision import Record
from libs.principal import Principal
from libs.relations import Relations
from libs.rpc import context
from libs.rpc.channel import Peer
from libs.scope import beyond, named
from plexsphere.audit.v1 import audit_pb2
from plexsphere.identity.v1 import relations_pb2

pytestmark = pytest.mark.unit

ALICE = Principal("0190", "user", "api_token", scope=("read", "deploy"))


class Services:
    """Grants everything, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def unary_unary(self, method: str, **_: Any) -> Any:
        async def call(request: Any, **_: Any) -> Any:
            self.asked.append(request)
            granted = relations_pb2.CheckResponse(verdict=relations_pb2.VERDICT_GRANTED)
            return granted if method.endswith("Check") else audit_pb2.AppendAllResponse(seqs=[1])

        return call

    def unary_stream(self, method: str, **_: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("principal", "subject", "permission", "refused"),
    [
        (ALICE, "user:0190", "read", False),
        (ALICE, "user:0190", "deploy", False),
        (ALICE, "user:0190", "manage", True),
        (ALICE, "user:0190", "node-operate", True),
        (ALICE, "user:0191", "manage", False),
        (ALICE, "service:0190", "manage", False),
        (Principal("0190", "user", "api_token", scope=()), "user:0190", "read", True),
        (Principal("0190", "user", "session"), "user:0190", "manage", False),
        (None, "user:0190", "manage", False),
    ],
)
async def test_only_ones_own_credential_is_narrowed(
    principal: Principal | None,
    subject: str,
    permission: str,
    refused: bool,  # noqa: FBT001 — a column of the table
) -> None:
    services = Services()
    with context.bind(context.Call(principal=principal)):
        assert beyond(subject, permission) == refused
        decision = await Relations(cast("Peer", services)).check(subject, permission, "domain:d")
        assert (decision.reason, len(services.asked)) == (("insufficient_relation", 0) if refused else ("granted", 1))
        assert named(subject, permission, decision.reason) == ({"token": ["scope"]} if refused else {})


async def test_a_row_names_the_control_that_refused() -> None:
    services = Services()
    audit = AuditClient(cast("Peer", services))
    refused = Record("", "domain.update", "manage", "domain", "d", "insufficient_relation", "0190", "user")
    with context.bind(context.Call(principal=ALICE)):
        await audit.record(refused)
        assert list(services.asked[-1].decisions[0].caveat_context["token"].names) == ["scope"]
        assert refused.context == {}
    await audit.record(refused)
    assert "token" not in services.asked[-1].decisions[0].caveat_context
