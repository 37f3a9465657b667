"""Settings of the access process."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from libs.settings import OpenBao, Peer, Postgres, Runtime, Settings


class Peers(Settings):
    """The processes that this one calls."""

    identity: Peer
    mesh: Peer
    audit: Peer


class AccessSettings(Runtime):
    """All of them."""

    postgres: Postgres
    openbao: OpenBao
    peers: Peers
    issuer: Annotated[str, Field(pattern=r"^https://[^/\s]+$")]
    cursor_key_file: Path
