"""Replaces what a stack's processes hold, while they run: they use the next one without a restart."""

import secrets

from devstack import openbao, pki
from devstack.layout import State, write_private

# The others stay: the pseudonym key and the pepper make names that must not change, the restore key and the seal are
# somebody's, the providers' client secrets are the providers'.
FILES = ("cursor", "csrf", "pkce")
THINGS = ("certificates", "wrapping-key", "spicedb-key", *(f"{name}-key" for name in FILES))


async def rotate(state: State, thing: str) -> None:
    """Rotate one of THINGS."""
    match thing:
        case "certificates":
            pki.renew(state)
        case "wrapping-key":
            await _rotate_wrapping_keys(state)
        case "spicedb-key":
            _rotate_spicedb_key(state)
        case _:
            write_private(state / f"secrets/{thing.removesuffix('-key')}.key", _fresh())


def _fresh() -> bytes:
    return secrets.token_urlsafe(32).encode()


async def _rotate_wrapping_keys(state: State) -> None:
    bao = openbao.client(state, "operator")
    try:
        for key in ("nsk", "refresh"):
            await bao.request("POST", f"transit-identity/keys/{key}/rotate", {})
    finally:
        await bao.close()


def _rotate_spicedb_key(state: State) -> None:
    old, new = state.secret("spicedb.key").encode(), _fresh()
    # SpiceDB takes both before identity shows the next one, and the old one no more after that.
    write_private(state / "secrets/spicedb.keys", old + b"," + new)
    write_private(state / "secrets/spicedb.key", new)
    write_private(state / "secrets/spicedb.keys", new)
