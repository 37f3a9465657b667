"""What every process tells of itself: how late its event loop is, how full its pool, how long its certificates last."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509

from libs.telemetry import EXPIRES, LAG, POOL

if TYPE_CHECKING:
    # The edge has no database, and its image no driver.
    import asyncpg

LOOK_S = 0.5


def certificates(settings: Any, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield each certificate that settings name, by where they name it."""
    for name, value in settings:
        if name in {"certificate_file", "ca_file"} and isinstance(value, Path):
            yield (prefix if name == "certificate_file" else "ca"), value
        elif hasattr(value, "certificate_file"):
            yield from certificates(value, name)


def expires_at(path: Path) -> float:
    """Return when the first certificate of a file ends, as Unix time; 0 where there is none that can be read."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
        return min(one.not_valid_after_utc for one in found).timestamp()
    except (OSError, ValueError):
        return 0.0


def watch_certificates(settings: Any) -> None:
    """Tell at each scrape when certificates end, as their files are then."""
    for name, path in certificates(settings):
        EXPIRES.labels(name).set_function(functools.partial(expires_at, path))


def watch_pool(pool: "asyncpg.Pool") -> None:
    """Tell at each scrape how many connections are open, in use, and allowed."""
    POOL.labels("open").set_function(pool.get_size)
    POOL.labels("busy").set_function(lambda: pool.get_size() - pool.get_idle_size())
    POOL.labels("most").set_function(pool.get_max_size)


@contextlib.asynccontextmanager
async def watched_loop() -> AsyncIterator[None]:
    """Measure for the block how much later than asked the event loop wakes."""
    watching = asyncio.ensure_future(_watch_loop())
    try:
        yield
    finally:
        watching.cancel()


async def _watch_loop() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LOOK_S
        await asyncio.sleep(LOOK_S)
        LAG.observe(loop.time() - due)
