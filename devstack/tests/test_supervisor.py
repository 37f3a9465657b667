"""A stack of its own, side by side with the run's: what it keeps, and what it leaves behind when it is killed."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from devstack import openbao, postgres
from devstack.layout import BACKENDS, State
from devstack.process import until
from devstack.supervisor import ask
from libs.bao import Bao
from tests.e2e.world import PLEXCTL, run

pytestmark = pytest.mark.integration


@pytest.fixture
async def own() -> AsyncIterator[State]:
    """A state folder of this test's own, of mode 0700 as the system makes them, and no stack in it at the end."""
    state = State(Path(tempfile.mkdtemp(prefix="plex-own-")))
    try:
        yield state
    finally:
        await run(*PLEXCTL, "dev", "reset", "--state", state.folder)
        shutil.rmtree(state.folder, ignore_errors=True)


async def up(state: State) -> None:
    await run(*PLEXCTL, "dev", "up", "--detach", "--backends-only", "--state", state.folder)


def processes(state: State) -> dict[int, str]:
    """Every process whose command or working folder is of this state; zombies have neither."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            folder = str((process / "cwd").readlink())
        except OSError:
            continue
        if int(process.name) != os.getpid() and (str(state.folder) in command or str(state.folder) in folder):
            found[int(process.name)] = command
    return found


async def until_nothing_runs(state: State) -> None:
    try:
        await until(lambda: not processes(state), 5)
    except TimeoutError:
        raise AssertionError(processes(state)) from None


def supervisor_of(state: State) -> int:
    (found,) = [pid for pid, command in processes(state).items() if "devstack.supervisor" in command]
    return found


@contextlib.asynccontextmanager
async def opened(state: State, name: str) -> AsyncIterator[Bao]:
    bao = openbao.client(state, name)
    try:
        yield bao
    finally:
        await bao.close()


async def superuser(state: State) -> asyncpg.Connection:
    return await asyncpg.connect(state.superuser_url)


async def test_a_killed_supervisor_leaves_nothing_and_its_state_is_used_again(own: State) -> None:
    await up(own)
    ports = (own / "ports.json").read_text()
    connection = await superuser(own)
    await connection.execute("CREATE TABLE public.kept AS SELECT 7 AS value")
    async with opened(own, "operator") as bao:
        await bao.write_kv("kept", {"value": "7"}, cas=0)

    # A backend that computes does not look whether its server still lives.
    busy = asyncio.ensure_future(connection.execute("SELECT count(*) FROM generate_series(1, 300000000)"))
    await asyncio.sleep(0.5)
    os.kill(supervisor_of(own), signal.SIGKILL)
    await until(lambda: all(command.startswith("postgres: ") for command in processes(own).values()), 5)

    # Started again at once, with that backend still at work.
    await up(own)
    await asyncio.gather(busy, return_exceptions=True)
    connection.terminate()
    assert (own / "ports.json").read_text() == ports
    connection = await superuser(own)
    assert await connection.fetchval("SELECT value FROM public.kept") == 7
    await connection.close()
    async with opened(own, "operator") as bao:
        assert (await bao.read_kv("kept"))[0] == {"value": "7"}

    os.kill(supervisor_of(own), signal.SIGKILL)
    await until_nothing_runs(own)


async def test_a_backend_is_killed_stays_down_and_starts_again(own: State) -> None:
    await up(own)
    for name in BACKENDS:
        await ask(own, do="kill", name=name)
    rows = (await ask(own, do="status"))["processes"]
    assert {row["name"] for row in rows if row["up"]} == set()
    await until(lambda: not postgres.leftovers(own), 5)
    await ask(own, do="start", name="postgres")
    await ask(own, do="up")
    rows = (await ask(own, do="status"))["processes"]
    assert {row["name"] for row in rows if row["up"]} == set(BACKENDS)
    await run(*PLEXCTL, "dev", "down", "--state", own.folder)
    await until_nothing_runs(own)


async def test_postgresql_starts_from_a_supervisor_that_has_spoken_grpc(own: State) -> None:
    """gRPC starts its threads again in every fork of a process with a channel, and a namespace wants one thread."""
    own.prepare()
    script = f"""
import asyncio, grpc, os
from pathlib import Path
from devstack import pki, postgres
from devstack.layout import State
from devstack.process import spawn, until_ready
async def main():
    state = State(Path({str(own.folder)!r}))
    channel = grpc.insecure_channel("127.0.0.1:1")
    try:
        channel.unary_unary("/a/b")(b"", timeout=0.2)
    except grpc.RpcError:
        pass
    pki.prepare(state)
    await postgres.prepare(state)
    spec = postgres.spec(state)
    process = await spawn(state, spec)
    await until_ready(state, spec, process)
    print("ready", flush=True)
    os._exit(0)
asyncio.run(main())
"""
    assert "ready" in await run(PLEXCTL[0], "-c", script)
    await until_nothing_runs(own)


async def test_a_second_supervisor_in_the_same_folder_is_refused(own: State) -> None:
    own.control.parent.mkdir(parents=True)
    command = [PLEXCTL[0], "-m", "devstack.supervisor", "--backends-only", "--state", str(own.folder)]
    both = [await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE) for _ in range(2)]
    ends = [asyncio.ensure_future(one.communicate()) for one in both]
    (done,), _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    assert b"already running or starting" in done.result()[1]
    (alive,) = [one for one in both if one.returncode is None]
    alive.send_signal(signal.SIGTERM)
    await alive.wait()
    await asyncio.gather(*ends)
    await until_nothing_runs(own)


async def test_a_cluster_of_another_owner_is_taken_over(own: State) -> None:
    """As it is after root had to become `nobody` here, or as it is after it no longer has to."""
    await up(own)
    data = own / "postgres/data"
    (owner,) = {data.stat().st_uid, (data / "base").stat().st_uid}
    await run(*PLEXCTL, "dev", "down", "--state", own.folder)
    if os.geteuid() == 0:
        for path in (data, *data.rglob("*")):
            os.chown(path, 65534 - owner, -1)
    await up(own)
    assert {path.stat().st_uid for path in (data, *data.rglob("*"))} == {owner}


async def test_openbao_that_was_killed_in_its_first_start_is_initialised_again(own: State) -> None:
    # What a first start leaves when it ends between the storage and the certificate roles.
    raft = own / "openbao/raft"
    raft.mkdir(parents=True)
    (raft / "vault.db").write_bytes(b"half")
    await up(own)
    async with opened(own, "identity") as bao:
        assert (await bao.read_kv("idp/platform/oidc-a"))[0]["client_secret"] == own.secret("oidc-a.secret")
