"""Settings of the gateway."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from libs.settings import Nats, Peer, Runtime, Seconds, Settings

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Url = Annotated[str, Field(pattern=r"^https://[^/\s]+$")]


class Peers(Settings):
    """The processes that this one calls."""

    identity: Peer
    access: Peer
    # Left out, every operation on secrets answers 501 `secrets_not_provisioned`.
    secrets: Peer | None = None
    mesh: Peer
    audit: Peer


class Certificate(Settings):
    """What clients see, in PEM; read again when it changes."""

    certificate_file: Path
    key_file: Path


class Rate(Settings):
    """How often one client address may do something."""

    per_minute: Count
    burst: Count


class Limits(Settings):
    """What is limited per client address."""

    registration: Rate
    sign_in: Rate
    device_code: Rate
    service_token: Rate
    bad_bearer: Rate


class Build(Settings):
    """What `/v1/version` says."""

    commit: str
    date: str


Port = Literal["event_stream", "nonce_store", "signature_verifier", "relation_checker", "node_repo"]


class GatewaySettings(Runtime):
    """All of them."""

    ports: list[Port]
    nats: Nats

    public_url: Url
    allowed_origins: list[Url]
    request_timeout_s: Seconds
    # Whose `X-Forwarded-For` is believed.
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    certificate: Certificate
    peers: Peers
    limits: Limits
    build: Build
