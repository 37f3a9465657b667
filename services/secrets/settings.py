"""Settings of the secrets process."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from libs.access_policy import HIGHEST_LIMITS
from libs.settings import OpenBao, Peer, Postgres, Runtime, Settings

Rate = Annotated[int, Field(ge=1, le=1_000_000)]


class Peers(Settings):
    """The processes that this one calls."""

    identity: Peer
    audit: Peer
    mesh: Peer


class Limits(Settings):
    """How often nodes may read: steady rates and bursts, per node and per Domain."""

    node_rate_per_minute: Rate
    node_burst: Rate
    domain_rate_per_minute: Rate
    domain_burst: Rate


class SecretsSettings(Runtime):
    """All of them."""

    postgres: Postgres
    openbao: OpenBao
    peers: Peers
    # Where a Domain's access policy says nothing, and what it gets at most whatever it says.
    limits: Limits
    limits_at_most: Limits = Limits(**HIGHEST_LIMITS)
    cursor_key_file: Path

    @model_validator(mode="after")
    def _within(self) -> Self:
        most = self.limits_at_most.model_dump()
        if above := [name for name, value in self.limits.model_dump().items() if value > most[name]]:
            raise ValueError(f"limits are above limits_at_most: {', '.join(above)}")
        return self
