"""A-3 over the wire: who restores another backup of the record, and what goes on from there and how."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from devstack.layout import State
from libs.archive import unpack
from libs.custody import read_secret_file
from libs.errors import (
    AcknowledgementInvalid,
    AcknowledgementNotTrusted,
    AcknowledgementStale,
    Forbidden,
    PlexError,
)
from libs.tlog.signer import make_key, parse_signer
from tests.e2e.attacker import eventually, refusals
from tests.e2e.ledger import Ledger, new_chain
from tests.e2e.restoring import Backups, acknowledge, mend, plexctl, ready, settled, stopped
from tests.e2e.world import World

pytestmark = pytest.mark.e2e

DIVERGED = 5
COUNT = "SELECT count(*) FROM audit.entries WHERE chain = $1"


@pytest.fixture
async def backups(ledger: Ledger, world: World, tmp_path: Path) -> AsyncIterator[Backups]:
    yield Backups(world, tmp_path)
    await ledger.forget()
    # Whoever saw the chain would miss it.
    async with stopped(world):
        pass
    await mend(world, tmp_path)


@pytest.fixture
async def bystander(ledger: Ledger) -> Ledger:
    made = await new_chain(ledger.world, ledger.auditor, ledger.dba)
    await made.fill(3)
    return made


async def older(ledger: Ledger) -> None:
    await ledger.cut_off(6)
    await ledger.dba.execute("DELETE FROM audit.tree WHERE chain = $1 AND ((position + 1) << level) > 6", ledger.chain)
    await ledger.forget_checkpoints(above=6)


async def altered(ledger: Ledger) -> None:
    await ledger.dba.execute("UPDATE audit.entries SET relation = 'x' WHERE chain = $1 AND seq = 3", ledger.chain)


async def forked(ledger: Ledger) -> None:
    await ledger.rewrite(7)
    await ledger.rewrite_tree()
    await ledger.forget_checkpoints(above=6)


async def forked_and_longer(ledger: Ledger) -> None:
    await forked(ledger)
    await ledger.grow(9)


async def gone(ledger: Ledger) -> None:
    await ledger.cut_off(0)
    for table in ("tree", "checkpoints", "chains", "segments", "archived"):
        await ledger.dba.execute(f"DELETE FROM audit.{table} WHERE chain = $1", ledger.chain)


FORGED: dict[str, Callable[[Ledger], Awaitable[None]]] = {
    "older": older,
    "an altered row": altered,
    "forked": forked,
    "forked and longer": forked_and_longer,
    "a chain missing": gone,
}


async def substitute(
    backups: Backups, ledger: Ledger, service: str, change: Callable[[Ledger], Awaitable[None]]
) -> str:
    """Restore a changed backup; returns why audit refuses the chain."""
    await settled(ledger)
    before = len(ledger.alarms("restore"))
    if service == "stopped":
        async with stopped(ledger.world):
            await backups.restore(await backups.altered(ledger, "forged", change))
    else:
        await backups.restore(await backups.altered(ledger, "forged", change))

    async def told() -> bool:
        return len(ledger.alarms("restore")) > before

    await eventually(told)
    return ledger.alarms("restore")[-1]


async def refused(ledger: Ledger) -> None:
    """See that nothing is appended to a chain, and that what must be is not done."""
    before = await ledger.dba.fetchval(COUNT, ledger.chain)
    body = {"identity_id": ledger.chain}
    answer = await ledger.auditor.call("POST", f"{ledger.path}/erase-identity", body)
    assert (answer.status, answer.code) == (503, "audit_unavailable")
    assert await ledger.dba.fetchval(COUNT, ledger.chain) == before

    async def unready() -> bool:
        return not await ready(ledger.world)

    await eventually(unready)
    assert (await refusals(ledger.world, "audit", "restore"))["diverged"] >= 1


async def goes_on(ledger: Ledger) -> None:
    """Wait until a chain takes entries again, and see it checkpointed from there on."""
    await eventually(ledger.goes_on)
    await ledger.checkpointed()


def objects(ledger: Ledger, epoch: str = "") -> dict[str, bytes]:
    """Return what the archive has of a chain and epoch."""
    folder = State(ledger.world.state) / "audit" / ledger.chain / epoch
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.zst"))}


async def archived_anew(ledger: Ledger) -> None:
    """Wait until a chain that goes on is archived from its first entry on, in a folder of its own."""
    size = await ledger.checkpointed()

    async def done() -> bool:
        ends = [unpack(content).last for content in objects(ledger, "1").values()]
        return bool(ends) and ends[-1] >= size

    await eventually(done)
    segments = [unpack(content) for content in objects(ledger, "1").values()]
    assert [one.first for one in segments] == [1, *(one.last + 1 for one in segments[:-1])]


@pytest.mark.parametrize("service", ["stopped", "running"])
@pytest.mark.parametrize("name", FORGED)
async def test_a_substituted_backup_is_refused_until_it_is_acknowledged(
    ledger: Ledger, bystander: Ledger, backups: Backups, name: str, service: str
) -> None:
    world, folder = ledger.world, backups.folder
    await ledger.archived()
    reason = await substitute(backups, ledger, service, FORGED[name])
    assert reason
    await refused(ledger)
    # Who reads it can, to find out what happened, and is recorded elsewhere.
    count = await ledger.dba.fetchval(COUNT, ledger.chain)
    assert (await ledger.ask("entries?limit=1")).status == 200
    assert await ledger.dba.fetchval(COUNT, ledger.chain) == count
    # The other chain is as it was, and takes entries.
    head = await bystander.head()
    await bystander.fill(2)
    assert await bystander.head() == head + 2
    before = objects(ledger)
    status, said = await plexctl(world, "check-restore", "--statement", folder / "statement.txt")
    assert status == DIVERGED
    assert ledger.chain in said
    assert bystander.chain not in said
    status, said = await plexctl(world, "acknowledge-restore", folder / "statement.txt")
    assert (status, said) == (0, f"{ledger.chain} goes on\n")
    entry = (await ledger.ask("entries?limit=200")).json["items"][0]
    assert entry["decision"]["caveat_context"]["action"] == ["audit.restore-acknowledged"]
    assert entry["decision"]["caveat_context"]["acknowledged_by"][0] == "plexsphere-dev-restore"
    await goes_on(ledger)
    await archived_anew(ledger)
    assert objects(ledger).items() >= before.items() > set()
    await eventually(lambda: ready(world))
    verdict = await ledger.verify()
    # What was altered stays altered, and says so for ever.
    assert (verdict["ok"], verdict.get("divergent_seq")) == ((False, 3) if name == "an altered row" else (True, None))
    assert (await plexctl(world, "check-restore"))[0] == 0


@pytest.mark.parametrize("service", ["stopped", "running"])
async def test_a_whole_older_backup_is_refused_until_the_right_one_is_restored(
    ledger: Ledger, backups: Backups, service: str
) -> None:
    await settled(ledger)
    old = await backups.dump("old")
    await ledger.fill(5)
    await settled(ledger)
    if service == "stopped":
        async with stopped(ledger.world):
            new = await backups.dump("new")
            await backups.restore(old)
    else:
        new = await backups.dump("new")
        await backups.restore(old)

    async def told() -> bool:
        return bool(ledger.alarms("restore"))

    await eventually(told)
    await refused(ledger)
    await backups.restore(new)
    await eventually(lambda: ready(ledger.world))
    await goes_on(ledger)
    assert (await ledger.verify())["ok"] is True


async def test_an_acknowledgement_that_is_not_exactly_that_changes_nothing(ledger: Ledger, backups: Backups) -> None:
    world, path = ledger.world, backups.folder / "statement.txt"
    await substitute(backups, ledger, "running", older)
    await plexctl(world, "check-restore", "--statement", path)
    key = parse_signer(read_secret_file(Path(world.env["PLEX_RESTORE_KEY_FILE"])))
    stranger, text = parse_signer(make_key("plexsphere-dev-restore")[0]), path.read_text()
    head, anchor = await ledger.head(), await ledger.anchor()
    attempts: dict[str, tuple[str, str, type[PlexError]]] = {
        "by a stranger": (stranger.seal(text), "operator", AcknowledgementNotTrusted),
        "by who appends": (key.seal(text), "identity", Forbidden),
        "by the gateway": (key.seal(text), "gateway", Forbidden),
        "another log": (key.seal(text.replace("plexsphere/", "other/")), "operator", AcknowledgementInvalid),
        "another head": (key.seal(text.replace(" 6 ", " 5 ")), "operator", AcknowledgementStale),
        "a chain that goes on": (key.seal(text.replace(ledger.chain, "platform")), "operator", AcknowledgementStale),
        "altered after it was signed": (key.seal(text).replace(" 6 ", " 5 "), "operator", AcknowledgementNotTrusted),
    }
    for name, (note, caller, refusal) in attempts.items():
        with pytest.raises(refusal):
            await acknowledge(world, note, caller)
        assert (await ledger.head(), await ledger.anchor()) == (head, anchor), name
    assert await acknowledge(world, key.seal(text)) == [ledger.chain]
    await goes_on(ledger)
    # The same backup once more: what was said of it once is not said of it now.
    await substitute(backups, ledger, "running", older)
    with pytest.raises(AcknowledgementStale):
        await acknowledge(world, key.seal(text))
    await refused(ledger)


async def test_an_acknowledgement_that_is_cut_short_at_any_moment_can_be_repeated(
    ledger: Ledger, backups: Backups
) -> None:
    world, path = ledger.world, backups.folder / "statement.txt"
    key = parse_signer(read_secret_file(Path(world.env["PLEX_RESTORE_KEY_FILE"])))
    for _ in range(3):
        await substitute(backups, ledger, "running", older)
        await plexctl(world, "check-restore", "--statement", path)
        note = key.seal(path.read_text())
        for _ in range(3):
            sent = asyncio.create_task(acknowledge(world, note))
            await asyncio.sleep(random.uniform(0.01, 0.12))
            async with stopped(world):
                pass
            await asyncio.gather(sent, return_exceptions=True)
        if (await plexctl(world, "check-restore"))[0]:
            assert await acknowledge(world, note) == [ledger.chain]
        await goes_on(ledger)
        said = [one for one in (await ledger.ask("entries?limit=200")).json["items"] if acknowledged(one)]
        assert len(said) == 1
        assert (await ledger.verify())["ok"] is True


def acknowledged(entry: dict[str, dict[str, dict[str, list[str]]]]) -> bool:
    return entry["decision"]["caveat_context"]["action"] == ["audit.restore-acknowledged"]
