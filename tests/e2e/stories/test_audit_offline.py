"""An auditor with `plexctl`: what it verifies it recomputes itself, online, from a file, or from the archive alone."""

import asyncio
import base64
import hashlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from devstack.layout import State
from libs.archive import pack, unpack
from libs.export import Exported, entry_line, read_entry
from libs.tlog.checkpoint import Checkpoint
from libs.tlog.note import VerifierKey, seal_note
from libs.tlog.tree import Run
from tests.e2e.attacker import ask_vault
from tests.e2e.conftest import Scene
from tests.e2e.ledger import Ledger, breakable
from tests.e2e.stories.test_plexctl import Cli, cli
from tests.e2e.world import World

__all__ = ["cli"]
pytestmark = pytest.mark.e2e

DIVERGED, UNAVAILABLE, USAGE = 5, 4, 2


@pytest.fixture
async def ledger(quick: None, scene: Scene) -> AsyncIterator[Ledger]:
    async with breakable(scene.story.world, scene.operator, 9) as made:
        yield made


async def plexctl(cli: Cli, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(cli.run, *map(str, arguments))


async def verdict(cli: Cli, *arguments: str | Path, status: int = 0) -> Any:
    done = await plexctl(cli, "audit", "verify", *arguments, "--json")
    assert done.returncode == status, done.stderr.decode()
    return json.loads(done.stdout)


def offline(cli: Cli) -> Cli:
    """Without an edge, a token, or anything remembered."""
    (cli.folder / "elsewhere").mkdir(exist_ok=True)
    gone = {"PLEX_EDGE_URL": "", "PLEX_TOKEN_FILE": "", "XDG_CONFIG_HOME": str(cli.folder / "elsewhere")}
    return Cli(cli.folder, cli.env | gone)


async def test_what_was_verified_is_remembered_and_only_newer_entries_are_looked_at(ledger: Ledger, cli: Cli) -> None:
    size = await ledger.size()
    first = await verdict(cli, "--domain", ledger.chain)
    assert (first["ok"], first["first"], first["key_from"]) == (True, 1, "shown")
    assert first["signed_to"] >= size
    assert first["key"] == str(await ledger.key())
    [kept] = (cli.folder / "plexctl/checkpoints").rglob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    await ledger.fill(3)
    await ledger.checkpointed()
    second = await verdict(cli, "--domain", ledger.chain)
    assert (second["first"], second["key_from"]) == (first["signed_to"] + 1, "remembered")
    assert second["signed_to"] > first["signed_to"]
    full = await verdict(cli, "--domain", ledger.chain, "--full")
    assert (full["ok"], full["first"]) == (True, 1)
    # It is one row for each, and one for each verification that audit itself made.
    listed = (await ledger.ask("entries?limit=200")).json["items"]
    actions = [row["decision"]["caveat_context"]["action"][0] for row in listed]
    assert (actions.count("audit.export"), actions.count("audit.verify")) == (3, 3)


async def test_a_row_that_a_dba_changed_is_shown_as_it_should_be_and_as_it_is(ledger: Ledger, cli: Cli) -> None:
    where = "WHERE chain = $1 AND seq = 4"
    await ledger.dba.execute(f"UPDATE audit.entries SET relation = 'framed' {where}", ledger.chain)
    done = await plexctl(cli, "audit", "verify", "--domain", ledger.chain, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["divergent_seq"], found["kind"]) == (DIVERGED, 4, "columns")
    said = done.stderr.decode()
    assert "entry 4 has other columns" in said
    assert [line.split() for line in said.splitlines() if line.startswith("relation")] == [
        ["relation", "audit", "framed"]
    ]
    assert not list((cli.folder / "plexctl").rglob("*.json"))

    await ledger.dba.execute(f"UPDATE audit.entries SET relation = 'audit' {where}", ledger.chain)
    before = await ledger.dba.fetchval(f"SELECT canonical FROM audit.entries {where}", ledger.chain)
    forged = before.replace(b'"granted"', b'"unknown"')
    await ledger.dba.execute(f"UPDATE audit.entries SET canonical = $2 {where}", ledger.chain, forged)
    done = await plexctl(cli, "audit", "verify", "--domain", ledger.chain, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["divergent_seq"], found["kind"]) == (DIVERGED, 4, "hash")
    said = done.stderr.decode()
    assert "entry 4 is not what was written" in said
    # The columns still have the hash that was chained, so that they say what was expected.
    assert [line.split() for line in said.splitlines() if line.startswith("reason")] == [
        ["reason", "granted", "unknown"]
    ]


async def forge(ledger: Ledger, first: int) -> None:
    """Rewrite the chain with its tree, and sign its newest checkpoint anew, as who has audit's own right could."""
    size = await ledger.size()
    await ledger.rewrite(first)
    await ledger.rewrite_tree()
    run, key = Run(), await ledger.key()
    sql = "SELECT entry_hash FROM audit.entries WHERE chain = $1 AND seq <= $2 ORDER BY seq"
    for row in await ledger.dba.fetch(sql, ledger.chain, size):
        run.push(row["entry_hash"])
    text = Checkpoint(key.name, size, run.root()).text()
    wanted = {"input": base64.b64encode(text.encode()).decode()}
    signed = (await ask_vault(ledger.world, "transit-audit/sign/acp", wanted))["data"]["signature"]
    note = seal_note(text, key, base64.b64decode(signed.rpartition(":")[2]))
    update = "UPDATE audit.checkpoints SET root = $3, note = $4 WHERE chain = $1 AND size = $2"
    await ledger.dba.execute(update, ledger.chain, size, run.root(), note)


async def test_a_forked_history_is_an_alarm_for_who_remembers_even_when_it_is_signed(ledger: Ledger, cli: Cli) -> None:
    await verdict(cli, "--domain", ledger.chain)
    await ledger.fill(2)
    await ledger.checkpointed()
    await forge(ledger, 3)
    found = await verdict(cli, "--domain", ledger.chain, status=DIVERGED)
    assert found["kind"] == "link"
    whole = await verdict(cli, "--domain", ledger.chain, "--full", status=DIVERGED)
    assert (whole["kind"], whole["divergent_seq"]) == ("root", found["divergent_seq"] - 1)
    # Who comes new sees a history that fits; only what audit has anchored elsewhere contradicts it.
    newcomer = Cli(cli.folder, cli.env | {"XDG_CONFIG_HOME": str(cli.folder / "new")})
    assert (await verdict(newcomer, "--domain", ledger.chain, status=DIVERGED))["kind"] == "anchor"


async def test_a_key_that_changed_is_an_alarm_and_who_has_the_new_one_gives_it(ledger: Ledger, cli: Cli) -> None:
    first = await verdict(cli, "--domain", ledger.chain)
    [kept] = (cli.folder / "plexctl/checkpoints").rglob("*.json")
    other = {"key": str(VerifierKey(f"log/{ledger.chain}", bytes(32)))}
    kept.write_text(json.dumps(json.loads(kept.read_bytes()) | other))
    done = await plexctl(cli, "audit", "verify", "--domain", ledger.chain)
    assert (done.returncode, b"the key has changed" in done.stderr) == (DIVERGED, True)
    assert (await verdict(cli, "--domain", ledger.chain, "--key", first["key"]))["key_from"] == "given"
    assert (await verdict(cli, "--domain", ledger.chain))["key_from"] == "remembered"
    kept.write_text("{}")
    assert (await plexctl(cli, "audit", "verify", "--domain", ledger.chain)).returncode == USAGE


# Files ----------------------------------------------------------------------------------------------------------------


async def exported(ledger: Ledger, cli: Cli) -> Path:
    file = cli.folder / "chain.ndjson"
    done = await plexctl(cli, "audit", "export", "--domain", ledger.chain, "-o", file, "--force")
    assert done.returncode == 0, done.stderr.decode()
    return file


async def test_an_export_is_verified_without_the_edge(ledger: Ledger, cli: Cli) -> None:
    file, key = await exported(ledger, cli), str(await ledger.key())
    assert (await plexctl(cli, "audit", "export", "--domain", ledger.chain, "-o", file)).returncode == USAGE
    assert b"client_ip" not in file.read_bytes()
    found = await verdict(offline(cli), "--file", file, "--key", key)
    assert (found["ok"], found["chain"], found["key_from"]) == (True, ledger.chain, "given")
    assert found["signed_to"] >= 9
    assert (await verdict(offline(cli), "--file", file))["key_from"] == "shown"
    other = key.replace(ledger.chain, "platform")
    assert (await plexctl(offline(cli), "audit", "verify", "--file", file, "--key", other)).returncode == USAGE


def altered(lines: list[bytes]) -> list[bytes]:
    entry = read_entry(lines[4])
    forged = entry.canonical.replace(b'"granted"', b'"unknown"')
    return [*lines[:4], entry_line(Exported(entry.seq, entry.prev_hash, entry.entry_hash, forged)), *lines[5:]]


def recomputed(lines: list[bytes]) -> list[bytes]:
    made, before = lines[:4], b""
    for line in lines[4:-1]:
        entry = read_entry(line)
        content = entry.canonical if before else entry.canonical.replace(b'"granted"', b'"unknown"')
        before = before or entry.prev_hash
        own = hashlib.sha256(before + hashlib.sha256(content).digest()).digest()
        made.append(entry_line(Exported(entry.seq, before, own, content)))
        before = own
    return [*made, lines[-1]]


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str, int]] = {
    "an entry altered": (altered, "hash", 4),
    "all recomputed from an entry on": (recomputed, "root", 0),
    "an entry taken out": (lambda lines: [*lines[:4], *lines[5:]], "gap", 4),
    "broken off": (lambda lines: lines[:6], "incomplete", 6),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_an_export_that_was_altered_is_found_without_the_edge(ledger: Ledger, cli: Cli, name: str) -> None:
    file, key = await exported(ledger, cli), str(await ledger.key())
    change, kind, seq = CHANGES[name]
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    found = await verdict(offline(cli), "--file", file, "--key", key, status=DIVERGED)
    assert found["kind"] == kind
    # A chain that was recomputed fits itself up to what was signed.
    size = int(json.loads(file.read_bytes().splitlines()[0])["checkpoint"]["note"].splitlines()[1])
    assert found["divergent_seq"] == (seq or size)


@asynccontextmanager
async def instead_of_the_edge(world: World, answer: bytes) -> AsyncIterator[str]:
    """Serve an export on a port of its own with the edge's certificate; yields the URL."""

    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=answer)

    app = web.Application()
    app.router.add_get("/v1/{tail:.*}", serve)
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(world.state / "pki/gateway.crt", world.state / "pki/gateway.key")
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("left", [1, 5, -1])
async def test_a_stream_without_its_end_is_not_taken_for_the_chain(
    ledger: Ledger, cli: Cli, world: World, left: int
) -> None:
    file = await exported(ledger, cli)
    lines = file.read_bytes().splitlines(keepends=True)
    async with instead_of_the_edge(world, b"".join(lines[:left])) as url:
        deceived, out = Cli(cli.folder, cli.env | {"PLEX_EDGE_URL": url}), cli.folder / "broken"
        done = await plexctl(deceived, "audit", "verify", "--domain", ledger.chain)
        assert (done.returncode, b"broke off" in done.stderr) == (UNAVAILABLE, True)
        done = await plexctl(deceived, "audit", "export", "--domain", ledger.chain, "-o", out)
        assert (done.returncode, b"broke off" in done.stderr) == (UNAVAILABLE, True)
        assert not out.exists()
        assert not list(cli.folder.glob(".broken*"))


async def test_what_is_older_than_what_was_verified_is_an_alarm(ledger: Ledger, cli: Cli, world: World) -> None:
    older = (await exported(ledger, cli)).read_bytes()
    await ledger.fill(2)
    await ledger.checkpointed()
    await verdict(cli, "--domain", ledger.chain)
    [kept] = (cli.folder / "plexctl/checkpoints").rglob("*.json")
    async with instead_of_the_edge(world, older) as url:
        kept.parent.rename(kept.parent.with_name(url.removeprefix("https://").replace(":", "_")))
        deceived = Cli(cli.folder, cli.env | {"PLEX_EDGE_URL": url})
        assert (await verdict(deceived, "--domain", ledger.chain, "--full", status=DIVERGED))["kind"] == "older"


# The archive ----------------------------------------------------------------------------------------------------------


async def test_the_archive_alone_proves_the_chain_and_who_altered_it_is_found(ledger: Ledger, cli: Cli) -> None:
    await ledger.archived()
    await ledger.fill(4)
    objects = await ledger.archived()
    archive, key = State(ledger.world.state) / "audit", str(await ledger.key())
    wanted = ("--archive", archive, "--domain", ledger.chain, "--key", key)
    found = await verdict(offline(cli), *wanted)
    assert (found["ok"], found["last"]) == (True, found["signed_to"])
    note = cli.folder / "kept.note"
    assert (await plexctl(cli, "audit", "checkpoint", "--domain", ledger.chain, "-o", note)).returncode == 0
    await ledger.archived()
    assert (await verdict(offline(cli), *wanted, "--checkpoint", note))["ok"] is True
    by_url = ("--archive", f"file://{archive}", *wanted[2:])
    assert (await verdict(offline(cli), *by_url))["ok"] is True
    last = objects[-1]
    was, segment = last.read_bytes(), unpack(last.read_bytes())
    entries = (segment.entries[0].replace(b'"granted"', b'"unknown"'), *segment.entries[1:])
    last.write_bytes(pack(type(segment)(**vars(segment) | {"entries": entries})))
    assert (await verdict(offline(cli), *wanted, status=DIVERGED))["divergent_seq"] >= segment.first
    last.write_bytes(was[:-5])
    found = await verdict(offline(cli), *wanted, status=DIVERGED)
    assert (found["divergent_seq"], found["kind"]) == (segment.first, "form")
    for one in sorted(last.parent.iterdir()):
        if one >= last:
            one.unlink()
    # What is left fits; only a checkpoint that was kept elsewhere tells that more was there.
    found = await verdict(offline(cli), *wanted, "--checkpoint", note, status=DIVERGED)
    assert (found["divergent_seq"], found["kind"]) == (segment.first, "truncated")


# Proofs ---------------------------------------------------------------------------------------------------------------


async def test_an_inclusion_proof_is_taken_away_and_verified_elsewhere(ledger: Ledger, cli: Cli) -> None:
    file = cli.folder / "5.tlog-proof"
    done = await plexctl(cli, "audit", "prove", "5", "--domain", ledger.chain, "-o", file, "--json")
    assert done.returncode == 0, done.stderr.decode()
    shown = json.loads(done.stdout)
    key = str(await ledger.key())
    assert shown["key"] == key

    async def verified(entry: str, key: str) -> int:
        done = await plexctl(offline(cli), "audit", "verify-proof", file, "--entry", entry, "--key", key)
        return done.returncode

    assert await verified(shown["entry_hash"], key) == 0
    assert await verified("0" * 64, key) == DIVERGED
    other = str(VerifierKey(f"plexsphere/audit/{ledger.chain}", bytes(32)))
    assert await verified(shown["entry_hash"], other) == DIVERGED
    late = await plexctl(cli, "audit", "prove", "100000", "--domain", ledger.chain)
    assert late.returncode == UNAVAILABLE
    await ledger.rewrite(5)
    done = await plexctl(cli, "audit", "prove", "5", "--domain", ledger.chain)
    assert (done.returncode, b"audit_diverged" in done.stderr) == (DIVERGED, True)
