"""Settings of the mesh process."""

from libs.settings import OpenBao, Peer, Postgres, Runtime, Settings


class Peers(Settings):
    """The processes that this one calls."""

    audit: Peer


class MeshSettings(Runtime):
    """All of them."""

    postgres: Postgres
    openbao: OpenBao
    peers: Peers
