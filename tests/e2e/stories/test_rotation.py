"""`plexctl dev rotate`: what the runbook calls rotated is, in processes that run on, and everybody works on."""

import asyncio
import json
import ssl
import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from devstack.layout import SERVICES, State
from devstack.rotate import THINGS
from libs import tls
from libs.errors import AuthzUnavailable
from services.identity.spicedb import SpiceDb
from tests.e2e.conftest import Scene
from tests.e2e.outside import random_secret
from tests.e2e.world import PLEXCTL, World, run

pytestmark = pytest.mark.e2e

WITHIN_S = 15
OURS = "backend_type = 'client backend' AND usename = ANY($1)"
WITH_SCHEMA = ("identity", "access", "secrets", "mesh", "audit")


async def rotate(world: World, thing: str) -> None:
    await run(*PLEXCTL, "dev", "rotate", thing, "--state", world.state)


async def running(world: World) -> dict[str, int]:
    """Return the process of each name."""
    status = json.loads(await run(*PLEXCTL, "dev", "status", "--json", "--state", world.state))
    return {row["name"]: row["pid"] for row in status["processes"]}


async def works(scene: Scene) -> None:
    """Register a node, which every service and backend has a part in, and read a secret as one."""
    await scene.newcomer(f"after-{random_secret()[6:14].decode().lower()}")
    assert (await scene.read(scene.story.node_a)).status == 200


def serial_of(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


async def served(world: World, port: int) -> int:
    """Return the serial number of the certificate that a port shows."""
    pki = world.state / "pki"
    context = tls.trusting(pki / "ca.crt")
    context.load_cert_chain(pki / "probe.crt", pki / "probe.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown: ssl.SSLObject = writer.get_extra_info("ssl_object")
    writer.close()
    return x509.load_der_x509_certificate(shown.getpeercert(binary_form=True) or b"").serial_number


@pytest.mark.parametrize("thing", THINGS)
async def test_everybody_works_on(world: World, scene: Scene, thing: str) -> None:
    before = await running(world)
    await works(scene)
    await rotate(world, thing)
    await works(scene)
    assert await running(world) == before


async def test_every_port_shows_the_new_certificate_and_every_backend_is_shown_it(world: World, scene: Scene) -> None:
    files = {name: world.state / f"pki/{name}.crt" for name in SERVICES}
    before = {name: serial_of(path.read_bytes()) for name, path in files.items()}
    await rotate(world, "certificates")
    now = {name: serial_of(path.read_bytes()) for name, path in files.items()}
    assert not set(now.values()) & set(before.values())
    async with asyncio.timeout(WITHIN_S):
        for name in SERVICES:
            for port in (name, f"{name}-metrics"):
                while await served(world, State(world.state).port(port)) != now[name]:  # noqa: ASYNC110 — nobody tells when it is so
                    await asyncio.sleep(0.1)
    dba = await world.superuser()
    await dba.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}", list(WITH_SCHEMA))
    async with asyncio.timeout(WITHIN_S):
        while (await scene.read(scene.story.node_a)).status != 200:  # noqa: ASYNC110 — as above
            await asyncio.sleep(0.2)
    await works(scene)
    seen = await dba.fetch(
        f"SELECT DISTINCT usename, client_serial FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE {OURS}",
        list(WITH_SCHEMA),
    )
    await dba.close()
    assert {(row["usename"], int(row["client_serial"])) for row in seen} == {(name, now[name]) for name in WITH_SCHEMA}


async def test_an_old_key_of_spicedb_opens_nothing(world: World, tmp_path: Path) -> None:
    kept = tmp_path / "spicedb.key"
    kept.touch(0o600)
    kept.write_text(State(world.state).secret("spicedb.key"))
    await rotate(world, "spicedb-key")
    at = tomllib.loads(world.config("identity"))["spicedb"]
    with pytest.raises(AuthzUnavailable):
        await SpiceDb(at["address"], at["name"], kept, world.state / "pki/ca.crt").check([])


async def test_a_cursor_of_the_old_key_is_refused(world: World, scene: Scene) -> None:
    await works(scene)
    path = f"/v1/projects/{scene.story.project_id}/resources?limit=1"
    cursor = (await scene.operator.call("GET", path)).json["next_cursor"]
    assert (await scene.operator.call("GET", f"{path}&cursor={cursor}")).status == 200
    await rotate(world, "cursor-key")
    assert (await scene.operator.call("GET", f"{path}&cursor={cursor}")).code == "invalid_cursor"
    assert (await scene.operator.call("GET", path)).status == 200


async def test_what_is_wrapped_after_it_is_under_the_next_key_and_the_rest_stays_good(
    world: World, scene: Scene
) -> None:
    early = await scene.newcomer(f"early-{random_secret()[6:14].decode().lower()}")
    await rotate(world, "wrapping-key")
    late = await scene.newcomer(f"late-{random_secret()[6:14].decode().lower()}")
    dba = await world.superuser()
    found = [
        await dba.fetchval("SELECT wrapped FROM identity.node_secret_keys WHERE node_id = $1", node.node_id)
        for node in (early, late)
    ]
    await dba.close()
    versions = [int(wrapped.split(":")[1].removeprefix("v")) for wrapped in found]
    assert versions[1] == versions[0] + 1


@pytest.mark.parametrize("thing", ["pseudonym-key", "pepper", "nothing"])
async def test_what_must_not_be_rotated_is_not(world: World, thing: str) -> None:
    with pytest.raises(RuntimeError, match="is not rotated"):
        await rotate(world, thing)
