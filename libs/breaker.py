"""A circuit breaker: what has just not answered several times in a row is not waited for again by everybody."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Self

import structlog

from libs.errors import Unavailable

MOST_FAILURES = 5
REST_S = 1.0

log = structlog.get_logger()


class Breaker:
    """Lets attempts through until too many in a row have failed; then, after a rest, one at a time until one succeeds.

    An attempt says itself whether it was answered or failed. One that says neither, as when its caller went away, tells
    nothing about the other side.
    """

    def __init__(self, refusal: type[Unavailable], clock: Callable[[], float] = time.monotonic) -> None:
        self._refusal = refusal
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0
        self._probing = False

    @contextlib.contextmanager
    def attempt(self) -> Iterator[Self]:
        """Try within the block; raises the refusal at once where it is not worth trying."""
        probe = self._failures >= MOST_FAILURES
        if probe and (self._probing or self._clock() < self._rests_until):
            raise self._refusal("it has not answered several times in a row")
        self._probing = self._probing or probe
        try:
            yield self
        finally:
            if probe:
                self._probing = False

    def answered(self) -> None:
        """Note that the other side is there."""
        self._failures = 0

    def failed(self) -> None:
        """Note that it did not answer."""
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            self._rests_until = self._clock() + REST_S
        if self._failures == MOST_FAILURES:
            log.warning("breaker.opened", code=self._refusal.code)
