"""Privileged sessions: refused as long as nothing can issue them."""

from dataclasses import dataclass
from typing import NoReturn

from libs.errors import NotProvisioned


@dataclass(frozen=True)
class Access:
    """Sessions of a deployment that has none."""

    def refuse(self) -> NoReturn:
        """Refuse, in our own type, so that nobody takes the answer for version skew."""
        raise NotProvisioned
