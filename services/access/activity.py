"""What nodes report of sessions: taken while a session is active, and never after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from libs.clock import Clock
from libs.decision import Record
from libs.errors import (
    Forbidden,
    InvalidRequest,
    NodeUnauthorized,
    NotFound,
    NskNodeMismatch,
    PlexError,
    SessionAlreadyRevoked,
    SessionExpired,
)
from libs.principal import Principal
from services.access.ports import Audit, Authority, Store

# What is kept of a report, by kind. Not the text of a command: a secret that somebody types would stay in the database.
KEPT = {
    "ssh": ("exit_code", "started_at", "completed_at"),
    "k8s": ("verb", "resource_kind", "namespace", "name", "status_code", "duration_ms"),
    "tcp": ("phase", "target_host", "target_port", "bytes_in", "bytes_out", "terminated_by"),
}
LONGEST = 256


@dataclass(frozen=True)
class Activity:
    """Sessions, for the nodes that host them."""

    store: Store
    authority: Authority
    audit: Audit
    clock: Clock

    async def report(
        self, caller: Principal, node_id: UUID, session_id: UUID, kind: str, report: Mapping[str, Any]
    ) -> None:
        """Take what happened in a session; a revocation counts as soon as it was answered."""
        if caller.kind != "node" or caller.credential != "node_key":
            raise NodeUnauthorized
        if caller.node_id != str(node_id) or caller.subject != caller.node_id:
            await self._refuse(caller, f"node:{node_id}", NskNodeMismatch())
        this = f"node:{node_id}"
        decision = await self.authority.check(this, "node-agent", this)
        if not decision.granted:
            await self._refuse(caller, this, Forbidden(reason=decision.reason, relation_path=[]), decision.reason)
        now = self.clock.now()
        if await self.store.touch(session_id, node_id, kind, kept(kind, report), now):
            return
        session = await self.store.find(session_id)
        if session is None or session.node_id != node_id:
            raise NotFound
        if session.kind != kind:
            raise InvalidRequest("the session is of another kind")
        expired = session.status(now) == "expired"
        await self._refuse(caller, f"session:{session_id}", SessionExpired() if expired else SessionAlreadyRevoked())

    async def _refuse(self, caller: Principal, this: str, error: PlexError, reason: str = "caveat_violation") -> None:
        # One row a session of the node, reason and minute: an agent that goes on must not fill the chain. A session
        # that was only named is none: who makes up ids has one row.
        minute, (kind, _, identifier) = self.clock.now().strftime("%Y-%m-%dT%H:%MZ"), this.partition(":")
        about = this if kind == "session" else ""
        await self.audit.record(
            Record(
                caller.domain_id, "session.report", "node-agent", kind, identifier, reason, caller.subject, caller.kind,
                {"session": [error.code], "minute": [minute]},
                uuid5(UUID(caller.subject), f"{about}/{error.code}/{minute}"),
            )
        )  # fmt: skip
        raise error


def kept(kind: str, report: Mapping[str, Any]) -> dict[str, str | int]:
    """Return what is kept of a report: the contract's members, texts up to LONGEST characters."""
    members = {name: report[name] for name in KEPT[kind] if isinstance(report.get(name), str | int)}
    return {name: _text(value) if isinstance(value, str) else value for name, value in members.items()}


def _text(value: str) -> str:
    # PostgreSQL keeps neither NUL nor half a character.
    return value.replace("\0", "").encode(errors="replace").decode()[:LONGEST]
