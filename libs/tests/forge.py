"""Assertions as identity makes them, each with one thing wrong; the names are the threat's words."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from libs.settings import Tls
from libs.tests.pki import SIGNER, Authority, make_authority, self_signed

SUBJECT = "01990000-0000-7000-8000-000000000000"


@dataclass(frozen=True)
class Forge:
    """Holds the CA's folder, as the tests do and nobody else may."""

    authority: Authority

    def sign(self, signer: Tls | None = None, head: dict[str, Any] | None = None, **changed: Any) -> str:
        own = signer or self.authority.signer()
        key = load_pem_private_key(own.key_file.read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        signed = signed_bytes(own, head or {}, changed)
        return signed + "." + b64(key.sign(signed.encode()))

    def stranger(self) -> Authority:
        return make_authority(self.authority.folder / "stranger")


def signed_bytes(own: Tls, head: dict[str, Any], changed: dict[str, Any]) -> str:
    leaf = x509.load_pem_x509_certificate(own.certificate_file.read_bytes())
    header = {"alg": "Ed25519", "typ": "plexsphere-principal+jwt"} | {
        "x5c": [base64.b64encode(leaf.public_bytes(Encoding.DER)).decode()]
    }
    now = int(time.time())
    claims = {
        "iss": "plexsphere-identity", "aud": "identity", "azp": "gateway", "jti": "1", "iat": now, "exp": now + 60,
        "sub": SUBJECT, "kind": "user", "cred": "session", "domain_id": "", "acr": "", "amr": ["pwd"],
    }  # fmt: skip
    return f"{b64(json.dumps(header | head).encode())}.{b64(json.dumps(claims | changed).encode())}"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def altered(forge: Forge) -> str:
    head, _, signature = forge.sign().split(".")
    claims = forge.sign(sub="01990000-0000-7000-8000-ffffffffffff").split(".")[1]
    return f"{head}.{claims}.{signature}"


def keyed_with_the_public_key(forge: Forge) -> str:
    own = forge.authority.signer()
    leaf = x509.load_pem_x509_certificate(own.certificate_file.read_bytes())
    secret = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = signed_bytes(own, {"alg": "HS256"}, {})
    return signed + "." + b64(hmac.digest(secret, signed.encode(), hashlib.sha256))


def now(offset_s: int = 0) -> int:
    return int(time.time()) + offset_s


ATTACKS: dict[str, Callable[[Forge], str]] = {
    "none at all": lambda _: "",
    "not a token": lambda _: "garbage",
    "too long": lambda forge: forge.sign(jti="x" * 8192),
    "nested too deep": lambda _: b64(b"[" * 3000) + "." + b64(b"{}") + "." + b64(b"x"),
    "expired": lambda forge: forge.sign(iat=now(-61), exp=now(-1)),
    "not yet issued": lambda forge: forge.sign(iat=now(30), exp=now(60)),
    "longer than a minute": lambda forge: forge.sign(exp=now(3600)),
    "without an end": lambda forge: forge.sign(exp=None),
    "for another audience": lambda forge: forge.sign(aud="secrets"),
    "for several audiences": lambda forge: forge.sign(aud=["identity", "secrets"]),
    "for another presenter": lambda forge: forge.sign(azp="mesh"),
    "by another issuer": lambda forge: forge.sign(iss="plexsphere-gateway"),
    "of another type": lambda forge: forge.sign(head={"typ": "plexsphere-session+jwt"}),
    "with critical extensions": lambda forge: forge.sign(head={"crit": ["exp"]}),
    "altered": altered,
    "with its signature cut off": lambda forge: forge.sign().rsplit(".", 1)[0] + ".",
    "unsigned by name": lambda forge: forge.sign(head={"alg": "none"}).rsplit(".", 1)[0] + ".",
    "under another algorithm": lambda forge: forge.sign(head={"alg": "EdDSA"}),
    "keyed with the public key": keyed_with_the_public_key,
    "naming no signer": lambda forge: forge.sign(head={"x5c": []}),
    "naming two signers": lambda forge: forge.sign(head={"x5c": ["AA==", "AA=="]}),
    "by a signer that signed itself": lambda forge: forge.sign(self_signed(forge.authority.folder)),
    "by another CA's signer": lambda forge: forge.sign(forge.stranger().signer()),
    "by an expired signer": lambda forge: forge.sign(forge.authority.signer("late", valid_for=-1)),
    "by a service's own name": lambda forge: forge.sign(
        forge.authority.signer("mesh-signer", uri="spiffe://plexsphere/mesh")
    ),
    "by a name below the signer's": lambda forge: forge.sign(forge.authority.signer("below", uri=SIGNER + "/x")),
}
