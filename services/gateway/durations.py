"""Durations as Go writes them (`1m30s`), which is how published clients read and write a reachability policy."""

import re

UNITS_NS = {"h": 3_600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
PART = re.compile(r"([0-9]+)(?:\.([0-9]{1,9}))?(h|ms|m|s|us|µs|ns)")
LONGEST_NS = (1 << 63) - 1
LONGEST_TEXT = 64


def parse(text: str) -> int:
    """Read a positive duration in nanoseconds; raises ValueError for anything else (Go `time.ParseDuration`)."""
    total, at = 0, 0
    while at < len(text) <= LONGEST_TEXT:
        part = PART.match(text, at)
        if part is None:
            break
        whole, fraction, unit = part.groups()
        scale = UNITS_NS[unit.replace("µ", "u")]
        total += int(whole) * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
        at = part.end()
    if at != len(text) or not 0 < total <= LONGEST_NS:
        raise ValueError("not a duration")
    return total


def write(nanoseconds: int) -> str:
    """Write a duration of a second or more (Go `Duration.String`)."""
    seconds, rest = divmod(nanoseconds, UNITS_NS["s"])
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    text = f"{seconds}{fraction}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
