"""Own doors to the backends, as whoever holds a certificate of the development CA sees them."""

import ssl
from collections.abc import Callable

import pytest

from devstack.layout import State
from libs import tls
from libs.settings import Tls


@pytest.fixture
def shown(stack: State) -> Callable[[str], ssl.SSLContext]:
    """A TLS context that shows the certificate of the named process, or none."""

    def context(name: str = "") -> ssl.SSLContext:
        pki = stack / "pki"
        if not name:
            return tls.trusting(pki / "ca.crt")
        return tls.client(
            Tls(certificate_file=pki / f"{name}.crt", key_file=pki / f"{name}.key", ca_file=pki / "ca.crt")
        )

    return context
