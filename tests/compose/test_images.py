"""What is inside of the images that were built: asked of each image, and held against the lock."""

import json
from functools import cache
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from devstack.layout import SERVICES
from tests.compose.containers import Containers, docker
from tests.compose.engine import FOLDER
from tools import image

pytestmark = pytest.mark.compose

VERSION = image.project()["version"]
# What builds or installs, by the names of its programs; `apt-get` is the base's own.
BUILDS = (
    "pip", "pip3", "wheel", "uv", "gcc", "cc", "c++", "g++", "clang", "ld", "make", "cmake", "go", "cargo", "node",
    "npm", "npx", "git", "curl", "wget", "protoc", "buf",
)  # fmt: skip
LOOK = """
import importlib.metadata, json, os, platform, shutil, sys
from pathlib import Path
places = [folder for folder, _, _ in os.walk("/") if folder.endswith((".dist-info", ".egg-info"))]
programs = "/app/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
python = platform.python_version()
print(json.dumps({
    "packages": {one.name: one.version for one in importlib.metadata.distributions()},
    "outside": [one for one in places if not one.startswith("/app/venv/")],
    "programs": [one for one in sys.argv[1:] if shutil.which(one, path=programs)],
    "code": [one.name for one in Path("/app/services").iterdir() if one.is_dir() and one.name != "__pycache__"],
    "bill": json.loads(Path("/app/sbom.cdx.json").read_text()),
    "python": {"python_version": python.rpartition(".")[0], "python_full_version": python},
}))
"""
every_image = pytest.mark.parametrize("service", [*SERVICES, image.MIGRATE])
HARDENED = ("--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def tag(service: str) -> str:
    """Return an image's name."""
    return f"plexsphere/{service}:{VERSION}"


@cache
def look(service: str) -> dict[str, Any]:
    """Look around in an image."""
    found: dict[str, Any] = json.loads(
        docker("run", *HARDENED, "--entrypoint=/app/venv/bin/python", tag(service), "-c", LOOK, *BUILDS)
    )
    return found


def wanted(service: str) -> dict[str, str]:
    """Return what the lock gives a service on the image's Python, and the project itself."""
    python = look(service)["python"]
    pins = [Requirement(block.partition("\\")[0].strip()) for block in image.part_of(service).values()]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(python)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}


@every_image
def test_it_holds_its_part_of_the_lock_and_no_other_package(containers: Containers, service: str) -> None:
    found = {canonicalize_name(name): version for name, version in look(service)["packages"].items()}
    assert found == {**wanted(service), image.PROJECT: VERSION}
    assert look(service)["outside"] == []


@every_image
def test_nothing_in_it_builds_or_installs(containers: Containers, service: str) -> None:
    assert look(service)["programs"] == []


@every_image
def test_it_holds_the_code_of_its_service_alone(containers: Containers, service: str) -> None:
    schemas = {"access", "audit", "identity", "mesh", "secrets"}
    assert set(look(service)["code"]) == (schemas if service == image.MIGRATE else {service})


@every_image
def test_its_bill_of_materials_names_what_is_in_it(containers: Containers, service: str) -> None:
    bill = look(service)["bill"]
    billed = {
        canonicalize_name(one["name"]): one["version"] for one in bill["components"] if "pkg:pypi/" in one["purl"]
    }
    assert wanted(service).items() <= billed.items()
    assert set(billed) == set(image.part_of(service))
    # The base image is Debian's in both ways of building.
    assert [one for one in bill["components"] if one["purl"].startswith("pkg:deb/debian/libc6@")]


@every_image
def test_it_says_what_it_is_and_of_which_commit(containers: Containers, service: str) -> None:
    told = json.loads(docker("image", "inspect", tag(service)))[0]["Config"]
    commit = dict(line.split("=", 1) for line in (FOLDER / "compose.env").read_text().splitlines())
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in told["Labels"].items()}
    assert labels["title"] == f"plexsphere-{service}"
    assert service in labels["description"]
    assert labels["version"] == VERSION
    assert (labels["revision"], labels["created"]) == (commit["PLEX_REVISION"], commit["PLEX_CREATED"])
    assert len(labels["revision"]) == 40
    assert labels["io.plexsphere.sbom"] == "/app/sbom.cdx.json"
    assert (told["User"], told["Entrypoint"], told.get("Shell")) == ("10001:10001", ["/app/serve"], None)


@every_image
def test_it_starts_without_a_shell(containers: Containers, service: str) -> None:
    hidden = [word for shell in ("dash", "bash") for word in ("-v", f"/dev/null:/usr/bin/{shell}:ro")]
    with pytest.raises(RuntimeError, match="exec"):
        docker("run", *HARDENED, *hidden, "--entrypoint=/bin/sh", tag(service), "-c", "true")
    assert "--config" in docker("run", *HARDENED, *hidden, tag(service), "--help")
