"""What the containers that run can do and reach, asked of them and not of the file that made them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from devstack.layout import SERVICES
from tests.compose.containers import Containers, addresses, container, docker, inspect
from tests.compose.engine import PROJECT

pytestmark = pytest.mark.compose

# Where each backend listens, and which of the six own something in it.
PORTS = {"postgres": 5432, "nats": 4222, "openbao": 8200, "spicedb": 50051, "oidc-a": 9443}
OWNERS = {
    "postgres": {"identity", "access", "secrets", "mesh", "audit"},
    "openbao": {"identity", "access", "secrets", "mesh", "audit"},
    "nats": {"mesh", "gateway"},
    "spicedb": {"identity"},
    "oidc-a": {"identity"},
}
RUNNING = (*SERVICES, *PORTS, "prometheus")
KNOCK = """
import concurrent.futures, json, socket, sys
def opens(door):
    try:
        socket.create_connection((door[1], door[2]), 2).close()
    except OSError:
        return []
    return [door[0]]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print(json.dumps(sum(pool.map(opens, json.loads(sys.argv[1])), [])))
"""
WRITE = """
import sys
for place in ("/", "/app/", "/app/venv/", "/etc/", "/run/plexsphere/", "/etc/plexsphere/"):
    try:
        open(place + "written", "w").close()
        print(place)
    except OSError:
        pass
"""


def inside(service: str, code: str, *arguments: str) -> str:
    """Run Python in a service's container, as who the service is."""
    return docker("exec", container(service), "/app/venv/bin/python", "-c", code, *arguments)


def process(service: str) -> dict[str, str]:
    """Return what the kernel says of a container's first process."""
    text = Path(f"/proc/{inspect(service)['State']['Pid']}/status").read_text()
    return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", RUNNING)
def test_a_container_can_do_little(containers: Containers, name: str) -> None:
    told: dict[str, Any] = inspect(name)
    host = told["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert "no-new-privileges:true" in (host["SecurityOpt"] or [])
    assert (host["PidsLimit"] or 0) > 0
    assert host["Memory"] > 0
    assert told["Config"]["User"].partition(":")[0] not in {"", "0", "root"}
    writable = {mount["Destination"] for mount in told["Mounts"] if mount["RW"]}
    # The second is the attacker's, by tests/compose/superuser.yml.
    assert writable <= {"/var/lib/plexsphere", *(["/var/run/postgresql"] if name == "postgres" else [])}


@pytest.mark.parametrize("name", RUNNING)
def test_the_kernel_holds_its_process_to_that(containers: Containers, name: str) -> None:
    said = process(name)
    assert "0" not in said["Uid"].split()
    assert {int(said[kind], 16) for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert said["NoNewPrivs"] == "1"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_cannot_write_where_its_code_and_keys_are(containers: Containers, name: str) -> None:
    assert inside(name, WRITE) == ""


def test_the_edge_alone_is_published_and_on_this_machine_alone(containers: Containers) -> None:
    published = {
        name: {port: at for port, at in inspect(name)["NetworkSettings"]["Ports"].items() if at} for name in RUNNING
    }
    assert {name: at for name, at in published.items() if at} == {
        "gateway": {"8443/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8443"}]}
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_reaches_the_backends_that_it_owns_something_in_and_no_other(
    containers: Containers, name: str
) -> None:
    doors = [(backend, address, port) for backend, port in PORTS.items() for address in addresses(backend)]
    opened = json.loads(inside(name, KNOCK, json.dumps(doors)))
    assert sorted(opened) == sorted(backend for backend, owners in OWNERS.items() if name in owners)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_finds_the_names_of_its_own_backends_alone(containers: Containers, name: str) -> None:
    doors = [(backend, backend, port) for backend, port in PORTS.items()]
    opened = json.loads(inside(name, KNOCK, json.dumps(doors)))
    assert set(opened) == {backend for backend, owners in OWNERS.items() if name in owners}


@pytest.mark.parametrize("name", RUNNING)
def test_only_the_edge_has_a_way_out(containers: Containers, name: str) -> None:
    networks = json.loads(docker("network", "inspect", *inspect(name)["NetworkSettings"]["Networks"]))
    assert [one["Name"] for one in networks if not one["Internal"]] == [f"{PROJECT}_edge"] * (name == "gateway")
