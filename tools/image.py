"""Makes the inside of an image: `image.py lock SERVICE` prints its part of the lock, `… fill SERVICE` fills /app.

Needs nothing but Python, because it runs where nothing is installed yet. SERVICE is one of the six, or `migrate`.
"""

import argparse
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "plexsphere-security-core"
MIGRATE = "migrate"
DPKG = Path("/var/lib/dpkg/status")
PIN = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>\S+)")
PARENT = re.compile(r"^ +# (?:via |  )([a-z0-9-]+)", re.MULTILINE)
SHEBANG = """#!{python}
import runpy

runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""
JSON = dict[str, Any]


def project() -> JSON:
    """Return the project's table of pyproject.toml."""
    found: JSON = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def names(requirements: Iterable[str]) -> set[str]:
    """Return the normalised names of requirements (PEP 503)."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", one)[0]).lower() for one in requirements}


def blocks() -> dict[str, str]:
    """Return what the lock holds of each package: its pin, its hashes, and below it who wanted it."""
    parts = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text().strip())
    return {one.partition("==")[0]: one for one in parts}


def part_of(service: str) -> dict[str, str]:
    """Return the blocks of the packages that a service needs: those of its extra, and what they want in turn."""
    all_blocks, described = blocks(), project()
    wanted_by = {name: set(PARENT.findall(one)) for name, one in all_blocks.items()}
    found, new = set[str](), names([*described["dependencies"], *described["optional-dependencies"][service]])
    while new:
        found |= new
        new = {name for name, parents in wanted_by.items() if parents & new} - found
    return {name: all_blocks[name] for name in sorted(found)}


def debian(status: str) -> list[JSON]:
    """Return the components that the base image brings, as its package manager lists them."""
    found = []
    for block in status.split("\n\n"):
        named = dict(re.findall(r"^(Package|Version|Architecture|Status): (.+)$", block, re.MULTILINE))
        if named.get("Status", "").endswith(" installed"):
            name, version = named["Package"], named["Version"]
            purl = f"pkg:deb/debian/{name}@{quote(version)}?arch={named['Architecture']}"
            found.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl})
    return found


def bill(service: str, status: str = "") -> JSON:
    """Return the bill of materials (CycloneDX 1.6): the lock's part, and what the base image brings."""
    components = debian(status)
    for name, block in part_of(service).items():
        pin = PIN.match(block)
        assert pin is not None
        hashes = [{"alg": "SHA-256", "content": one} for one in re.findall(r"sha256:([0-9a-f]{64})", block)]
        purl = f"pkg:pypi/{name}@{pin['version']}"
        components.append(
            {
                "type": "library",
                "name": name,
                "version": pin["version"],
                "purl": purl,
                "bom-ref": purl,
                "hashes": hashes,
            }
        )
    own = {"type": "application", "name": f"plexsphere-{service}", "version": project()["version"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": components,
    }


def sources(service: str) -> list[Path]:
    """Return the files of ours that the image holds: of services its own alone, of the job the schemas of all."""
    found = [*_code("libs"), ROOT / "services/__init__.py"]
    if service == MIGRATE:
        for folder in sorted((ROOT / "services").glob("*/migrations")):
            found += [folder.parent / "__init__.py", folder.parent / "columns.py", *sorted(folder.glob("*.py"))]
        return found
    return found + [path for path in _code(f"services/{service}") if "migrations" not in path.parts]


def _code(folder: str) -> list[Path]:
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path for path in files if not {"tests", "__pycache__"} & set(path.parts[len(ROOT.parts) :]))


def fill(service: str, app: Path) -> None:
    """Put our files, what starts them, the project's name and version, and the bill of materials into the image."""
    for path in sources(service):
        target = app / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copytree(ROOT / "proto/plexsphere", app / "plexsphere", ignore=shutil.ignore_patterns("*.proto", "*.pyi"))
    module = "libs.migrations" if service == MIGRATE else f"services.{service}"
    start = app / "serve"
    start.write_text(SHEBANG.format(python=app / "venv/bin/python", module=module))
    start.chmod(0o755)
    version = project()["version"]
    (site,) = (app / "venv/lib").glob("python*/site-packages")
    about = site / f"{PROJECT.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: {version}\n")
    status = DPKG.read_text() if DPKG.exists() else ""
    (app / "sbom.cdx.json").write_text(json.dumps(bill(service, status), indent=1))


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=["lock", "fill"])
    parser.add_argument(
        "service", choices=["identity", "access", "secrets", "mesh", "audit", "gateway", MIGRATE, "devstack"]
    )
    parser.add_argument("--app", type=Path, default=Path("/app"))
    asked = parser.parse_args()
    if asked.do == "lock":
        sys.stdout.write("\n".join(part_of(asked.service).values()) + "\n")
    else:
        fill(asked.service, asked.app)


if __name__ == "__main__":
    main()
