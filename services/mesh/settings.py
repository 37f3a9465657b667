"""Settings of the mesh process."""

from libs.settings import Nats, OpenBao, Peer, Postgres, Runtime, Settings


class Peers(Settings):
    """The processes that this one calls."""

    identity: Peer
    audit: Peer


class MeshSettings(Runtime):
    """All of them."""

    postgres: Postgres
    openbao: OpenBao
    nats: Nats
    peers: Peers
