"""What every soak shares: its arguments, processes that are killed while others are busy, checks of what was seen."""

import argparse
import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.deployment import Deployment
from bench.measure import Check, Report, console

TELL_EVERY_S = 30.0


def begin(name: str, about: str | None, seconds: float) -> tuple[float, Report]:
    """Read how long and with which seed; returns the seconds and the report."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("seconds", nargs="?", type=float, default=seconds, help=f"how long; {seconds:.0f} by default")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="repeats the order of kills")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    return arguments.seconds, Report(name, {"settings": f"{arguments.seconds:.0f} s, seed {arguments.seed}"})


@dataclass
class Faults:
    """SIGKILLs processes and starts them again; of the victims those come last that the others need."""

    deployment: Deployment
    victims: Sequence[str]
    quiet_s: tuple[float, float]
    down_s: tuple[float, float]
    # How often it is two at once.
    two_at_once: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    ended_alone: Counter[str] = field(default_factory=Counter)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def during(self, seconds: float, busy: Iterable[Coroutine[Any, Any, None]], seen: Callable[[], str]) -> None:
        """Kill while others are busy; they look at `stop`. Everything runs again when it returns."""
        async with asyncio.TaskGroup() as group:
            for one in (self._kill(), self._tell(seconds, seen), *busy):
                group.create_task(one)
            await asyncio.sleep(seconds)
            self.stop.set()
        await self.start()

    async def _kill(self) -> None:
        turn: list[str] = []
        while not await self._stopped_within(random.uniform(*self.quiet_s)):
            # Each in its turn, in an order of its own every time round, so that none is forgotten.
            turn = turn if len(turn) > 1 else [*turn, *random.sample(self.victims, len(self.victims))]
            victims = {turn.pop(0) for _ in range(2 if random.random() < self.two_at_once else 1)}
            for victim in victims:
                await self.deployment.kill(victim)
                self.kills[victim] += 1
            await asyncio.sleep(random.uniform(*self.down_s))
            await self.start(victims)

    async def start(self, expected: Collection[str] = ()) -> None:
        """Start what is down, backends first; what was not killed by us ended by itself."""
        down, last = await self.deployment.down(), len(self.victims)
        for name in sorted(down, key=lambda one: self.victims[::-1].index(one) if one in self.victims else last):
            if name not in expected:
                self.ended_alone[name] += 1
            await self.deployment.start(name)

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)
        return self.stop.is_set()

    async def _tell(self, seconds: float, seen: Callable[[], str]) -> None:
        begun = time.monotonic()
        while not await self._stopped_within(TELL_EVERY_S):
            passed, kills = time.monotonic() - begun, sum(self.kills.values())
            console.print(f"  {passed:4.0f} of {seconds:.0f} s: {kills} kills, {seen()}")

    def check(self, done: dict[str, Any]) -> Check:
        """Return whether anything was done, and everybody killed."""
        observed = {**done, "kills": dict(self.kills)}
        ok = all(done.values()) and self.kills.keys() == set(self.victims)
        return Check("the soak did something", "all of it, every victim killed", str(observed), ok)


def none(name: str, found: Sequence[str]) -> Check:
    """Return whether there was none of something."""
    return Check(name, "0", f"{len(found)}" + (f": {'; '.join(found[:3])}" if found else ""), not found)
