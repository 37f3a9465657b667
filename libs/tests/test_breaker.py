"""A breaker opens after failures in a row, rests, probes one at a time, and closes with the first answer."""

import pytest

from libs.breaker import MOST_FAILURES, REST_S, Breaker
from libs.errors import OpenbaoUnavailable

pytestmark = pytest.mark.unit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        with breaker.attempt() as attempt:
            attempt.failed()


def refused(breaker: Breaker) -> bool:
    try:
        with breaker.attempt():
            return False
    except OpenbaoUnavailable:
        return True


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(OpenbaoUnavailable, clock)
    fail(breaker, MOST_FAILURES)
    return breaker, clock


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker(OpenbaoUnavailable, Clock())
    fail(breaker, MOST_FAILURES - 1)
    with breaker.attempt() as attempt:
        attempt.answered()
    fail(breaker, MOST_FAILURES - 1)
    assert not refused(breaker)
    fail(breaker, 1)
    assert refused(breaker)


def test_after_a_rest_one_at_a_time_probes_and_an_answer_closes_it() -> None:
    breaker, clock = opened()
    clock.now = REST_S - 0.01
    assert refused(breaker)
    clock.now = REST_S
    with breaker.attempt() as probe:
        assert refused(breaker)
        probe.answered()
        with breaker.attempt():
            assert not refused(breaker)


def test_a_probe_that_fails_lets_it_rest_again() -> None:
    breaker, clock = opened()
    clock.now = REST_S
    fail(breaker, 1)
    assert refused(breaker)
    clock.now = 2 * REST_S
    assert not refused(breaker)


def test_a_probe_whose_caller_went_away_leaves_its_place_to_the_next() -> None:
    breaker, clock = opened()
    clock.now = REST_S
    with pytest.raises(ZeroDivisionError), breaker.attempt():
        raise ZeroDivisionError
    assert not refused(breaker)
