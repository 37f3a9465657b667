"""How every process starts: hardened first, then its one settings file, then its parts."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from libs import telemetry
from libs.custody import harden
from libs.settings import Runtime, StartRefused, load
from libs.vitals import watch_certificates, watched_loop

EXIT_REFUSED = 2
Model = TypeVar("Model", bound=Runtime)


def main(model: type[Model], run: Callable[[Model], Awaitable[None]]) -> None:
    """Run a service; a refusal to start ends it with status 2 and one line that says what is wrong."""
    harden()
    parser = argparse.ArgumentParser(description="Run this service.")
    parser.add_argument("--config", type=Path, required=True, help="settings file (TOML)")
    try:
        settings = load(parser.parse_args().config, model)
        telemetry.set_up(settings)
        watch_certificates(settings)
        asyncio.run(_run(run, settings))
    except StartRefused as error:
        print(f"refused to start: {error}", file=sys.stderr)  # noqa: T201 — before the logs exist, stderr is for people
        raise SystemExit(EXIT_REFUSED) from None


async def _run(run: Callable[[Model], Awaitable[None]], settings: Model) -> None:
    asyncio.get_running_loop().set_exception_handler(telemetry.log_loop_error)
    async with watched_loop():
        await run(settings)
