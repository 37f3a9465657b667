"""Settings of audit."""

from pathlib import Path

from libs.settings import OpenBao, Peer, Postgres, Runtime, Settings


class Peers(Settings):
    """Whom audit's read side asks."""

    identity: Peer


class AuditSettings(Runtime):
    """deploy/config/audit.toml."""

    postgres: Postgres
    openbao: OpenBao
    peers: Peers
    cursor_key_file: Path
