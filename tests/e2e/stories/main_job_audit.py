"""The main job's last part: what was recorded is signed and proved, and whoever rewrites it is named."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from devstack.layout import State
from libs.archive import pack, unpack
from libs.tlog.checkpoint import open_checkpoint
from tests.e2e.attacker import eventually
from tests.e2e.ledger import Ledger, hastened, new_chain
from tests.e2e.restoring import Backups, settled
from tests.e2e.stories.main_job import Story, step
from tests.e2e.stories.main_job_events import STEPS
from tests.e2e.world import PLEXCTL

__all__ = ["STEPS"]

NOWHERE = {"PLEX_EDGE_URL": "", "PLEX_TOKEN_FILE": ""}


@contextlib.asynccontextmanager
async def hostile(story: Story, chain: str = "") -> AsyncIterator[Ledger]:
    """The story's chain, or a new one that may be broken for good, as an auditor and as a hostile superuser sees it."""
    dba = await story.world.superuser()
    try:
        await dba.execute("SET session_replication_role = replica")
        if chain:
            yield Ledger(story.world, story.operator, dba, chain)
        else:
            made = await new_chain(story.world, story.operator, dba)
            yield made
            # A chain that is refused keeps audit from being ready, for good; whoever saw it would miss it.
            await made.forget()
            await story.world.restart("audit", hastened(story.audit_config))
    finally:
        await dba.close()


async def plexctl(folder: str, env: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run a command as an auditor does; returns its exit code and what it prints."""
    process = await asyncio.create_subprocess_exec(
        *PLEXCTL, "audit", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"XDG_CONFIG_HOME": folder, **env},
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


@step("a checkpoint of the chain is signed", "200; by the key that OpenBao keeps, over all entries")
async def signed(story: Story) -> str:
    # A turn each second, so that nobody waits for the minute.
    story.audit_config = story.world.config("audit")
    await story.world.restart("audit", hastened(story.audit_config))
    async with hostile(story, story.domain_id) as ledger:
        size, key = await ledger.checkpointed(), await ledger.key()
        answer = await ledger.ask("checkpoint")
        found = open_checkpoint(answer.json["note"], key.name, [key])
    return f"{answer}; by the key that OpenBao keeps, over {'all entries' if found.size >= size else found.size}"


@step("an entry's inclusion proof is verified without the edge", "proved 0; without the edge 0; of another entry 5")
async def proved(story: Story) -> str:
    async with hostile(story, story.domain_id) as ledger:
        key = str(await ledger.key())
    with tempfile.TemporaryDirectory() as folder:
        token, file = Path(folder) / "token", f"{folder}/3.tlog-proof"
        token.write_text(await story.outside.access_token(story.operator))
        env = {name: story.world.env[name] for name in ("PLEX_EDGE_URL", "PLEX_CA_FILE")}
        wanted = ("prove", "3", "--domain", story.domain_id, "--key", key, "--out", file, "--json")
        made, out = await plexctl(folder, env | {"PLEX_TOKEN_FILE": str(token)}, *wanted)
        entry = json.loads(out)["entry_hash"]
        checked = [
            (await plexctl(folder, NOWHERE, "verify-proof", file, "--entry", one, "--key", key))[0]
            for one in (entry, entry[::-1])
        ]
    return f"proved {made}; without the edge {checked[0]}; of another entry {checked[1]}"


@step("a superuser rewrites a whole chain, its hashes, head and Merkle tree", "ok true; then ok false, by the anchor")
async def rewritten(story: Story) -> str:
    async with hostile(story) as ledger:
        await ledger.fill(5)
        size = await ledger.checkpointed()
        before = await ledger.verify()
        await ledger.rewrite(2)
        await ledger.rewrite_tree()
        after = await ledger.verify()
        anchor, key = await ledger.anchor(), await ledger.key()
    root = open_checkpoint(anchor["note"], key.name, [key]).root.hex()
    by = "by the anchor" if after.get("expected_hash") == root else f"at {after.get('divergent_seq')} of {size}"
    return f"ok {str(before['ok']).lower()}; then ok {str(after['ok']).lower()}, {by}"


@step("an older backup of the record is restored", "named; 503 audit_unavailable, nothing appended; the right one: 200")
async def restored(story: Story) -> str:
    with tempfile.TemporaryDirectory() as folder:
        async with hostile(story) as ledger:
            backups = Backups(story.world, Path(folder))
            await ledger.fill(3)
            old = await backups.dump("old")
            await ledger.fill(3)
            await settled(ledger)
            new = await backups.dump("new")
            await backups.restore(old)

            async def told() -> bool:
                return bool(ledger.alarms("restore"))

            await eventually(told)
            before = await ledger.head()
            erased = await ledger.auditor.call("POST", f"{ledger.path}/erase-identity", {"identity_id": ledger.chain})
            appended = await ledger.head() - before
            await backups.restore(new)
            await eventually(ledger.goes_on)
            again = await ledger.auditor.call("POST", f"{ledger.path}/erase-identity", {"identity_id": ledger.chain})
    return f"named; {erased}, {appended or 'nothing'} appended; the right one: {again}"


ALTERED = (
    "the altered entry differs; the database is as it was signed, the archive is not as it was signed; "
    "offline 0, then 5"
)


@step("the archive of a chain is altered", ALTERED)
async def altered(story: Story) -> str:
    async with hostile(story) as ledger:
        await ledger.fill(5)
        path, key = (await ledger.archived())[-1], str(await ledger.key())
        wanted = (
            "verify",
            "--archive",
            str(State(story.world.state) / "audit"),
            "--domain",
            ledger.chain,
            "--key",
            key,
        )

        async def offline() -> int:
            with tempfile.TemporaryDirectory() as folder:
                return (await plexctl(folder, NOWHERE, *wanted))[0]

        before, segment = await offline(), unpack(path.read_bytes())
        entries = (*segment.entries[:-1], segment.entries[-1].replace(b"granted", b"unknown"))
        path.write_bytes(pack(type(segment)(**vars(segment) | {"entries": entries})))

        async def told() -> bool:
            return bool(ledger.alarms("archive_comparison"))

        await eventually(told)
        # How many objects there are, and so which entry it was, is a matter of moments.
        named = ledger.alarms("archive_comparison")[0].replace(f"entry {segment.last} ", "the altered entry ")
        found = f"{named}; offline {before}, then {await offline()}"
    # As it is shipped, for whatever comes next.
    await story.world.restart("audit", story.audit_config)
    return found
