"""How an attacker signs: RSA, elliptic and symmetric keys, and what their public halves look like in a key set."""

import base64
import hmac
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.e2e.outside import JSON


class Signer(Protocol):
    """Signs bytes."""

    def sign(self, signed: bytes) -> bytes: ...


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _number(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=="))


def compact(header: bytes, payload: bytes, key: Signer) -> str:
    """Return a JWS of exactly these bytes (RFC 7515, 7.1)."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(key.sign(signed.encode()))}"


class RsaKey:
    """RS256; of a private JWK, or new."""

    def __init__(self, jwk: JSON | None = None, bits: int = 2048) -> None:
        if jwk is None:
            self.private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
            return
        n, e, d, p, q, dp, dq, qi = (_number(jwk[name]) for name in ("n", "e", "d", "p", "q", "dp", "dq", "qi"))
        self.private = rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, rsa.RSAPublicNumbers(e, n)).private_key()

    def sign(self, signed: bytes) -> bytes:
        return self.private.sign(signed, padding.PKCS1v15(), hashes.SHA256())

    def jwk(self, kid: str, **more: Any) -> JSON:
        """Return the public half."""
        numbers = self.private.public_key().public_numbers()
        n = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)
        return {"kty": "RSA", "n": b64(n), "e": b64(numbers.e.to_bytes(3)), "kid": kid, "use": "sig", **more}

    @property
    def pem(self) -> bytes:
        """The public half as a file has it."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Pss:
    """PS256 with an RSA key."""

    key: RsaKey

    def sign(self, signed: bytes) -> bytes:
        return self.key.private.sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


class EcKey:
    """ES256."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())

    def sign(self, signed: bytes) -> bytes:
        r, s = decode_dss_signature(self.private.sign(signed, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    def jwk(self, kid: str) -> JSON:
        """Return the public half."""
        numbers = self.private.public_key().public_numbers()
        x, y = b64(numbers.x.to_bytes(32)), b64(numbers.y.to_bytes(32))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "use": "sig", "alg": "ES256"}


@dataclass(frozen=True)
class Hmac:
    """HS256 with whatever the attacker takes for a secret."""

    secret: bytes

    def sign(self, signed: bytes) -> bytes:
        return hmac.digest(self.secret, signed, "sha256")


@dataclass(frozen=True)
class Altered:
    """The right key's signature of other bytes."""

    key: Signer

    def sign(self, signed: bytes) -> bytes:
        return self.key.sign(signed + b".")


class Nothing:
    """No signature at all."""

    def sign(self, _: bytes) -> bytes:
        return b""


ATTACKER, SECOND, WEAK, CURVE = RsaKey(), RsaKey(), RsaKey(bits=1024), EcKey()
