"""Where everything of one embedded stack is: one folder, made at the first start and used again at the next."""

import json
import os
import secrets
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from libs.tlog.signer import make_key

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("identity", "access", "secrets", "mesh", "audit", "gateway")
BACKENDS = ("postgres", "nats", "openbao", "spicedb", "oidc-a", "oidc-b")
PORTS = (*BACKENDS, "openbao-cluster", *SERVICES, *(f"{name}-metrics" for name in SERVICES))
RANDOM_FILES = ("spicedb.key", "cursor.key", "csrf.key", "pkce.key", "pseudonym.key", "oidc-a.secret", "oidc-b.secret")
CLIENT_ID = "plexsphere"
LONGEST_SOCKET = 100
# Below the range that the system gives to outgoing connections (32768 and up), so that no client of a process which is
# down for a moment can take its port.
PORT_RANGE = range(20000, 32000)
PORTS_FREE_WITHIN_S = 3.0


class StackError(Exception):
    """The stack cannot run like this; the message is for the person who started it."""


@dataclass(frozen=True)
class State:
    """The state folder of one stack."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def control(self) -> Path:
        """Unix socket of the supervisor."""
        return self.folder / "run" / "control.sock"

    def prepare(self) -> None:
        """Make the folders, the generated secrets and the ports; keeps what is there."""
        for name in ("run", "log", "pki", "secrets", "config"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for private in ("pki", "secrets"):
            (self.folder / private).chmod(0o700)
        if len(str(self.control)) > LONGEST_SOCKET:
            raise StackError(f"{self.folder} is too long a path for a Unix socket; choose a shorter --state")
        for name in RANDOM_FILES:
            self._random_file(name)
        # What SpiceDB takes: while the key is rotated also the next one.
        write_private(self / "secrets/spicedb.keys", self.secret("spicedb.key").encode())
        seal = self / "secrets/openbao-seal.key"
        if not seal.exists():
            write_private(seal, secrets.token_bytes(32))
        restore, (key, verifier) = self / "secrets/restore.key", make_key("plexsphere-dev-restore")
        if not restore.exists():
            write_private(restore, bytes(key.reveal()))
            (self / "pki/restore.vkey").write_text(str(verifier))
        self._choose_ports()

    def _random_file(self, name: str) -> None:
        path = self / f"secrets/{name}"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32).encode())

    def _choose_ports(self) -> None:
        path = self / "ports.json"
        kept: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        # What was killed a moment ago may still hold them.
        deadline = time.monotonic() + PORTS_FREE_WITHIN_S
        while not all(map(_free, kept.values())) and time.monotonic() < deadline:
            time.sleep(0.05)
        chosen = {name: port for name, port in kept.items() if name in PORTS and _free(port)}
        for name in PORTS:
            if name not in chosen:
                chosen[name] = _pick(taken=set(chosen.values()))
        if chosen != kept:
            path.write_text(json.dumps(chosen, indent=2))

    def port(self, name: str) -> int:
        """Return the port of a process."""
        return int(json.loads((self / "ports.json").read_text())[name])

    def secret(self, name: str) -> str:
        """Return a generated secret."""
        return (self / f"secrets/{name}").read_text()

    @property
    def edge_url(self) -> str:
        """Where the edge listens."""
        return f"https://127.0.0.1:{self.port('gateway')}"

    def issuer(self, name: str) -> str:
        """Return the issuer identifier of an OpenID provider."""
        return f"https://127.0.0.1:{self.port(name)}"

    @property
    def superuser_url(self) -> str:
        """How PostgreSQL's superuser connects: over the Unix socket."""
        return f"postgresql://postgres@/plexsphere?host={self / 'postgres/run'}&port={self.port('postgres')}"

    def exports(self) -> dict[str, str]:
        """What `plexctl dev env` prints."""
        return {
            "PLEX_EDGE_URL": self.edge_url,
            "PLEX_CA_FILE": str(self / "pki/ca.crt"),
            "PLEX_STATE": str(self.folder),
            "PLEX_PG_SUPERUSER": self.superuser_url,
            "PLEX_NATS_URL": f"tls://127.0.0.1:{self.port('nats')}",
            "PLEX_NATS_SUPERUSER_CERT": str(self / "pki/operator.crt"),
            "PLEX_NATS_SUPERUSER_KEY": str(self / "pki/operator.key"),
            "PLEX_OPENBAO_ADDR": f"https://127.0.0.1:{self.port('openbao')}",
            "PLEX_OPENBAO_CERT": str(self / "pki/operator.crt"),
            "PLEX_OPENBAO_KEY": str(self / "pki/operator.key"),
            "PLEX_OPENBAO_ROLE": "operator",
            "PLEX_SPICEDB_ADDR": f"127.0.0.1:{self.port('spicedb')}",
            "PLEX_SPICEDB_KEY_FILE": str(self / "secrets/spicedb.key"),
            "PLEX_AUDIT_ADDR": f"127.0.0.1:{self.port('audit')}",
            "PLEX_OPERATOR_CERT": str(self / "pki/operator.crt"),
            "PLEX_OPERATOR_KEY": str(self / "pki/operator.key"),
            "PLEX_RESTORE_KEY_FILE": str(self / "secrets/restore.key"),
            "PLEX_OIDC_A_ISSUER": self.issuer("oidc-a"),
            "PLEX_OIDC_A_CLIENT_ID": CLIENT_ID,
            "PLEX_OIDC_B_ISSUER": self.issuer("oidc-b"),
            "PLEX_OIDC_B_CLIENT_ID": CLIENT_ID,
        }


def program(name: str) -> str:
    """Return a program of this environment, or of the path; raises StackError when there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        raise StackError(f"{name} is not installed; run `make setup`")
    return found


def _pick(taken: set[int]) -> int:
    while True:
        port = secrets.choice(PORT_RANGE)
        if port not in taken and _free(port):
            return port


def _free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, or replace one in a step: nobody reads half of it."""
    beside = path.with_name(f"{path.name}.next")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    beside.rename(path)
