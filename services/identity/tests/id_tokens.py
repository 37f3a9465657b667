"""A valid id_token, the keys behind it, and how a test makes another one of it."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.identity.id_token import Expected

NOW = 1_776_249_000
ISSUER, CLIENT, NONCE, ACCESS = "https://op.example", "plexsphere", "n-0S6_WzA2Mj", "access"
WANT = Expected(ISSUER, CLIENT, NONCE, NOW, ACCESS, algorithms=("RS256", "ES256", "EdDSA", "Ed25519"))
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
EDWARDS = Ed25519PrivateKey.generate()
Sign = Callable[[bytes], bytes]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def rsa_jwk(key: rsa.RSAPrivateKey, kid: str) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    size = (numbers.n.bit_length() + 7) // 8
    return {"kty": "RSA", "n": b64(numbers.n.to_bytes(size)), "e": b64(numbers.e.to_bytes(3)), "kid": kid, "use": "sig"}


def ec_jwk(key: ec.EllipticCurvePrivateKey, kid: str) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    x, y = b64(numbers.x.to_bytes(32)), b64(numbers.y.to_bytes(32))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "use": "sig", "alg": "ES256"}


KEYS = [rsa_jwk(PRIVATE, "k1") | {"alg": "RS256"}, rsa_jwk(OTHER, "k2") | {"alg": "RS256"}]
CURVE_KEY = ec_jwk(CURVE, "c1")
EDWARDS_KEY = {"kty": "OKP", "crv": "Ed25519", "x": b64(EDWARDS.public_key().public_bytes_raw()), "kid": "e1"}
HALF_HASH = b64(hashlib.sha256(ACCESS.encode()).digest()[:16])
LONG_HASH = b64(hashlib.sha512(ACCESS.encode()).digest()[:32])
CLAIMS: dict[str, Any] = {
    "iss": ISSUER, "sub": "alice", "aud": CLIENT, "exp": NOW + 300, "iat": NOW, "nonce": NONCE, "at_hash": HALF_HASH,
    "auth_time": NOW - 10, "acr": "urn:mfa", "amr": ["pwd", "otp"],
}  # fmt: skip
HEADER = {"alg": "RS256", "kid": "k1"}


def rs256(key: rsa.RSAPrivateKey) -> Sign:
    return lambda signed: key.sign(signed, padding.PKCS1v15(), hashes.SHA256())


def ps256(key: rsa.RSAPrivateKey) -> Sign:
    return lambda signed: key.sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def es256(signed: bytes) -> bytes:
    r, s = decode_dss_signature(CURVE.sign(signed, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def hs256_with_the_public_key(signed: bytes) -> bytes:
    public = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hmac.digest(public, signed, "sha256")


def compact(header: bytes, payload: bytes, sign: Sign) -> str:
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def token(claims: Any = None, header: Any = None, sign: Sign | None = None, payload: bytes | None = None) -> str:
    """Sign the valid claims with what is given on top; `payload` replaces them all. A member that is `...` goes."""
    given = {name: value for name, value in (CLAIMS | (claims or {})).items() if value is not ...}
    shown = {name: value for name, value in (HEADER | (header or {})).items() if value is not ...}
    return compact(
        json.dumps(shown).encode(), json.dumps(given).encode() if payload is None else payload, sign or rs256(PRIVATE)
    )


def literally(name: str, literal: str) -> bytes:
    """Return the claims as JSON where one has a value that Python would not write."""
    return json.dumps(CLAIMS | {name: "here"}).replace('"here"', literal).encode()
