"""When a chain is checked against its anchor, and when it is appended to."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from libs.errors import AuditDiverged, OpenbaoUnavailable, PlexError
from services.audit.guard import Guard, Server
from services.audit.model import Head

pytestmark = pytest.mark.unit

ONE, OTHER = Server(1), Server(2)


def head(seq: int, of: int = 0) -> Head:
    return Head(seq, bytes([seq, of]).ljust(32))


@dataclass
class Checks:
    """Checks that find what they are told to find."""

    finds: PlexError | None = None
    asked: Counter[str] = field(default_factory=Counter)

    async def __call__(self, chain: str) -> None:
        self.asked[chain] += 1
        if self.finds:
            raise self.finds


async def test_a_chain_is_checked_once_and_again_when_the_server_is_another_one() -> None:
    checks = Checks()
    guard = Guard(checks)
    assert not guard.holds("a", ONE, head(1))
    for seq in (1, 2, 3):
        await guard.require("a")
        assert guard.holds("a", ONE, head(seq))
        guard.wrote([("a", head(seq))])
    assert checks.asked == {"a": 1}
    assert not guard.holds("a", OTHER, head(3))
    await guard.require("a")
    assert guard.holds("a", OTHER, head(3))
    assert checks.asked == {"a": 2}


async def test_what_does_not_go_on_from_its_anchor_is_refused_until_it_does() -> None:
    checks = Checks(AuditDiverged("older"))
    guard = Guard(checks)
    for _ in range(2):
        with pytest.raises(AuditDiverged):
            await guard.require("a")
        assert not guard.holds("a", ONE, head(1))
    assert guard.diverged == {"a": "older"}
    checks.finds = None
    await guard.require("a")
    assert (guard.holds("a", ONE, head(1)), guard.diverged) == (True, {})


async def test_without_the_anchor_nothing_is_trusted_and_nothing_accused() -> None:
    checks = Checks(OpenbaoUnavailable())
    guard = Guard(checks)
    with pytest.raises(OpenbaoUnavailable):
        await guard.require("a")
    assert (guard.holds("a", ONE, head(1)), guard.diverged) == (False, {})


@pytest.mark.parametrize("found", [head(1), head(2), head(3, of=1)])
@pytest.mark.parametrize("server", [ONE, OTHER])
async def test_a_head_behind_what_was_seen_is_refused_whatever_the_anchor_says(found: Head, server: Server) -> None:
    guard = Guard(Checks())
    await guard.require("a")
    assert guard.holds("a", ONE, head(2))
    guard.wrote([("a", head(3))])
    with pytest.raises(AuditDiverged):
        guard.holds("a", server, found)
    with pytest.raises(AuditDiverged):
        await guard.require("a")
    assert guard.diverged == {"a": "entry 3 was there and is not any longer"}
    # Another chain is another matter.
    await guard.require("b")
    assert guard.holds("b", server, head(1))
