"""Replaces what a stack's processes hold, while they run: they use the next one without a restart."""

import secrets

from devstack import openbao, pki
from devstack.layout import State, write_private

# The others stay: the pseudonym key and the pepper make names that must not change, the restore key and the seal are
# somebody's, the providers' client secrets are the providers'.
FILES = ("cursor", "csrf", "pkce")
TRANSIT = {
    "wrapping-key": ("transit-identity/keys/nsk", "transit-identity/keys/refresh"),
    "checkpoint-key": ("transit-audit/keys/acp",),
}
THINGS = ("certificates", *TRANSIT, "spicedb-key", *(f"{name}-key" for name in FILES))


async def rotate(state: State, thing: str) -> None:
    """Rotate one of THINGS."""
    match thing:
        case "certificates":
            pki.renew(state)
        case "wrapping-key" | "checkpoint-key":
            await _rotate_transit(state, TRANSIT[thing])
        case "spicedb-key":
            _rotate_spicedb_key(state)
        case _:
            write_private(state / f"secrets/{thing.removesuffix('-key')}.key", _fresh())


def _fresh() -> bytes:
    return secrets.token_urlsafe(32).encode()


async def _rotate_transit(state: State, keys: tuple[str, ...]) -> None:
    bao = openbao.client(state, "operator")
    try:
        for key in keys:
            await bao.request("POST", f"{key}/rotate", {})
    finally:
        await bao.close()


def _rotate_spicedb_key(state: State) -> None:
    old, new = state.secret("spicedb.key").encode(), _fresh()
    # SpiceDB takes both before identity shows the next one, and the old one no more after that.
    write_private(state / "secrets/spicedb.keys", old + b"," + new)
    write_private(state / "secrets/spicedb.key", new)
    write_private(state / "secrets/spicedb.keys", new)
