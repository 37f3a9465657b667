"""Ids and times: version and order of UUIDv7, one spelling each."""

import datetime
import time
from uuid import RFC_4122, UUID, uuid4

import pytest

from libs.clock import FixedClock, SystemClock, parse_rfc3339, rfc3339
from libs.ids import parse_uuid, uuid7

pytestmark = pytest.mark.unit

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)


def test_a_uuid7_has_its_version_variant_and_time() -> None:
    before = time.time_ns() // 1_000_000
    made = [uuid7() for _ in range(2000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == len(made)
    for one in made:
        assert (one.version, one.variant) == (7, RFC_4122)
        assert before <= one.int >> 80 <= after


def test_later_ones_sort_after_earlier_ones() -> None:
    earlier = uuid7()
    time.sleep(0.002)
    assert str(earlier) < str(uuid7())


def test_all_random_bits_are_used() -> None:
    fixed = (0xF << 76) | (0b11 << 62)
    both = [0, 0]
    for _ in range(500):
        value = uuid7().int & ((1 << 80) - 1) & ~fixed
        both = [both[0] | value, both[1] | ~value]
    free = ((1 << 80) - 1) & ~fixed
    assert (both[0] & free, both[1] & free) == (free, free)


def test_a_uuid_has_one_spelling() -> None:
    text = str(uuid4())
    assert parse_uuid(text) == UUID(text)
    for other in (text.upper(), text.replace("-", ""), "{" + text + "}", "urn:uuid:" + text, text + "\n", "", "x"):
        with pytest.raises(ValueError, match=r".*"):
            parse_uuid(other)


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "12:00:00Z"), (500_000, "12:00:00.5Z"), (1, "12:00:00.000001Z"), (120, "12:00:00.00012Z")],
)
def test_a_time_is_written_with_z_and_no_needless_digits(micros: int, text: str) -> None:
    at = NOON.replace(microsecond=micros)
    assert rfc3339(at) == "2026-03-01T" + text
    assert rfc3339(at.astimezone(datetime.timezone(datetime.timedelta(hours=5)))) == rfc3339(at)
    assert parse_rfc3339(rfc3339(at)) == at


@pytest.mark.parametrize("text", ["", "2026-03-01", "2026-03-01T12:00:00", "2026-03-01 12:00:00Z", "12:00:00Z", "now"])
def test_a_time_without_date_time_and_offset_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_rfc3339(text)


def test_clocks_are_aware_and_a_fixed_one_moves_when_told() -> None:
    assert SystemClock().now().tzinfo is datetime.UTC
    clock = FixedClock(NOON)
    clock.advance(1.5)
    assert clock.now() == NOON + datetime.timedelta(seconds=1.5)
