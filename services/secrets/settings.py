"""Settings of the secrets process."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

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
    limits: Limits
    cursor_key_file: Path
