"""Settings of the mesh process."""

from typing import Literal

from libs.settings import Nats, OpenBao, Peer, Postgres, Runtime, Settings


class Peers(Settings):
    """The processes that this one calls."""

    identity: Peer
    audit: Peer


class Stream(Settings):
    """How many servers of JetStream hold the stream; a message is acknowledged once a majority has it."""

    replicas: Literal[1, 3, 5] = 1


class MeshSettings(Runtime):
    """All of them."""

    postgres: Postgres
    openbao: OpenBao
    nats: Nats
    stream: Stream = Stream()
    peers: Peers
