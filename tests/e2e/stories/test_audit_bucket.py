"""An auditor with `plexctl` and an archive in a bucket, as its object store shows it."""

from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from services.audit.tests.s3 import Env, serving
from tests.e2e.ledger import Ledger
from tests.e2e.stories.test_audit_offline import UNAVAILABLE, offline, plexctl, verdict
from tests.e2e.stories.test_plexctl import Cli, cli

__all__ = ["cli"]
pytestmark = pytest.mark.e2e

URL = "s3://archive/one"


@pytest.fixture
def seaweed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Env]:
    with serving(tmp_path) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield env


async def test_the_archive_in_a_bucket_alone_proves_the_chain(ledger: Ledger, cli: Cli, seaweed: Env) -> None:
    await ledger.fill(5)
    await ledger.archived()
    await ledger.fill(4)
    store, objects = from_url(URL), await ledger.archived()
    for path in objects:
        await obstore.put_async(store, f"{ledger.chain}/{path.name}", path.read_bytes())
    wanted = ("--archive", URL, "--domain", ledger.chain, "--key", str(await ledger.key()))
    found = await verdict(offline(cli), *wanted)
    assert (found["ok"], found["first"], found["last"]) == (True, 1, await ledger.size())
    for wrong, said in (
        ({"AWS_SECRET_ACCESS_KEY": "another"}, b"the archive"),
        ({"AWS_ACCESS_KEY_ID": "lister"}, b".zst"),
    ):
        done = await plexctl(Cli(cli.folder, offline(cli).env | wrong), "audit", "verify", *wanted)
        assert (done.returncode, said in done.stderr) == (UNAVAILABLE, True), done.stderr
        assert b"cannot be read" in done.stderr
