"""`plexctl` as a person uses it: data on stdout, messages on stderr, exit codes, no secret in an argument."""

import asyncio
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.outside import Login
from tests.e2e.world import PLEXCTL, World

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Cli:
    """The command in a folder of its own."""

    folder: Path
    env: dict[str, str]

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*PLEXCTL, *arguments], input=stdin, capture_output=True, check=False, env={**os.environ, **self.env}
        )

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


def registered(scene: Scene, cli: Cli, handle: str) -> Path:
    """Adopt and register a node, and return its key file."""
    project, key_file, token_file = scene.story.project_id, cli.folder / "node.key", cli.folder / "bootstrap"
    cli.json("node", "adopt", project, "--ref", handle)
    cli.json("node", "token", project, "--out", str(token_file))
    cli.json(
        "node", "register", project, "--handle", handle, "--token-file", str(token_file), "--key-file", str(key_file)
    )
    return key_file


def test_events_are_heard_with_their_verdicts_across_a_rotation(scene: Scene, cli: Cli) -> None:
    domain, key_file = scene.story.domain_id, registered(scene, cli, "by-ear")
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
    keys = cli.json("domain", "keys", domain)["items"]
    assert keys[0]["status"] == "current"
    bad = cli.run("events", "publish", domain, "--type", "made_up")
    assert (bad.returncode, b"event_type_unknown" in bad.stderr) == (1, True)
    assert cli.run("events", "publish", domain, "--type", "action_request", "--payload", "{").returncode == 2


def test_a_node_from_adoption_to_its_secret(scene: Scene, cli: Cli) -> None:
    project, key_file, token_file = scene.story.project_id, cli.folder / "node.key", cli.folder / "bootstrap"
    cli.json("node", "adopt", project, "--ref", "by-hand")
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
