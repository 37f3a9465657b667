"""Settings of identity."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from libs.settings import OpenBao, Peer, Postgres, Runtime, Settings


class Peers(Settings):
    """Whom identity calls."""

    audit: Peer
    mesh: Peer


class SpiceDbSettings(Settings):
    """The relation store; identity alone holds its key."""

    address: str
    name: str
    key_file: Path


class Assertion(Settings):
    """The certificate that signs principal assertions."""

    certificate_file: Path
    key_file: Path


class SignInSettings(Settings):
    """What signing in needs."""

    edge_url: str
    provider_ca_file: Path | None = None
    provider_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    provider_cache_s: float = 300.0
    pkce_key_file: Path
    csrf_key_file: Path
    # Where a sign-in may lead back to, besides `/`.
    return_paths: list[str]


class Bootstrap(Settings):
    """The platform's own provider, and which of its subjects administer the platform."""

    issuer: str
    client_id: str
    client_secret_ref: str
    discovery_url: str
    platform_admins: list[str]


class IdentitySettings(Runtime):
    """deploy/config/identity.toml."""

    postgres: Postgres
    openbao: OpenBao
    spicedb: SpiceDbSettings
    peers: Peers
    assertion: Assertion
    sign_in: SignInSettings
    bootstrap: Bootstrap
    cursor_key_file: Path
    pseudonym_key_file: Path
