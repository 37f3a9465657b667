"""TLS contexts for what is not gRPC: PostgreSQL, OpenBao, OpenID providers, the edge itself. Always TLS 1.3."""

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

from libs.settings import Tls


def client(tls: Tls) -> ssl.SSLContext:
    """Return a context that verifies the server against our CA and shows our certificate."""
    context = trusting(tls.ca_file)
    context.load_cert_chain(tls.certificate_file, tls.key_file)
    return context


def trusting(ca_file: Path) -> ssl.SSLContext:
    """Return a context that verifies the server against one CA and shows no certificate."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def changed_at(tls: Tls) -> tuple[int, ...]:
    """Return when the files changed, to compare with what was seen before."""
    return tuple(path.stat().st_mtime_ns for path in (tls.certificate_file, tls.key_file, tls.ca_file))


def follow(tls: Tls, context: ssl.SSLContext) -> Callable[[], None]:
    """Return a step that loads the files again when they changed; the old pair stays while the new one does not fit.

    A CA that is gone from its file is trusted until the process ends.
    """
    seen = changed_at(tls)

    def step() -> None:
        nonlocal seen
        with contextlib.suppress(OSError):
            if (now := changed_at(tls)) != seen:
                context.load_verify_locations(tls.ca_file)
                context.load_cert_chain(tls.certificate_file, tls.key_file)
                seen = now

    return step
