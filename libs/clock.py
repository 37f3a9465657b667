"""One injectable clock; every time is aware and in UTC."""

import datetime
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Tells the time; rules never ask the system themselves."""

    def now(self) -> datetime.datetime:
        """Return the current time, aware, in UTC."""


@dataclass(frozen=True)
class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime.datetime:
        """Return the current time, aware, in UTC."""
        return datetime.datetime.now(datetime.UTC)


@dataclass
class FixedClock:
    """A clock that stands still until it is told to move."""

    at: datetime.datetime

    def now(self) -> datetime.datetime:
        """Return the time that the clock stands at."""
        return self.at

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.at += datetime.timedelta(seconds=seconds)


def rfc3339(at: datetime.datetime) -> str:
    """Write a time as RFC 3339 in UTC with `Z`, fraction digits only where there are any."""
    # Asked of every entry that is verified: a time that is in UTC is not brought there.
    text = (at if at.tzinfo is datetime.UTC else at.astimezone(datetime.UTC)).isoformat()[:-6]
    return (text.rstrip("0") if at.microsecond else text) + "Z"


def parse_rfc3339(text: str) -> datetime.datetime:
    """Read an RFC 3339 time with an offset; raises ValueError for anything else."""
    at = datetime.datetime.fromisoformat(text)
    if at.tzinfo is None or "T" not in text.upper():
        raise ValueError("a time needs a date, a time of day and an offset")
    return at.astimezone(datetime.UTC)
