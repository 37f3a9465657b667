"""Privileged sessions: refused as long as nothing can issue them."""

from dataclasses import dataclass

from libs.errors import NotProvisioned


@dataclass(frozen=True)
class NoSessions:
    """A deployment without sessions."""

    def require(self) -> None:
        """Refuse, in our own type, so that nobody takes the answer for version skew."""
        raise NotProvisioned
