"""When garbage is looked for: after streams were opened, never while an event waits for it.

A full collection looks at every object of every open stream, 0.1 ms a stream, and Python begins one wherever the count
of new objects happens to reach its limit. Most of what a gateway holds lives long, so it is set aside (gc.freeze): what
is collected between two times of this is young. Connections are cycles, so those that were set aside and have ended
are looked for once a quarter of what is open has changed.
"""

import asyncio
import gc
from collections.abc import Callable

LOOK_EVERY_S = 1.0
FEWEST = 100


def settle() -> None:
    """Collect all garbage and set aside what is left."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def keep_settled(
    opened: Callable[[], int],
    held: Callable[[], int],
    collect: Callable[[], None] = settle,
    look_every_s: float = LOOK_EVERY_S,
) -> None:
    """Settle now, and after each wave of new streams; `opened` counts all ever, `held` those that are open."""
    collect()
    done = before = opened()
    while True:
        await asyncio.sleep(look_every_s)
        now = opened()
        if now == before and now - done >= max(FEWEST, held() // 4):
            collect()
            done = now
        before = now
