"""What the rules of access need; each docstring is the promise."""

from typing import Protocol


class Sessions(Protocol):
    """Where sessions would be kept and signed."""

    def require(self) -> None:
        """Return when this deployment can issue sessions; raises NotProvisioned otherwise."""
