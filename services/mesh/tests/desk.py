"""The rules of mesh on fakes, wired as the process wires them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import UUID

from libs.clock import FixedClock
from libs.ids import uuid7
from libs.principal import Principal
from services.mesh.model import Event
from services.mesh.publisher import Publisher
from services.mesh.service import Halves, OperatorEvents, SigningKeys
from services.mesh.tests.fakes import (
    FakeAudit,
    FakeAuthority,
    FakeFleet,
    FakeKeyStore,
    FakeLog,
    FakeStream,
    FakeVault,
    clock,
)

HOME = str(uuid7())
OPERATOR = Principal(subject=str(uuid7()), kind="user", credential="access_token", domain_id=HOME)


@dataclass
class Desk:
    """Everything, with one Domain."""

    domain: UUID = field(default_factory=uuid7)
    vault: FakeVault = field(default_factory=FakeVault)
    keys: FakeKeyStore = field(default_factory=FakeKeyStore)
    log: FakeLog = field(default_factory=FakeLog)
    stream: FakeStream = field(default_factory=FakeStream)
    audit: FakeAudit = field(default_factory=FakeAudit)
    authority: FakeAuthority = field(default_factory=FakeAuthority)
    fleet: FakeFleet = field(default_factory=FakeFleet)
    clock: FixedClock = field(default_factory=clock)

    def __post_init__(self) -> None:
        halves = Halves(self.vault)
        self.publisher = Publisher(self.keys, halves, self.vault, self.log, self.stream, self.clock)
        self.signing = SigningKeys(
            self.vault, halves, self.keys, self.audit, self.authority, self.publisher, self.clock
        )
        self.operators = OperatorEvents(self.keys, self.audit, self.authority, self.fleet, self.publisher, self.clock)

    def event(self, kind: str = "action_request", scope: str = "", payload: object = None) -> Event:
        """Return an event of the Domain."""
        text = json.dumps({} if payload is None else payload, ensure_ascii=False)
        return Event(uuid7(), self.domain, kind, scope or f"domain:{self.domain}", text)


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Desk]:
    """Open a desk whose Domain has a key."""
    desk = Desk()
    running = asyncio.ensure_future(desk.publisher.run())
    await desk.signing.ensure(desk.domain)
    try:
        yield desk
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
