"""`plexctl` as a person uses it: data on stdout, messages on stderr, exit codes, no secret in an argument."""

import asyncio
import base64
import contextlib
import datetime as dt
import json
import os
import re
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.e2e.attacker import Broker, signed, wire
from tests.e2e.conftest import Scene
from tests.e2e.listener import publish
from tests.e2e.outside import Login
from tests.e2e.seen import note, note_body, note_text
from tests.e2e.stories.main_job import Story
from tests.e2e.world import PLEXCTL, World

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Cli:
    """The command in a folder of its own."""

    folder: Path
    env: dict[str, str]

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*PLEXCTL, *arguments], input=stdin, capture_output=True, check=False, env={**os.environ, **self.env}
        )
        note("stdin of plexctl", stdin)
        for known in (done.stdout, *(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())):
            note_text("plexctl", known)
            note_body("plexctl", known.strip(), "")
        return done

    def json(self, *arguments: str, stdin: bytes = b"") -> Any:
        done = self.run(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)


@pytest.fixture
def cli(scene: Scene, world: World, tmp_path: Path) -> Cli:
    token = tmp_path / "token"
    token.write_text(scene.token)
    env = {name: world.env[name] for name in ("PLEX_EDGE_URL", "PLEX_CA_FILE")}
    return Cli(tmp_path, env | {"PLEX_TOKEN_FILE": str(token), "XDG_CONFIG_HOME": str(tmp_path)})


def registered(project: str, cli: Cli, handle: str) -> Path:
    """Adopt and register a node, and return its key file."""
    key_file, token_file = cli.folder / f"{handle}.key", cli.folder / "bootstrap"
    cli.json("node", "adopt", project, "--ref", handle)
    cli.json("node", "token", project, "--out", str(token_file))
    cli.json(
        "node", "register", project, "--handle", handle, "--token-file", str(token_file), "--key-file", str(key_file)
    )
    return key_file


def public_half(private_key: str) -> str:
    """Compute a mesh key's public half without the command's help."""
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(private_key))
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def verdicts(done: subprocess.CompletedProcess[bytes]) -> list[tuple[str, str]]:
    """What a tail printed: verdict and type."""
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [(row["verdict"], row["envelope"]["type"]) for row in rows]


def test_events_are_published_and_heard(scene: Scene, cli: Cli) -> None:
    domain, key_file = scene.story.domain_id, registered(scene.story.project_id, cli, "by-ear")
    first = cli.json("events", "publish", domain, "--type", "action_request", "--payload", '{"n": 1}')
    second = cli.json("events", "publish", domain, "--type", "action_request", "--payload", '{"n": 2}')
    since = ["--last-event-id", str(first["sequence"] - 1), "--count", "2"]
    heard = cli.run("events", "tail", "--key-file", str(key_file), *since)
    assert heard.returncode == 0, heard.stderr
    lines = heard.stdout.decode().splitlines()
    assert [line.split()[:3] for line in lines] == [
        [str(one["sequence"]), "ok", "action_request"] for one in (first, second)
    ]
    found = [
        json.loads(line)
        for line in cli.run("events", "tail", "--key-file", str(key_file), *since, "--json").stdout.splitlines()
    ]
    assert [one["envelope"]["id"] for one in found] == [first["id"], second["id"]]
    bad = cli.run("events", "publish", domain, "--type", "made_up")
    assert (bad.returncode, b"event_type_unknown" in bad.stderr) == (1, True)
    assert cli.run("events", "publish", domain, "--type", "action_request", "--payload", "{").returncode == 2


def test_a_tail_follows_a_rotation_and_a_revocation_ends_its_trust(story: Story, cli: Cli) -> None:
    domain, key_file = story.domain_id, registered(story.project_id, cli, "by-ear")

    def publish() -> str:
        return str(cli.json("events", "publish", domain, "--type", "action_request")["sequence"] - 1)

    def tail(after: str, count: int) -> subprocess.CompletedProcess[bytes]:
        wanted = ["--last-event-id", after, "--count", str(count), "--json"]
        return cli.run("events", "tail", "--key-file", str(key_file), *wanted)

    before = publish()
    old = cli.json("domain", "keys", domain)["items"][0]
    # Without seconds no body is sent: the default is the edge's, which is a week.
    new = cli.json("domain", "rotate-key", domain)
    assert [key["status"] for key in cli.json("domain", "keys", domain)["items"]] == ["current", "previous"]
    lasts = dt.datetime.fromisoformat(cli.json("domain", "keys", domain)["items"][1]["transition_expires"])
    assert dt.timedelta(days=6) < lasts - dt.datetime.now(dt.UTC) < dt.timedelta(days=7)
    after = publish()
    assert verdicts(tail(before, 3)) == [
        ("ok", "action_request"), ("ok", "signing_key_rotated"), ("ok", "action_request"),
    ]  # fmt: skip
    # The new key is kept, and the old one beside it: another run needs no announcement.
    assert json.loads(key_file.read_text())["signing_key_id"] == new["key_id"] != old["key_id"]
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert verdicts(tail(after, 1)) == [("ok", "action_request")]
    assert verdicts(tail(before, 3))[0] == ("ok", "action_request")
    revoked = cli.run("domain", "revoke-key", domain, new["key_id"])
    assert revoked.returncode == 0, revoked.stderr
    assert b"must register again" in revoked.stdout
    unheard = tail(publish(), 1)
    assert verdicts(unheard) == [("refused: unknown_key", "action_request")]
    assert b"register again" in unheard.stderr


@dataclass
class Hostile:
    """A server with a certificate that a node believes, which hands out what it likes."""

    frames: list[tuple[str, bytes]]
    asked: list[str] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.headers.get("Last-Event-ID", ""))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for identifier, data in self.frames:
            await response.write(b"id: %b\nevent: action_request\ndata: %b\n\n" % (identifier.encode(), data))
        return response


@contextlib.asynccontextmanager
async def instead_of_the_edge(world: World, server: Hostile) -> AsyncIterator[str]:
    """Serve on a port of its own with the edge's certificate; yields the URL."""
    app = web.Application()
    app.router.add_get("/v1/nodes/{id}/events", server.serve)
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(world.state / "pki/gateway.crt", world.state / "pki/gateway.key")
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust)
        await site.start()
        port = runner.addresses[0][1]
        yield f"https://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_a_tail_believes_nothing_that_a_hostile_edge_makes_up(story: Story, world: World, cli: Cli) -> None:
    key_file = await asyncio.to_thread(registered, story.project_id, cli, "deceived")
    domain, others = f"domain:{story.domain_id}", f"node:{story.node_b.node_id}"
    async with Broker(world) as broker:
        _, _, genuine = await broker.find(await publish(story.operator, story.domain_id, domain, do="reboot"))
        _, _, foreign = await broker.find(await publish(story.operator, story.domain_id, others, do="reboot"))
    envelope, own = json.loads(genuine), Ed25519PrivateKey.generate()
    fresh = {**envelope, "id": str(uuid.uuid4())}
    served = {
        "ok": genuine,
        "seen before": genuine,
        "refused: scope": foreign,
        "refused: signature": wire({**envelope, "payload": {"do": "wipe"}}),
        "refused: unknown_key": signed({**fresh, "key_id": "evk_" + "0" * 32}, own),
        "refused: duplicate_member": genuine[:-1] + b',"payload":{"do":"wipe"}}',
        "refused: folded_member": genuine[:-1] + b',"Payload":{"do":"wipe"}}',
        "refused: stale": signed({**fresh, "issued_at": "2026-01-01T00:00:00Z"}, own),
        "refused: missing_signature": wire({**envelope, "signature": ""}),
        "refused: parse": b"\xff{]\x1b[2J",
    }
    server = Hostile([(str(7), data) for data in served.values()] + [("x", signed(fresh, own))])
    async with instead_of_the_edge(world, server) as url:
        deceived = Cli(cli.folder, cli.env | {"PLEX_EDGE_URL": url})
        tail = ["events", "tail", "--key-file", str(key_file), "--count"]
        shown = await asyncio.to_thread(deceived.run, *tail, str(len(served) + 1), "--json")
        # What the server ends is taken up again after the last event that had a sequence.
        again = await asyncio.to_thread(deceived.run, *tail, str(len(served) + 2))
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["verdict"] for row in rows] == [*served, "refused: signature"], shown.stderr
    assert [row["sequence"] for row in rows] == [7] * len(served) + [None]
    assert (again.returncode, server.asked) == (0, ["", "", "7"])
    assert b"\x1b" not in again.stdout


def test_a_node_is_watched_moved_and_given_a_new_mesh_key(story: Story, cli: Cli) -> None:
    key_file, watcher = registered(story.project_id, cli, "mover"), registered(story.project_id, cli, "watcher")
    as_mover, as_watcher = ["--key-file", str(key_file)], ["--key-file", str(watcher)]
    node_id, first = (json.loads(key_file.read_text())[name] for name in ("node_id", "mesh_private_key"))

    def seen() -> dict[str, str]:
        peers = cli.json("node", "state", *as_watcher)["peers"]
        return next(peer for peer in peers if peer["node_id"] == node_id)

    assert cli.json("node", "reachability", node_id)["state"] == "healthy"
    early = cli.run("node", "new-key", *as_mover)
    assert (early.returncode, b"409 keys_rotate_no_pending_rotation" in early.stderr) == (1, True)
    assert cli.json("node", "rotate-key", node_id, "--preview")["already_pending"] is False
    asked = cli.json("node", "rotate-key", node_id)
    assert asked["already_pending"] is False
    assert cli.json("node", "rotate-key", node_id) == asked | {"already_pending": True}
    assert cli.json("node", "heartbeat", *as_mover)["rotate_keys"] is True
    before, receipt = seen(), cli.json("node", "new-key", *as_mover)
    assert receipt["rotation_id"] == asked["rotation_id"]
    kept = json.loads(key_file.read_text())
    assert kept["mesh_private_key"] != first
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert seen()["public_key"] == public_half(kept["mesh_private_key"]) != before["public_key"]
    # As if the receipt had been lost: the same key is sent again, and under a new rotation another one.
    lost = kept | {"mesh_private_key": first, "next_mesh_private_key": kept["mesh_private_key"]}
    key_file.write_text(json.dumps(lost))
    assert cli.json("node", "new-key", *as_mover) == receipt
    key_file.write_text(json.dumps(lost))
    asked = cli.json("node", "rotate-key", node_id)
    assert cli.json("node", "new-key", *as_mover)["rotation_id"] == asked["rotation_id"]
    assert seen()["public_key"] == public_half(json.loads(key_file.read_text())["mesh_private_key"])
    moved = cli.run("node", "endpoint", "203.0.113.7:51820", "--nat-type", "symmetric", *as_mover)
    assert (moved.returncode, b"stale_after: 20" in moved.stdout) == (0, True), moved.stderr
    assert seen()["fallback_endpoint"] == "203.0.113.7:51820"
    nowhere = cli.run("node", "endpoint", "127.0.0.1:51820", *as_mover)
    assert (nowhere.returncode, b"400 endpoint_unparseable" in nowhere.stderr) == (1, True)
    assert cli.run("node", "endpoint", "h:1", "--nat-type", "wide", *as_mover).returncode == 2


def test_a_node_from_adoption_to_its_secret(scene: Scene, cli: Cli) -> None:
    project, key_file, token_file = scene.story.project_id, cli.folder / "node.key", cli.folder / "bootstrap"
    adopted = cli.json("node", "adopt", project, "--ref", "by-hand")
    assert adopted in cli.json("node", "resources", project)["items"]
    issued = cli.json("node", "token", project, "--out", str(token_file))
    assert "token" not in issued
    assert token_file.stat().st_mode & 0o777 == 0o600
    node = cli.json(
        "node", "register", project, "--handle", "by-hand", "--token-file", str(token_file), "--key-file", str(key_file)
    )
    assert "nsk" not in node
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert cli.json("node", "heartbeat", "--key-file", str(key_file))["rotate_keys"] is False
    value = os.urandom(40)
    assert cli.json("secret", "put", project, "by-hand", stdin=value) == {"name": "by-hand", "current_version": 1}
    assert cli.run("secret", "grant", project, "by-hand", node["node_id"]).returncode == 0
    fetched = cli.run("node", "fetch", "by-hand", "--key-file", str(key_file))
    assert (fetched.returncode, fetched.stdout) == (0, value), fetched.stderr
    assert b"version 1" in fetched.stderr
    assert cli.run("secret", "revoke", project, "by-hand", node["node_id"]).returncode == 0
    refused = cli.run("node", "fetch", "by-hand", "--key-file", str(key_file))
    assert refused.returncode == 1
    assert refused.stdout == b""
    assert b"403 permission_denied" in refused.stderr


def test_the_chain_is_listed_shown_and_verified(scene: Scene, cli: Cli) -> None:
    domain = scene.story.domain_id
    newest = cli.json("audit", "list", "--domain", domain, "--limit", "3")["items"][0]
    shown = cli.run("audit", "show", str(newest["seq"]), "--domain", domain)
    assert shown.returncode == 0
    assert b"it matches" in shown.stderr
    assert cli.json("audit", "verify", "--domain", domain)["ok"] is True


def test_an_access_policy_is_shown_changed_and_put_back(story: Story, cli: Cli) -> None:
    domain = story.domain_id
    before = cli.json("access-policy", "show", domain)
    wanted = before | {"max_auth_age_seconds": 60, "node_rate_per_minute": 600, "domain_burst": 6}
    file = cli.folder / "policy.json"
    file.write_text(json.dumps(wanted))
    assert cli.json("access-policy", "put", domain, "--file", str(file)) == wanted
    assert cli.json("access-policy", "show", domain) == wanted
    too_much = cli.run("access-policy", "put", domain, stdin=json.dumps(wanted | {"node_burst": 101}).encode())
    assert too_much.returncode == 1
    assert b"node_burst must be from 1 to 100" in too_much.stderr
    assert cli.run("access-policy", "put", domain, stdin=b"{").returncode == 2
    assert cli.json("access-policy", "put", domain, stdin=json.dumps(before).encode()) == before


def test_people_get_tables_and_programs_json(scene: Scene, cli: Cli) -> None:
    table = cli.run("project", "list", "--domain", scene.story.domain_id).stdout.decode()
    assert table.splitlines()[0].split() == ["id", "slug", "name", "domain_id"]
    assert scene.story.project_id in table
    assert cli.json("whoami")["principal_type"] == "user"


@pytest.mark.parametrize(
    ("arguments", "env", "status", "message"),
    [
        (["domain", "show", "not-a-uuid"], {}, 1, "400"),
        (["domain", "list", "--limit", "0"], {}, 2, "limit"),
        (["whoami"], {"PLEX_TOKEN_FILE": ""}, 3, "not signed in"),
        (["whoami"], {"PLEX_EDGE_URL": "https://127.0.0.1:1"}, 4, "cannot reach the edge"),
        (["node", "heartbeat", "--key-file", "/nowhere"], {}, 2, "not a node's key file"),
    ],
)
def test_a_failure_has_its_exit_code_and_says_why(
    cli: Cli, arguments: list[str], env: dict[str, str], status: int, message: str
) -> None:
    done = Cli(cli.folder, cli.env | env).run(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stdout == b""
    assert message in done.stderr.decode()


async def test_login_waits_for_a_person_and_keeps_the_token_to_its_owner(scene: Scene, cli: Cli) -> None:
    process = await asyncio.create_subprocess_exec(
        *PLEXCTL, "login", stderr=asyncio.subprocess.PIPE, env={**os.environ, **cli.env}
    )
    assert process.stderr is not None
    said = (await process.stderr.readline() + await process.stderr.readline()).decode()
    code = re.search(r"code ([A-Z2-7]{4}-[A-Z2-7]{4})", said)
    assert code is not None, said
    browser = await scene.outside.sign_in(Login("operator"))
    approved = await browser.call("POST", "/v1/auth/device/approve", {"user_code": code[1]})
    assert approved.status == 200, approved.body
    assert await process.wait() == 0
    kept = cli.folder / "plexctl" / "credentials.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    done = Cli(cli.folder, {name: value for name, value in cli.env.items() if name != "PLEX_TOKEN_FILE"}).run("whoami")
    assert done.returncode == 0, done.stderr


def test_the_embedded_stack_says_what_runs(world: World, cli: Cli) -> None:
    status = cli.json("dev", "status", "--state", str(world.state))
    assert status["healthy"] is True
    assert {row["name"] for row in status["processes"] if row["up"]} >= {"postgres", "gateway", "audit"}
    elsewhere = cli.run("dev", "status", "--state", str(cli.folder / "none"))
    assert elsewhere.returncode == 1
    assert b"no stack runs" in elsewhere.stderr
