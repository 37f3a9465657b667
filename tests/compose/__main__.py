"""`make compose-test`: says in one line why containers cannot run here, or how they do, and runs the tests."""

import sys

import pytest

from tests.compose.engine import CannotRunError, Engine


def main() -> int:
    """Return the exit status; 1 also where containers cannot run, for nothing was shown."""
    try:
        engine = Engine.find()
    except CannotRunError as why:
        print(f"compose-test: NOT RUN: {why}")  # noqa: T201 — for whoever asked
        return 1
    backends = "no registry answers: backends from packages, SpiceDB in memory" if engine.local else "official images"
    print(f"compose-test: {' '.join(engine.compose)}; {backends}; Grafana and the collector are not started")  # noqa: T201
    return pytest.main(["-q", "-s", "-m", "compose", *(sys.argv[1:] or ["tests/compose"])])


if __name__ == "__main__":
    sys.exit(main())
